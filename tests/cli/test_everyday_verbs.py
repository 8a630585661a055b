"""`async-task retry | run-now | reschedule | expire | fail | cancel`: what people on call do to attempts."""

import datetime as dt
import getpass
import io
import json
import os
import pathlib
import pty
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from async_task import Attempt, Status
from async_task.schema.tables import JobEvent
from async_task_cli.main import COMMANDS
from clockwork import let_pass, row_of
from outbox import Client, act, calls, events_of, will
from said import Run

Write = Callable[..., Attempt]
VERBS = ("retry", "run-now", "reschedule", "expire", "fail", "cancel")
NOBODY = "0199f3a0-0000-7000-8000-000000000000"
IN = {"reschedule": ("--in", "1h")}
UNREACHABLE = "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop?connect_timeout=2"


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


# Each verb


@pytest.mark.parametrize(
    ("verb", "status"), [("expire", Status.EXPIRED), ("fail", Status.FAILED), ("cancel", Status.CANCELED)]
)
def test_a_pending_attempt_is_ended_with_a_reason_and_who_did_it(
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


def test_retry_brings_back_what_had_ended_and_makes_due_what_waits(run: Run, engine: Engine, write: Write) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    failed, waiting = write(Client, "ping"), write(Client, "ping", scheduled_at=later)
    run("fail", str(failed.id))
    said = run("retry", str(failed.id), str(waiting.id))
    assert said.out == f"{failed.id}  pending, due now\n{waiting.id}  pending, due now\n"
    assert (said.code, said.err) == (0, "retry: 2 done.\n")
    assert run("run-batch", "--json").json["succeeded"] == 2


def test_who_did_it_is_the_option_else_the_environment_else_user_at_host(
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
def test_an_actor_that_no_event_can_hold_is_refused_by_the_name_of_its_variable(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("ASYNC_TASK_ACTOR", "a" * 256)
    said = run(verb, str(write(Client, "ping").id))
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


# Several, and those that refuse


@pytest.mark.parametrize("verb", VERBS)
def test_one_that_refuses_does_not_keep_the_others(run: Run, engine: Engine, write: Write, verb: str) -> None:
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
    said = run("cancel", "-", str(second.id), "--json")
    assert [line["id"] for line in said.lines] == [str(first.id), str(second.id)]
    assert (said.code, statuses(engine, first, second)) == (0, ["canceled", "canceled"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("17\n"))
    said = run("cancel", "-")
    assert (said.code, said.out, "'17' is no id" in said.err) == (2, "", True)


# All that filters select


def test_all_retries_what_failed_and_the_other_verbs_take_what_is_pending(
    run: Run, engine: Engine, write: Write
) -> None:
    failed, pending, canceled = (write(Client, "ping") for _ in range(3))
    run("fail", str(failed.id))
    run("cancel", str(canceled.id))
    said = run("retry", "--all", "--yes", "--json")
    assert [line["id"] for line in said.lines] == [str(failed.id)]
    assert statuses(engine, failed, pending, canceled) == ["pending", "pending", "canceled"]
    assert len(run("expire", "--all", "--yes", "--json").lines) == 2
    assert run("retry", "--all", "--status", "canceled", "--status", "expired", "--yes").code == 0
    assert statuses(engine, failed, pending, canceled) == ["pending"] * 3


def test_all_takes_the_filters_of_list_and_names_the_next_ones(run: Run, engine: Engine, write: Write) -> None:
    written = [write(Client, "ping", queue="mail") for _ in range(3)]
    other = write(Client, "ping")
    said = run("cancel", "--all", "--queue", "mail", "--limit", "2", "--yes")
    assert [line.split()[0] for line in said.out.splitlines()] == [str(one.id) for one in written[:2]]
    assert f"--after {written[1].id}" in said.err
    assert statuses(engine, *written, other) == ["canceled", "canceled", "pending", "pending"]
    assert run("cancel", "--all", "--queue", "none", "--yes").err == "No attempt is selected.\n"


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


def test_each_is_changed_by_its_own_verb_so_that_overrides_run(
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
    said = say("cancel", str(second.id), str(first.id), "--database-url", database.sync_url)
    assert (said.code, said.out) == (1, f"{second.id}  canceled\n")
    assert "unexpected ValueError" in said.err
    assert statuses(engine, first, second) == ["pending", "canceled"]
    assert row_of(engine, second.id).last_error == "by the override"


def test_without_a_terminal_all_wants_yes(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write(Client, "ping")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    said = run("cancel", "--all")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "cancel 1 attempt? Nobody is here to be asked: --yes does it" in said.err
    assert statuses(engine, attempt) == ["pending"]


@pytest.mark.parametrize(("answer", "code", "status"), [("y\n", 0, "canceled"), ("n\n", 1, "pending")])
def test_on_a_terminal_all_asks_first(
    process: Any, engine: Engine, write: Write, answer: str, code: int, status: str
) -> None:
    attempt = write(Client, "ping")
    ours, theirs = pty.openpty()
    asking = process("cancel", "--all", stdin=theirs)
    os.write(ours, answer.encode())
    _, err = asking.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    assert (asking.returncode, statuses(engine, attempt)) == (code, [status])
    assert "Cancel 1 attempt? [y/N]" in err
    assert ("nothing was changed" in err) is (code == 1)


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_says_what_would_change_and_changes_nothing(
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


# run-now


def test_run_now_performs_here_what_is_not_due_or_had_ended(run: Run, engine: Engine, write: Write) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    waiting, failed = write(Client, "ping", scheduled_at=later), write(Client, "ping")
    run("fail", str(failed.id))
    said = run("run-now", str(waiting.id), str(failed.id), "--actor", "anna")
    assert (said.code, said.out) == (0, f"{waiting.id}  succeeded\n{failed.id}  succeeded\n")
    assert statuses(engine, waiting, failed) == ["succeeded", "succeeded"]
    assert len(calls) == 2
    assert [(one.kind, one.actor) for one in events_of(engine, waiting.id)] == [("retry_now", "anna")]


@pytest.mark.parametrize(
    ("method", "args", "code", "outcome", "status", "part"),
    [
        ("fail", {"message": "no"}, 0, "retried", "pending", "will be retried in 1 min: Broken: no"),
        ("poll", {}, 0, "retried", "pending", "it is looked at again in 30 s"),
        ("give_up", {"reason": "gone"}, 1, "failed", "failed", "failed: Discard: gone"),
    ],
)
def test_run_now_says_what_became_of_it(
    run: Run, write: Write, method: str, args: Any, code: int, outcome: str, status: str, part: str
) -> None:
    attempt = write(Client, method, args)
    said = run("run-now", str(attempt.id))
    assert said.code == code
    assert part in (said.err if code else said.out)
    line = run("run-now", str(attempt.id), "--json").json
    assert (line["ok"], line["outcome"], line["status"]) == (not code, outcome, status)


def test_run_now_parks_what_it_does_not_know_and_ends_1(process: Any, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    ended = process("run-now", str(attempt.id))
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, out) == (1, "")
    assert "is parked for" in err
    assert "no target is registered as 'test.client'" in err
    assert row_of(engine, attempt.id).num_attempts == 0


def test_what_a_target_prints_is_no_data(run: Run, write: Write) -> None:
    will(lambda: print("hello"))
    attempt = write(act)
    said = run("run-now", str(attempt.id))
    assert (said.out, said.err) == (f"{attempt.id}  succeeded\n", "hello\n")


def test_at_a_signal_run_now_finishes_the_call_in_hand_and_begins_no_other(
    process: Any, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    pathlib.Path("slow_now.py").write_text(
        "import pathlib, time\n"
        "from async_task import target\n"
        "@target('test.act')\n"
        "def slow() -> None:\n"
        "    pathlib.Path('began').touch()\n"
        "    while not pathlib.Path('go').exists():\n"
        "        time.sleep(0.01)\n"
    )
    first, second = write(act), write(act)
    running = process("run-now", str(first.id), str(second.id), "--module", "slow_now")
    until = time.monotonic() + 30
    while not pathlib.Path("began").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    assert "second signal" in running.stderr.readline()
    pathlib.Path("go").touch()
    out, _ = running.communicate(timeout=60)
    assert (running.returncode, out) == (143, f"{first.id}  succeeded\n")
    assert statuses(engine, first, second) == ["succeeded", "pending"]
    assert events_of(engine, second.id) == []


def test_run_now_and_a_deadline_that_has_passed(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    let_pass(engine, dt.timedelta(hours=2))
    said = run("run-now", str(attempt.id))
    assert (said.code, said.out, "expired: " in said.err) == (1, "", True)
    assert (run("run-now", str(attempt.id)).code, statuses(engine, attempt)) == (0, ["succeeded"])


# What went wrong


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "no attempt is named"),
        ("17", "'17' is no id"),
        ("--queue mail", "filters select attempts for --all"),
        (f"{NOBODY} --limit 3", "filters select attempts for --all"),
        (f"{NOBODY} --all", "not both"),
        ("--all --after 17 --yes", "'17' is not the id"),
        ("--all --limit 0", "0"),
        ("--all --status done", "'done'"),
        (f"{NOBODY} --actor=", "an actor is a printable text"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(say: Run, verb: str, words: str, part: str) -> None:
    say("install", "--apply", "--database-url", "sqlite:///there.sqlite")
    said = say(verb, *IN.get(verb, ()), *words.split(), "--database-url", "sqlite:///there.sqlite")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert part in said.err


@pytest.mark.parametrize("words", ["", "--at 2031-01-01T00:00Z --in 2h", "--in 2", "--in -2h", "--at 2031-01-01"])
def test_reschedule_wants_one_time_that_can_be_meant(say: Run, words: str) -> None:
    said = say("reschedule", str(uuid.uuid4()), *words.split())
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_refuses_a_wrong_option_with_one_sentence(say: Run, command: str) -> None:
    said = say(command, "--no-such-option")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "--no-such-option" in said.err


REACHING = {
    **{verb: [verb, *IN.get(verb, ()), NOBODY] for verb in VERBS},
    "list": ["list"],
    "show": ["show", NOBODY],
    "enqueue": ["enqueue", "test.client.ping"],
    "sweep": ["sweep"],
}


@pytest.mark.parametrize("command", REACHING)
def test_without_its_database_or_tables_a_command_ends_69_or_78(say: Run, command: str) -> None:
    pathlib.Path("bare.sqlite").touch()
    for url, code in ((UNREACHABLE, 69), ("sqlite:///missing.sqlite", 69), ("sqlite:///bare.sqlite", 78)):
        said = say(*REACHING[command], "--json", "--database-url", url)
        assert (said.code, said.out, said.err.count("\n")) == (code, "", 1)
        assert "s3cret" not in said.err


def test_json_of_a_verb_has_these_names_and_no_other(run: Run, write: Write) -> None:
    attempt = write(Client, "ping")
    names = {"id", "verb", "ok", "status", "why", "outcome", "dry_run"}
    for verb in VERBS:
        for words in ([str(attempt.id)], [NOBODY], [str(attempt.id), "--dry-run"]):
            line = json.loads(run(verb, *IN.get(verb, ()), *words, "--json").out)
            assert set(line) == names
