"""`async-task retry | run-now | reschedule | expire | fail | cancel`: what they have in common."""

import datetime as dt
import getpass
import io
import json
import os
import pty
import socket
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from async_task import Attempt, Status
from async_task.schema.tables import JobEvent
from clockwork import row_of
from outbox import Client, calls, events_of
from said import Run

Write = Callable[..., Attempt]


VERBS = ("retry", "run-now", "reschedule", "expire", "fail", "cancel")


NOBODY = "0199f3a0-0000-7000-8000-000000000000"


WHY = ("--reason", "so")
IN = {"reschedule": ("--in", "1h")} | {verb: WHY for verb in VERBS if verb != "reschedule"}


def hold(engine: Engine, attempt: Attempt) -> None:
    """As if somebody performed it."""
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    claim = {"claim_id": uuid.uuid4(), "claimed_by": "shop:1:a", "lease_until": until}
    with engine.begin() as connection:
        values = {**claim, "num_attempts": 1, "attempted_at": attempt.created_at}
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(values))


def statuses(engine: Engine, *written: Attempt) -> list[str]:
    return [row_of(engine, one.id).status.value for one in written]


def count_events(engine: Engine) -> int:
    with Session(engine) as session:
        return len(session.scalars(select(JobEvent.id)).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "status"), [("expire", Status.EXPIRED), ("fail", Status.FAILED), ("cancel", Status.CANCELED)]
)
def test_a_pending_attempt_is_ended_with_a_reason_and_an_actor(
    run: Run, engine: Engine, write: Write, verb: str, status: Status
) -> None:
    attempt = write(Client, "ping")
    said = run(verb, str(attempt.id), "--reason", "moved to April", "--actor", "anna")
    assert (said.code, said.out, said.err) == (0, f"{attempt.id}  {status}\n", "")
    row = row_of(engine, attempt.id)
    assert (row.status, row.last_error) == (status, "moved to April")
    (event,) = events_of(engine, attempt.id)
    assert (event.kind, event.actor, event.message) == (verb, "anna", "moved to April")
    assert f"{verb}, by anna" in run("show", str(attempt.id)).out


@pytest.mark.slow
def test_retry_revives_an_ended_attempt_and_makes_a_waiting_one_due(run: Run, engine: Engine, write: Write) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    failed, waiting = write(Client, "ping"), write(Client, "ping", scheduled_at=later)
    run("fail", *WHY, str(failed.id))
    said = run("retry", *WHY, str(failed.id), str(waiting.id))
    assert said.out == f"{failed.id}  pending, due now\n{waiting.id}  pending, due now\n"
    assert (said.code, said.err) == (0, "retry: 2 done.\n")
    assert run("run-batch", "--json").json["succeeded"] == 2


