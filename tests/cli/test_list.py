"""`async-task list`: its columns, filters and pages."""

import datetime as dt
import json
import os
import pty
import re
import shlex
import termios
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, update

from async_task import Attempt, target
from async_task.reading import lookup
from async_task_cli.commands import attempts
from clockwork import let_pass
from outbox import Client, act
from said import Run
from terminals import heard_to_the_end

Write = Callable[..., Attempt]


@target("test.listed", redact=["password"])
def discreet(password: str, amount: int) -> None:
    """Has something to hide."""


@pytest.mark.slow
def test_list_shows_the_newest_first_one_line_for_each_and_the_counts_on_standard_error(
    run: Run, engine: Engine, write: Write
) -> None:
    older, newer = write(Client, "ping"), write(discreet, None, {"password": "p", "amount": 1})
    let_pass(engine, dt.timedelta(hours=1))
    run("run-batch", "--limit", "1")
    said = run("list")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0] == ["ID", "WHEN", "STATUS", "TRIES", "CALL"]
    assert lines[1] == [newer.id.hex[-8:], "1", "h", "ago", "pending", "0", "test.listed"]
    assert lines[2][0] == older.id.hex[-8:]
    assert lines[2][-3:] == ["succeeded", "1", "test.client.ping"]
    assert (said.code, said.err, "\x1b" in said.out) == (0, "2 attempts: 1 pending, 1 succeeded.\n", False)


def test_list_as_json_writes_one_object_a_line_without_arguments(run: Run, write: Write) -> None:
    attempts = [write(Client, "fulfill", {"customer_token": "hush", "order_number": n}) for n in range(3)]
    said = run("list", "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["id"] for row in rows] == [str(attempt.id) for attempt in reversed(attempts)]
    assert [(row["status"], row["target"], row["method_name"]) for row in rows] == [
        ("pending", "test.client", "fulfill")
    ] * 3
    assert dt.datetime.fromisoformat(rows[0]["due_at"]).utcoffset() == dt.timedelta(0)
    assert "hush" not in said.out


@pytest.mark.slow
def test_list_filters_by_status_and_target_and_counts_what_the_limit_hides(run: Run, write: Write) -> None:
    for _ in range(3):
        write(Client, "ping")
    write(discreet, None, {"password": "p", "amount": 1})
    assert len(run("list", "--json", "--target", "test.listed").out.splitlines()) == 1
    assert run("list", "--json", "--status", "failed", "--status", "expired").out == ""
    assert (run("list", "--status", "failed").out, run("list", "--status", "failed").err) == ("", "No attempts.\n")
    assert run("list", "--limit", "2").err.splitlines()[0] == "4 attempts, the newest 2 of them shown: 4 pending."


@pytest.mark.slow
def test_in_a_pipe_a_row_is_one_line_and_nothing_is_cut(run: Run, engine: Engine, write: Write) -> None:
    one, two = write(Client, "fail", {"message": f"no \x1b[31m{'very ' * 50}\nlong"}), write(Client, "ping")
    set_row(engine, two, target="t" * 200, method_name="m" * 200)
    run("run-batch", "--target", "test.client")
    said = run("list").out
    assert len(said.splitlines()) == 3
    assert f"Broken: no \\x1b[31m{'very ' * 50}".rstrip() in said
    assert f"{'t' * 200}.{'m' * 200}" in said
    assert one.id.hex[-8:] in said
    assert "\x1b" not in said


@pytest.mark.slow
def test_on_a_terminal_of_80_columns_calls_and_errors_are_cut_in_the_middle(
    process: Any, run: Run, engine: Engine, write: Write
) -> None:
    for _ in range(2):
        write(Client, "fail", {"message": f"no order with {'a very ' * 20}long name"})
    named = write(Client, "ping")
    set_row(engine, named, target="shop.outbox." + "t" * 200)
    run("run-batch", "--target", "test.client")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    ended = process("list", stdout=theirs)
    ended.communicate(timeout=60)
    os.close(theirs)
    lines = re.sub(r"\x1b\[[\d;]*m", "", heard_to_the_end(ours)).split("\r\n")
    assert [len(line) for line in lines if len(line) > 80] == []
    assert len(lines) == 5
    assert "…" in lines[1]
    assert lines[1].endswith("t.ping")
    assert lines[2].endswith("long name")
    assert "Broken: no" in lines[2]
    cut = lines[1].split()[-1]
    assert ids(run, "--target", cut) == [str(named.id)]


def test_what_call_prints_can_be_given_to_target(run: Run, write: Write) -> None:
    ping, other = write(Client, "ping"), write(Client, "poll")
    assert ids(run, "--target", "test.client.ping") == [str(ping.id)]
    assert ids(run, "--target", "test.client") == [str(ping.id), str(other.id)]
    said = run("list", "--target", "test.cl…no")
    assert (said.code, said.out) == (2, "")
    assert "no call fits" in said.err
    said = run("list", "--target", "test.client.p…")
    assert "several calls fit 'test.client.p…': test.client.ping, test.client.poll" in said.err
    assert "(did you mean 'test.client.poll'?)" in run("list", "--target", "test.client.pol").err


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("--status succeded", "succeeded"),
        ("--queue defalt", "default"),
        ("--status du", "due"),
        ("--target test.clent", "test.client"),
    ],
)
@pytest.mark.parametrize("command", ["list", "list --json", "retry --all --yes --reason so", "run-now --all --dry-run"])
def test_a_filter_that_names_nothing_known_is_refused_with_the_nearest_name(
    run: Run, write: Write, command: str, words: str, near: str
) -> None:
    write(Client, "ping")
    said = run(*command.split(), *words.split())
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert f" (did you mean {near!r}?)" in said.err
    assert ". (did" not in said.err


