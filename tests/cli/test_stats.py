"""`async-task stats`, `failures` and `top`: what waits, runs, ends and fails, and what they print where."""

import datetime as dt
import json
import os
import pty
import re
import signal
import termios
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, insert, text, update

from async_task import AsyncTask, Attempt, JobEvent, Status
from async_task.schema.tables import Worker
from claims import TABLE
from clockwork import row_of
from elsewhere import Program, await_
from outbox import Client, act
from said import Run
from terminals import Terminal, heard_to_the_end

Write = Callable[..., Attempt]
HOUR = dt.timedelta(hours=1)
ZERO = {
    "due": 0, "later": 0, "running": 0, "oldest_due_seconds": None, "ended_per_second": 0,
    "ended_per_second_15min": 0, "failed_per_second": 0, "failed_per_second_15min": 0,
}  # fmt: skip


def set_row(engine: Engine, attempt: Attempt, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == attempt.id).values(values))


def end(engine: Engine, attempt: Attempt, status: Status, ago: dt.timedelta) -> None:
    set_row(engine, attempt, status=status, completed_at=dt.datetime.now(dt.UTC) - ago, num_attempts=1)


def claim(engine: Engine, attempt: Attempt) -> None:
    lease = dt.datetime.now(dt.UTC) + HOUR
    set_row(engine, attempt, claim_id=uuid.uuid4(), claimed_by="me", lease_until=lease, num_attempts=1)