def test_the_actor_is_the_option_else_the_environment_else_user_at_host(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write(Client, "ping")
    run("retry", str(attempt.id))
    monkeypatch.setenv("ASYNC_TASK_ACTOR", "runbook 7")
    run("retry", str(attempt.id))
    run("retry", str(attempt.id), "--actor", "anna")
    actors = [event.actor for event in events_of(engine, attempt.id)]
    assert actors == [f"{getpass.getuser()}@{socket.gethostname()}", "runbook 7", "anna"]


@pytest.mark.parametrize("verb", ["cancel", "run-now"])
def test_an_invalid_actor_is_refused_with_the_name_of_its_variable(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("ASYNC_TASK_ACTOR", "a" * 256)
    said = run(verb, *WHY, str(write(Client, "ping").id))
    assert (said.code, said.out, said.err.count("\n"), calls) == (78, "", 1, [])
    assert said.err.startswith("async-task: ASYNC_TASK_ACTOR: an actor is a printable text of 1 to 255 characters")


def test_reschedule_takes_an_instant_or_a_length_by_the_database_s_clock(
    run: Run, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "ping")
    said = run("reschedule", str(attempt.id), "--at", "2031-10-25T02:30+02:00")
    assert said.out == f"{attempt.id}  pending, due 2031-10-25 00:30:00 UTC\n"
    assert row_of(engine, attempt.id).due_at == dt.datetime(2031, 10, 25, 0, 30, tzinfo=dt.UTC)
    before = dt.datetime.now(dt.UTC)
    assert run("reschedule", str(attempt.id), "--in", "1h30m").code == 0
    due = row_of(engine, attempt.id).due_at
    assert dt.timedelta(minutes=89, seconds=59) < due - before < dt.timedelta(minutes=91)


@pytest.mark.in_turns
@pytest.mark.parametrize("verb", VERBS)
def test_a_refused_attempt_does_not_stop_the_others(run: Run, engine: Engine, write: Write, verb: str) -> None:
    held, done, free, nobody = write(Client, "ping"), write(Client, "ping"), write(Client, "ping"), uuid.uuid4()
    run("run-now", str(done.id))
    hold(engine, held)
    calls.clear()
    said = run(verb, *IN.get(verb, ()), str(held.id), str(done.id), str(nobody), str(free.id), "--json")
    assert said.code == 1
    assert [(line["ok"], line["verb"], line["dry_run"]) for line in said.lines] == [
        (False, verb, False), (False, verb, False), (False, verb, False), (True, verb, False),
    ]  # fmt: skip
    assert [line["status"] for line in said.lines[:3]] == ["pending", "succeeded", None]
    assert [line["id"] for line in said.lines] == [str(one) for one in (held.id, done.id, nobody, free.id)]
    whys = [line["why"] for line in said.lines]
    for why, part in zip(
        whys, ("is being performed by shop:1:a since", "is succeeded, and must be", "there is no attempt"), strict=False
    ):
        assert part in why
    assert whys[3] is None
    assert said.err.splitlines() == [f"async-task: {why}" for why in whys[:3]]
    assert statuses(engine, held, done)[1] == "succeeded"
    assert bool(calls) is (verb == "run-now")


def test_ids_come_from_standard_input_too_each_once(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(Client, "ping"), write(Client, "ping")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{first.id}\n{second.id} {first.id}\n"))
    said = run("cancel", *WHY, "-", str(second.id), "--json")
    assert [line["id"] for line in said.lines] == [str(first.id), str(second.id)]
    assert (said.code, statuses(engine, first, second)) == (0, ["canceled", "canceled"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("17\n"))
    said = run("cancel", *WHY, "-")
    assert (said.code, said.out, "'17' is not a valid id" in said.err) == (2, "", True)


@pytest.mark.slow
def test_all_means_failed_attempts_for_retry_and_pending_ones_for_the_others(
    run: Run, engine: Engine, write: Write
) -> None:
    failed, pending, canceled = (write(Client, "ping") for _ in range(3))
    run("fail", *WHY, str(failed.id))
    run("cancel", *WHY, str(canceled.id))
    said = run("retry", *WHY, "--all", "--yes", "--json")
    assert [line["id"] for line in said.lines] == [str(failed.id)]
    assert statuses(engine, failed, pending, canceled) == ["pending", "pending", "canceled"]
    assert len(run("expire", *WHY, "--all", "--yes", "--json").lines) == 2
    assert run("retry", *WHY, "--all", "--status", "canceled", "--status", "expired", "--yes").code == 0
    assert statuses(engine, failed, pending, canceled) == ["pending"] * 3


def test_all_takes_the_filters_of_list_and_names_the_next_ones(run: Run, engine: Engine, write: Write) -> None:
    written = [write(Client, "ping", queue="mail") for _ in range(3)]
    other = write(Client, "ping")
    said = run("cancel", *WHY, "--all", "--queue", "mail", "--limit", "2", "--yes")
    assert [line.split()[0] for line in said.out.splitlines()] == [str(one.id) for one in written[:2]]
    assert f"--after {written[1].id}" in said.err
    assert statuses(engine, *written, other) == ["canceled", "canceled", "pending", "pending"]
    none = run("cancel", *WHY, "--all", "--queue", "mail", "--status", "failed", "--yes")
    assert none.err == "No attempt is selected.\n"


def test_all_refuses_a_queue_that_nothing_knows(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping", queue="mail")
    said = run("cancel", *WHY, "--all", "--queue", "mial", "--yes")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "no queue is named 'mial' (did you mean 'mail'?)" in said.err
    assert statuses(engine, attempt) == ["pending"]


@pytest.mark.slow
def test_more_than_a_page_is_selected_before_anything_changes(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_task_cli.chosen.PAGE", 2)
    written = [write(Client, "ping") for _ in range(5)]
    # A rescheduled one is still pending: it must not be selected again.
    assert [line["id"] for line in run("reschedule", "--all", "--in", "1h", "--yes", "--json").lines] == [
        str(one.id) for one in written
    ]
    assert all(len(events_of(engine, one.id)) == 1 for one in written)


def test_each_is_changed_by_the_models_own_verb_so_that_overrides_run(
    say: Run, engine: Engine, write: Write, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(Client, "ping"), write(Client, "ping")
    plain = Attempt.cancel

    def cancel(self: Attempt, session: Any = None, /, *, reason: str | None = None) -> None:
        if self.id == first.id:
            plain(self, session, reason="half done")
            raise ValueError("this one stays")
        plain(self, session, reason="by the override")

    monkeypatch.setattr(Attempt, "cancel", cancel)
    said = say("cancel", *WHY, str(second.id), str(first.id), "--database-url", database.sync_url)
    assert (said.code, said.out) == (1, f"{second.id}  canceled\n")
    assert "unexpected ValueError" in said.err
    assert statuses(engine, first, second) == ["pending", "canceled"]
    assert row_of(engine, second.id).last_error == "by the override"


def test_without_a_terminal_all_needs_yes(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write(Client, "ping")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    said = run("cancel", *WHY, "--all")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "cancel 1 attempt? There is no terminal to ask on: --yes does it" in said.err
    assert statuses(engine, attempt) == ["pending"]


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code", "status"), [("y\n", 0, "canceled"), ("n\n", 1, "pending")])
def test_on_a_terminal_all_asks_first(
    process: Any, engine: Engine, write: Write, answer: str, code: int, status: str
) -> None:
    attempt = write(Client, "ping")
    ours, theirs = pty.openpty()
    asking = process("cancel", *WHY, "--all", stdin=theirs)
    os.write(ours, answer.encode())
    _, err = asking.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    assert (asking.returncode, statuses(engine, attempt)) == (code, [status])
    assert "Cancel 1 attempt? [y/N]" in err
    assert ("nothing was changed" in err) is (code == 1)


@pytest.mark.in_turns
@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_shows_what_would_change_and_changes_nothing(
    run: Run, engine: Engine, write: Write, verb: str
) -> None:
    pending, held, done = (write(Client, "ping") for _ in range(3))
    run("run-now", str(done.id))
    hold(engine, held)
    calls.clear()
    before = [dict(row_of(engine, one.id)._mapping) for one in (pending, held, done)], count_events(engine)
    said = run(verb, *IN.get(verb, ()), str(pending.id), str(held.id), str(done.id), str(uuid.uuid4()), "--dry-run")
    assert (said.code, said.out.startswith(f"{pending.id}  is pending, would be ")) == (1, True)
    assert len(said.out.splitlines()) == 1
    for part in (
        "is being performed by shop:1:a",
        "is succeeded, and must be",
        "there is no attempt",
        "1 would be done, 3 would be refused",
    ):
        assert part in said.err
    selected = run(verb, *IN.get(verb, ()), "--all", "--status", "due", "--dry-run", "--json").lines
    assert [(line["id"], line["ok"], line["dry_run"]) for line in selected] == [(str(pending.id), True, True)]
    assert ([dict(row_of(engine, one.id)._mapping) for one in (pending, held, done)], count_events(engine)) == before
    assert calls == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "no attempt is named"),
        ("17", "'17' is not a valid id"),
        ("--queue mail", "filters select attempts for --all"),
        (f"{NOBODY} --limit 3", "filters select attempts for --all"),
        (f"{NOBODY} --all", "not both"),
        ("--all --after 17 --yes", "'17' is not the id"),
        ("--all --limit 0", "0"),
        ("--all --status done", "'done'"),
        (f"{NOBODY} --actor=", "an actor is a printable text"),
    ],
)
def test_invalid_options_are_a_usage_error(say: Run, verb: str, words: str, part: str) -> None:
    say("install", "--apply", "--database-url", "sqlite:///there.sqlite")
    said = say(verb, *IN.get(verb, ()), *words.split(), "--database-url", "sqlite:///there.sqlite")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert part in said.err


@pytest.mark.parametrize("words", ["", "--at 2031-01-01T00:00Z --in 2h", "--in 2", "--in -2h", "--at 2031-01-01"])
def test_reschedule_needs_exactly_one_valid_time(say: Run, words: str) -> None:
    said = say("reschedule", str(uuid.uuid4()), *words.split())
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_json_of_a_verb_has_exactly_these_names(run: Run, write: Write) -> None:
    attempt = write(Client, "ping")
    names = {"id", "verb", "ok", "status", "why", "outcome", "dry_run"}
    for verb in VERBS:
        for words in ([str(attempt.id)], [NOBODY], [str(attempt.id), "--dry-run"]):
            line = json.loads(run(verb, *IN.get(verb, ()), *words, "--json").out)
            assert set(line) == names