@pytest.mark.slow
def test_an_id_is_given_by_its_end_or_its_begin_and_an_ambiguous_one_changes_nothing(
    run: Run, engine: Engine, write: Write
) -> None:
    one, two = write(Client, "ping"), write(Client, "ping")
    short = one.id.hex[-8:]
    assert run("show", short, "--json").lines[0]["id"] == str(one.id)
    assert run("show", f"{one.id}"[:30], "--json").lines[0]["id"] == str(one.id)
    both = one.id.hex[:6]
    said = run("cancel", "--reason", "so", both, short)
    assert (said.code, said.out) == (1, "")
    assert "several attempts fit" in said.err
    assert ids(run, "--status", "pending") == [str(one.id), str(two.id)]
    assert run("cancel", "--reason", "so", short, str(one.id), "--json").lines == [
        {"id": str(one.id), "verb": "cancel", "ok": True, "status": "canceled", "why": None, "outcome": None,
         "dry_run": False},
    ]  # fmt: skip
    assert run("show", "00000000").code == 1


def test_an_id_that_its_end_does_not_find_is_printed_whole(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = write(Client, "ping"), write(Client, "ping")
    monkeypatch.setattr(lookup, "NEWEST", 1)
    printed = [line.split()[0] for line in run("list").out.splitlines()[1:]]
    assert printed == [new.id.hex[-8:], str(old.id)]


@pytest.mark.slow
@pytest.mark.parametrize("no_color", [None, "1"])
def test_colours_are_for_terminals_without_no_color(
    process: Any, write: Write, monkeypatch: pytest.MonkeyPatch, no_color: str | None
) -> None:
    write(Client, "ping")
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    ours, theirs = pty.openpty()
    ended = process("list", stdout=theirs)
    _, err = ended.communicate(timeout=60)
    os.close(theirs)
    said = heard_to_the_end(ours)
    assert (ended.returncode, err) == (0, "1 attempt: 1 pending.\n")
    assert ("\x1b[33mpending" in said) is (no_color is None)


def set_row(engine: Engine, attempt: Attempt, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(values))


def ids(run: Run, *words: str) -> list[str]:
    said = run("list", "--json", "--order", "created", *words)
    assert (said.code, said.err) == (0, "")
    return [row["id"] for row in said.lines]


@pytest.mark.slow
def test_filters_select_by_target_method_queue_and_token_and_all_must_hold(run: Run, write: Write) -> None:
    ping = write(Client, "ping", queue="mail")
    poll = write(Client, "poll", idempotence_token="order-7")
    other = write(act, queue="mail")
    assert ids(run, "--target", "test.client") == [str(ping.id), str(poll.id)]
    assert ids(run, "--method", "poll") == [str(poll.id)]
    assert ids(run, "--queue", "mail") == [str(ping.id), str(other.id)]
    assert ids(run, "--queue", "mail", "--target", "test.client") == [str(ping.id)]
    assert ids(run, "--token", "order-7") == [str(poll.id)]
    assert ids(run, "--token", "order-8") == []


@target("test.newly_named", aliases=["test.named_before"])
def renamed() -> None:
    """Has rows under both of its names."""


@pytest.mark.slow
def test_a_target_is_found_by_each_of_its_names_and_by_one_that_only_rows_have(
    run: Run, engine: Engine, write: Write
) -> None:
    new, old, gone = (write(renamed) for _ in range(3))
    set_row(engine, old, target="test.named_before")
    set_row(engine, gone, target="test.gone")
    for name in ("test.newly_named", "test.named_before"):
        assert ids(run, "--target", name) == [str(new.id), str(old.id)]
    assert ids(run, "--target", "test.gone") == [str(gone.id)]
    assert run("cancel", "--reason", "so", "--all", "--yes", "--target", "test.newly_named", "--json").lines[1][
        "id"
    ] == str(old.id)


@pytest.mark.slow
def test_states_are_those_of_the_row_and_due_performing_stuck(run: Run, engine: Engine, write: Write) -> None:
    later = write(Client, "ping", scheduled_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    due, held, failed = (write(Client, "ping") for _ in range(3))
    claim = {"claim_id": uuid.uuid4(), "claimed_by": "me", "lease_until": due.due_at + dt.timedelta(hours=1)}
    set_row(engine, held, **claim, num_attempts=1, attempted_at=held.created_at)
    assert run("fail", "--reason", "so", str(failed.id)).code == 0
    assert ids(run, "--status", "due") == [str(due.id)]
    assert ids(run, "--status", "performing") == [str(held.id)]
    assert ids(run, "--status", "stuck") == [str(due.id), str(held.id), str(failed.id)]
    assert ids(run, "--status", "pending") == [str(later.id), str(due.id), str(held.id)]
    assert ids(run, "--status", "failed", "--status", "due") == [str(due.id), str(failed.id)]


@pytest.mark.slow
def test_since_and_until_take_instants_and_lengths_by_the_database_s_clock(
    run: Run, engine: Engine, write: Write
) -> None:
    old = write(Client, "ping")
    let_pass(engine, dt.timedelta(days=2))
    new = write(Client, "ping")
    yesterday = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).isoformat()
    for when in ("1d", "24h", yesterday, yesterday.replace("+00:00", "Z")):
        assert ids(run, "--since", when) == [str(new.id)]
        assert ids(run, "--until", when) == [str(old.id)]
    assert ids(run, "--since", "1w", "--until", "1d12h") == [str(old.id)]
    instant = new.created_at.isoformat()
    assert ids(run, "--since", instant) == [str(new.id)]
    assert ids(run, "--until", instant) == [str(old.id)]


def test_error_finds_a_text_in_the_last_error_in_upper_and_lower_case(run: Run, engine: Engine, write: Write) -> None:
    first, second, _ = (write(Client, "ping") for _ in range(3))
    set_row(engine, first, last_error="HTTPError: 503 at 100% load")
    set_row(engine, second, last_error="Timeout: 100 of 100 tries")
    assert ids(run, "--error", "httperror") == [str(first.id)]
    assert ids(run, "--error", "100%") == [str(first.id)]
    assert ids(run, "--error", "_") == []


def test_tries_selects_by_the_number_of_tries_at_least(run: Run, engine: Engine, write: Write) -> None:
    first, second, _ = (write(Client, "ping") for _ in range(3))
    set_row(engine, first, num_attempts=4)
    set_row(engine, second, num_attempts=3)
    assert ids(run, "--tries", "4") == [str(first.id)]
    assert {*ids(run, "--tries", "3")} == {str(first.id), str(second.id)}
    assert run("list", "--tries", "-1").code == 2


@pytest.mark.in_turns
@pytest.mark.parametrize("order", ["created", "-created", "due", "-due"])
def test_pages_hold_all_rows_once_while_others_come_and_go(run: Run, engine: Engine, write: Write, order: str) -> None:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    # Two each are due at one instant: then the id decides.
    written = [write(Client, "ping", scheduled_at=soon + dt.timedelta(minutes=-(n // 2))) for n in range(7)]
    expected = sorted(written, key=lambda one: (one.due_at if "due" in order else 0, one.id), reverse=order[0] == "-")
    seen: list[str] = []
    after: list[str] = []
    while page := run("list", "--json", "--order", order, "--limit", "2", *after).lines:
        seen += [row["id"] for row in page]
        cursor = f"{page[-1]['due_at']},{page[-1]['id']}" if "due" in order else page[-1]["id"]
        after = ["--after", cursor]
        if len(seen) == 2:  # a row that was shown goes, also the one that the cursor names
            with engine.begin() as connection:
                connection.execute(delete(Attempt).where(Attempt.id.in_([uuid.UUID(one) for one in seen])))
            if order == "-created":
                write(Client, "ping", scheduled_at=soon)
    assert seen == [str(one.id) for one in expected]


@pytest.mark.slow
def test_the_command_for_the_next_page_works(run: Run, say: Run, write: Write) -> None:
    first, second, third = (write(Client, "ping") for _ in range(3))
    said = run("list", "--limit", "1", "--target", "test.client")
    assert said.err.splitlines()[0] == "3 attempts, the newest 1 of them shown: 3 pending."
    for expected, is_last in ((second, False), (first, True)):
        before, command = said.err.splitlines()[1].split(": ", 1)
        assert before == "The next ones"
        name, *words = shlex.split(command)
        assert (name, words.count("--after")) == ("async-task", 1)
        said = run(*[word for word in words if "database-url" not in word and "://" not in word])
        assert [line.split()[0] for line in said.out.splitlines()[1:]] == [expected.id.hex[-8:]]
        assert (len(said.err.splitlines()) == 1) is is_last
    assert said.err.splitlines()[0] == "3 attempts, the next 1 of them shown: 3 pending."
    assert third.id.hex[-8:] not in said.out


def test_the_command_for_the_next_page_repeats_no_password() -> None:
    import click

    from async_task_cli.options import WORDS, once_more

    context = click.Context(click.Command("list"))
    url = "postgresql://me:s3cret@host/x?sslpassword=hush"
    context.meta[WORDS] = ("async-task", "list", "--after", "x", "--database-url", url, "--after=y", "--error", "a b")
    said = once_more(context, "--after", "z")
    assert said == "async-task list --database-url 'postgresql://me:***@host/x?sslpassword=***' --error 'a b' --after z"


@pytest.mark.slow
def test_the_summary_counts_no_more_than_it_must(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        write(Client, "ping")
    monkeypatch.setattr(attempts, "MOST_COUNTED", 3)
    assert run("list", "--limit", "2").err.splitlines()[0] == "More than 3 attempts, the newest 2 of them shown."
    assert run("list", "--limit", "4").err == "4 attempts: 4 pending.\n"
    monkeypatch.setattr(attempts, "MOST_COUNTED", 4)
    last = run("list", "--limit", "2").err.splitlines()[0]
    assert last == "4 attempts, the newest 2 of them shown: 4 pending."


@pytest.mark.only_on("postgresql", "mysql")  # SQLAlchemy always writes OFFSET 0 for SQLite
def test_a_page_selects_its_rows_by_a_limit_and_counts_within_one(run: Run, write: Write) -> None:
    asked: list[tuple[str, str]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement.lower(), str(parameters)))

    attempt = write(Client, "ping")
    event.listen(Engine, "before_cursor_execute", listen)
    try:
        assert run("list", "--after", str(attempt.id), "--order", "-created").code == 0
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    read = [one for one in asked if "async_task_schema" not in one[0]]  # without the check of the tables
    rows, end, counts = (one for one in read if "from async_task_attempts" in one[0])
    assert ("limit" in rows[0], "offset" in rows[0], "52" in rows[1]) == (True, False, True)
    assert ("count(" in counts[0], "offset" in counts[0], "49999" in end[1]) == (True, False, True)


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--after 17", "'17' is not the id of the last line before"),
        ("--order due --after 0199f3a0-0000-7000-8000-000000000000", "is not the due_at and the id"),
        ("--order due --after 2026-10-25,0199f3a0-0000-7000-8000-000000000000", "is not the due_at and the id"),
        ("--order name", "'name'"),
        ("--since 2026-10-25T02:30", "names no instant without a zone"),
        ("--since 2026-10-25", "names no instant without a zone"),
        ("--since 0001-01-01T00:00+14:00", "outside the years"),
        ("--until yesterday", "is not an instant"),
        ("--until 99999999w", "is not an instant"),
    ],
)
def test_an_invalid_cursor_or_instant_is_refused(run: Run, words: str, part: str) -> None:
    said = run("list", *words.split())
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert part in said.err