def on_terminal(process: Callable[..., Program], *words: str) -> tuple[list[str], str]:
    """The lines that are printed on a terminal of 80 columns, without colours; and all that is printed."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    ended = process(*words, stdout=theirs)
    ended.communicate(timeout=60)
    os.close(theirs)
    said = heard_to_the_end(ours)
    return re.sub(r"\x1b\[[\d;]*m", "", said).split("\r\n"), said


def cells(out: str, begin: str) -> list[str]:
    """Of the line that begins so."""
    [line] = [line for line in out.splitlines() if line.startswith(f"{begin} ")]
    return re.split(r" {2,}", line)


# stats


def test_stats_of_an_empty_table_are_zeros(run: Run) -> None:
    said = run("stats")
    assert said.out.splitlines() == [
        "0 due; 0 due later; 0 running.",
        "Ended: 0 in the last minute, 0 in 15.",
    ]
    assert (said.code, said.err) == (0, "")
    found = run("stats", "--json").json
    assert found.items() >= {**ZERO, "queues": [], "targets": [], "failures": []}.items()
    assert found["is_complete"] == {"depths": True, "rates": True, "failures": True}


@pytest.mark.slow
def test_stats_have_depth_age_and_rate_by_queue_and_by_target(run: Run, engine: Engine, write: Write) -> None:
    now = dt.datetime.now(dt.UTC)
    write(Client, "ping", queue="mail", scheduled_at=now - 2 * HOUR)
    write(Client, "ping", queue="mail", scheduled_at=now - HOUR)
    write(act, queue="mail", scheduled_at=now + HOUR)
    claim(engine, write(act))
    for number in range(30):
        status = Status.FAILED if number % 3 == 0 else Status.SUCCEEDED
        end(engine, write(Client, "ping"), status, dt.timedelta(seconds=number))
    run("pause", "--queue", "mail")
    run("pause", "--queue", "empty")
    said = run("stats")
    words, ended, blank, *_ = said.out.splitlines()
    assert words == "2 due, the oldest for 2 h; 1 due later; 1 running."
    assert (ended, blank) == ("Ended: 30/min (10/min failed) in the last minute, 2/min (40/h failed) in 15.", "")
    head = ["DUE", "LATER", "RUNNING", "OLDEST", "RATE", "15 MIN"]
    assert cells(said.out, "QUEUE") == ["QUEUE", *head, "STATE"]
    assert cells(said.out, "mail") == ["mail", "2", "1", "0", "2 h", "0", "0", "paused"]
    assert cells(said.out, "default") == ["default", "0", "0", "1", "30/min", "2/min"]
    assert cells(said.out, "empty") == ["empty", "0", "0", "0", "0", "0", "paused"]
    assert cells(said.out, "TARGET") == ["TARGET", *head, "FAILED"]
    assert cells(said.out, "test.client") == ["test.client", "2", "0", "0", "2 h", "30/min", "2/min", "40/h"]
    assert cells(said.out, "test.act") == ["test.act", "0", "1", "1", "0", "0"]
    found = run("stats", "--json").json
    assert (found["due"], found["later"], found["running"]) == (2, 1, 1)
    assert found["ended_per_second"] == pytest.approx(0.5)
    [default, empty, mail] = found["queues"]
    assert (default["running"], default["failed_per_second"], default["paused"]) == (
        1,
        pytest.approx(1 / 6, abs=1e-6),
        False,
    )
    assert (mail["queue"], mail["paused"], empty["paused"]) == ("mail", True, True)
    assert 7190 < mail["oldest_due_seconds"] < 7300
    assert [one["target"] for one in found["targets"]] == ["test.act", "test.client"]


@pytest.mark.slow
def test_stats_and_failures_group_errors_by_target_and_message(run: Run, app: AsyncTask, write: Write) -> None:
    for number in (7, 8):
        write(Client, "fail", {"message": f"no order {number}"})
    write(Client, "fail", {"message": "closed"})
    app.run_batch()
    for words in (["stats"], ["failures", "list"]):
        out = run(*words).out
        head, first, second = out.splitlines()[-3:]
        assert head.split() == ["COUNT", "TARGET", "ERROR", "FIRST", "LAST", "FINGERPRINT"]
        assert first.split()[:2] == ["2", "test.client"]
        assert "Broken: no order N" in first
        assert "Broken: closed" in second
    assert run("failures", "list").err == "3 errors of 2 kinds.\n"
    rows = run("failures", "list", "--json").lines
    assert rows == run("stats", "--json").json["failures"]
    assert [(one["count"], one["attempts"], one["message"]) for one in rows] == [
        (2, 2, "no order N"),
        (1, 1, "closed"),
    ]
    assert [one["fingerprint"] in run("failures", "list").out for one in rows] == [True, True]
    assert rows[0]["exception"].endswith("Broken")


def test_failures_of_an_empty_table_are_none(run: Run) -> None:
    assert (run("failures", "list").out, run("failures", "list").err) == ("", "No errors.\n")
    assert run("failures", "list", "--json").out == ""


@pytest.mark.slow
@pytest.mark.parametrize("words", [["stats"], ["failures", "list"]], ids=["stats", "failures"])
def test_a_row_is_one_line_cut_in_the_middle_on_a_terminal_and_whole_in_a_pipe(
    run: Run, process: Callable[..., Program], engine: Engine, write: Write, words: list[str]
) -> None:
    long = write(Client, "ping", queue="q" * 60 + "ueue")
    set_row(engine, long, target="shop." + "t" * 195)
    with engine.begin() as connection:
        event = {"job_type": "async_task_attempts", "job_id": str(long.id), "kind": "error"}
        connection.execute(insert(JobEvent).values(**event, message=f"Broken: {'very ' * 100}\nlong"))
    names = ["shop." + "t" * 195, f"Broken: {'very ' * 100}".strip()]
    for name in names + ["q" * 60 + "ueue"] * (words == ["stats"]):
        assert name in run(*words).out
    assert "\x1b" not in run(*words).out
    lines, said = on_terminal(process, *words)
    assert [line for line in lines if len(line) > 80] == []
    assert len(lines) == len(run(*words).out.split("\n"))
    assert "…" in said


@pytest.mark.slow
def test_more_kinds_of_failure_than_fit_a_page_are_left_to_failures(run: Run, write: Write, app: AsyncTask) -> None:
    for number in range(12):
        write(Client, "fail", {"message": "a" * (number + 1)})
    app.run_batch()
    said = run("stats")
    assert sum("Broken: a" in line for line in said.out.splitlines()) == 10
    assert said.err == "2 other kinds of failure: async-task failures list\n"
    assert len(run("failures", "list").out.splitlines()) == 13


def test_a_number_with_a_plus_is_a_lower_bound(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from async_task.reading import depths
    from async_task_cli import figures

    for _ in range(4):
        write(act)
    monkeypatch.setattr(depths, "MOST_COUNTED", 3)
    monkeypatch.setattr(depths, "FEWEST", 2)
    monkeypatch.setattr(figures, "MOST_COUNTED", 3)
    said = run("stats").out
    assert said.startswith("3 due at least, ")
    assert cells(said, "default")[1:3] == cells(said, "test.act")[1:3] == ["3+", "0+"]


@pytest.mark.slow
@pytest.mark.parametrize("no_color", [None, "1"])
def test_workers_fit_80_columns_and_have_colours_on_a_terminal_only(
    run: Run, process: Callable[..., Program], engine: Engine, monkeypatch: pytest.MonkeyPatch, no_color: str | None
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    name = f"{'long.' * 20}name:7:5b1de7a4"
    queues = {"queues": {"a" * 64: 1, "b" * 64: 1}, "concurrency": 4}
    with engine.begin() as connection:
        row = {"name": name, "host": "elsewhere", "pid": 7, "process_started": "another boot:1:2", "kind": "worker"}
        old = dt.datetime.now(dt.UTC) - HOUR
        connection.execute(insert(Worker).values(**row, beat_at=old, about=json.dumps(queues), job_type=TABLE.name))
    out = run("workers").out
    assert (name in out, f"{'a' * 64}, {'b' * 64}" in out, "\x1b" in out) == (True, True, False)
    lines, said = on_terminal(process, "workers")
    assert ([line for line in lines if len(line) > 80], len(lines)) == ([], 3)
    assert ("…" in lines[1], "dead" in lines[1]) == (True, True)
    assert ("\x1b[31mdead" in said) is (no_color is None)


# top


def test_top_without_a_terminal_names_stats(run: Run) -> None:
    said = run("top")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "use `async-task stats`" in said.err
    assert "at least 500ms" in run("top", "--every", "1ms").err


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_top_watches_all_processes_and_performs_nothing(
    process: Callable[..., Program], engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch, number: int,
    code: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    attempt = write(Client, "ping", queue="mail")
    long = write(act)
    set_row(engine, long, target="shop." + "t" * 195)
    end(engine, long, Status.FAILED, dt.timedelta(seconds=5))
    terminal = Terminal()
    watching = process("top", "--every", "500ms", stderr=terminal.theirs)
    for words in (
        "Oldest due: ", ", in mail", "1 due, 0 running, 0 later, 1 failed, 0 expired.",
        "1 done per minute, 1 of them failed.", "test.client", "shop.tttttt", "…ttttt",
    ):  # fmt: skip
        terminal.await_words(words)
    working = process("worker", "--module", "outbox", "--queue", "other")
    terminal.await_words("other")
    write(Client, "ping", queue="later", scheduled_at=dt.datetime(2099, 1, 1, tzinfo=dt.UTC))
    terminal.await_words("later  ")
    working.kill()
    working.wait()
    terminal.await_words("dead")
    watching.send_signal(number)
    assert watching.wait() == code
    assert "\x1b[?25h" in terminal.close(), "the cursor is back"
    assert row_of(engine, attempt.id).num_attempts == 0


@pytest.mark.long
@pytest.mark.only_on("postgresql")
def test_top_keeps_the_last_figures_while_the_database_fails(
    process: Callable[..., Program], engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    write(Client, "ping", queue="mail")
    terminal = Terminal()
    watching = process("top", "--every", "500ms", stderr=terminal.theirs)
    terminal.await_words("1 due")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE async_task_attempts RENAME TO away"))
    try:
        terminal.await_words("the database refused")
        await_(lambda: "mail" in terminal.heard_after("the database refused"), "the last figures are still shown")
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO async_task_attempts"))
    write(Client, "ping", queue="mail")
    terminal.await_words("2 due")
    watching.send_signal(signal.SIGINT)
    assert watching.wait() == 130
    terminal.close()
