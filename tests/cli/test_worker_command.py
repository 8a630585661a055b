"""`async-task worker` and `async-task workers`: what they print and where, how they stop, and their exit codes."""

import datetime as dt
import json
import logging
import os
import pathlib
import signal
import socket
import sys
import uuid
from collections.abc import Callable
from typing import Any

import click
import pytest
from sqlalchemy import Engine, make_url, update

from async_task import AsyncTask, Attempt, Depth, Status, WorkerInfo
from async_task.schema.tables import SCHEMA_VERSION, SchemaVersion
from async_task.targets.context import CurrentAttempt, performing
from async_task.targets.registry import own_queue
from async_task_cli.commands.worker import QueueThreads
from async_task_cli.logs import Lines, log_lines
from clockwork import row_of
from databases import Database
from elsewhere import Program, await_, notes
from outbox import Client, Elsewhere, act_leased, will
from said import Run
from terminals import Terminal

pytestmark = pytest.mark.long

Write = Callable[..., Attempt]
Start = Callable[..., Program]


@pytest.fixture
def start(process: Callable[..., Program]) -> Start:
    """`async-task worker` in its own process."""
    return lambda *words, **options: process("worker", "--module", "outbox", "--poll", "50ms", *words, **options)


def first_line(working: Program) -> str:
    """What it logs when it has begun."""
    assert working.stderr is not None
    return working.stderr.readline()


def has_succeeded(engine: Engine, attempt: Attempt) -> Callable[[], bool]:
    return lambda: row_of(engine, attempt.id).status is Status.SUCCEEDED


# Running


def test_it_logs_one_line_performs_what_becomes_due_and_counts_at_the_end(
    start: Start, engine: Engine, database: Database, write: Write
) -> None:
    working = start("--json", "--concurrency", "2")
    said = first_line(working)
    address = make_url(database.sync_url).render_as_string(hide_password=True).partition("?")[0]
    assert f"INFO async-task 0.1.0: worker {os.uname().nodename}:{working.pid}:" in said
    assert f" on {address}, all queues, " in said
    assert said.endswith(" targets, 2 threads, 100 coroutines\n")
    attempt = write(Elsewhere, "say", {"text": "printed by a target"})
    await_(has_succeeded(engine, attempt), "it is performed")
    working.send_signal(signal.SIGTERM)
    out, err = working.communicate()
    report = json.loads(out)
    assert (working.returncode, report.pop("seconds") > 0) == (143, True)
    assert {name: number for name, number in report.items() if number} == {"succeeded": 1}
    assert set(report) == {"succeeded", "retried", "failed", "expired", "canceled", "parked", "superseded"}
    printed, stopping, ended = err.splitlines()
    assert printed == "printed by a target"
    assert stopping.endswith(" INFO stopping: running calls are finished; a second signal abandons them")
    assert ended.endswith(": 1 succeeded")


@pytest.mark.only_on("postgresql")
def test_json_logs_are_one_object_a_line_without_arguments(start: Start, engine: Engine, write: Write) -> None:
    working = start("--log-format", "json")
    name = json.loads(first_line(working))["worker"]
    attempt = write(Client, "fail", {"message": "canary-7355608"})
    await_(lambda: row_of(engine, attempt.id).num_errors, "it was performed")
    working.send_signal(signal.SIGTERM)
    _, err = working.communicate()
    lines = [json.loads(line) for line in err.splitlines()]
    assert {line["worker"] for line in lines} == {name}
    common = {"@timestamp", "level", "message", "domain", "service", "worker", "logger", "thread"}
    about = {"attempt_id", "target", "method", "queue", "try", "outcome", "error"}
    assert all(set(line) == (common | about if "raised" in line["message"] else common) for line in lines)
    assert all(line["@timestamp"].endswith("+00:00") for line in lines)
    assert {(line["domain"], line["service"]) for line in lines} == {(socket.gethostname(), "worker")}
    [tried] = [line for line in lines if "raised Broken" in line["message"]]
    assert tried["message"] == f"test.client.fail: try 1 of attempt {attempt.id} raised Broken"
    assert [tried[name] for name in ("target", "method", "queue", "try", "outcome")] == [
        "test.client", "fail", "default", 1, "retried",
    ]  # fmt: skip
    assert tried["thread"].startswith("async-task-lane-")
    assert any(line["message"].startswith("stopping: ") for line in lines)
    assert "canary" not in err


@pytest.mark.only_on("postgresql")
def test_it_serves_only_the_given_queues_and_is_listed(start: Start, run: Run, engine: Engine, write: Write) -> None:
    other, mail = write(Client, "ping"), write(Client, "ping", queue="mail")
    working = start("--queue", "mail:1", "--queue", "slow", "--concurrency", "3")
    assert ", queues mail:1, slow, " in first_line(working)
    assert "no queue is named 'slow'" in first_line(working)
    await_(has_succeeded(engine, mail), "its queue is served")
    [one] = run("workers", "--json").lines
    assert (one["pid"], one["kind"], one["claims"]) == (working.pid, "worker", 0)
    assert one["about"]["queues"] == {"mail": 1, "slow": 3}
    assert (one["about"]["concurrency"], one["about"]["version"]) == (3, "0.1.0")
    assert one["state"] in ("awake", "asleep")
    said = run("workers")
    assert said.out.splitlines()[0].split() == ["NAME", "BEGAN", "LAST", "BEAT", "STATE", "QUEUES", "LANES", "CLAIMS"]
    assert "mail, slow" in said.out
    assert (len(said.out.splitlines()), said.err) == (2, "1 process.\n")
    working.send_signal(signal.SIGINT)
    assert working.wait() == 130
    assert row_of(engine, other.id).num_attempts == 0
    assert run("workers", "--json").out == ""
    assert (run("workers").out, run("workers").err) == ("", "0 processes.\n")


@pytest.mark.only_on("postgresql")
def test_own_queues_of_targets_are_served_and_not_named(start: Start, run: Run, engine: Engine, write: Write) -> None:
    paused = write(Client, "ping", queue=own_queue("test.client"))
    working = start("--queue", "default")
    assert ", queues default, " in first_line(working)
    await_(has_succeeded(engine, paused), "the own queue of a target is served")
    [one] = run("workers", "--json").lines
    assert next(iter(one["about"]["queues"])) == "default"
    assert "test.client" in one["about"]["queues"]
    [_, line] = run("workers").out.splitlines()
    assert "  default  " in line
    assert "test.client" not in line


def test_workers_shows_a_killed_process_as_dead_at_once(start: Start, run: Run) -> None:
    killed, living = start(), start()
    for working in (killed, living):
        first_line(working)
    killed.kill()
    killed.wait()
    assert [(one["pid"], one["state"] == "dead") for one in run("workers", "--json").lines] == [
        (living.pid, False), (killed.pid, True),
    ]  # fmt: skip
    said = run("workers")
    assert (" dead " in said.out.splitlines()[2], said.err) == (True, "2 processes, 1 of them dead.\n")


@pytest.mark.only_on("postgresql")
def test_the_garbage_collector_skips_the_objects_of_the_start(start: Start, engine: Engine, write: Write) -> None:
    working = start()
    first_line(working)
    attempt = write(Elsewhere, "say_what_stays")
    await_(has_succeeded(engine, attempt), "it is performed")
    working.send_signal(signal.SIGTERM)
    assert int(working.communicate()[1].splitlines()[0]) > 10_000


# Stopped


def test_a_signal_lets_running_calls_finish(start: Start, engine: Engine, write: Write, tmp_path: pathlib.Path) -> None:
    attempt = write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start()
    await_(lambda: notes(tmp_path), "it is in the call")
    working.send_signal(signal.SIGTERM)
    first_line(working)
    await_(lambda: "stopping: " in first_line(working), "it stops")
    late = write(Client, "ping")
    (tmp_path / "go").touch()
    assert working.wait() == 143
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.SUCCEEDED, 1, 0)
    assert row_of(engine, late.id).num_attempts == 0


def test_a_second_signal_releases_running_calls_uncharged_and_ends_the_process(
    start: Start, run: Run, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    """Although the threads of these calls never end."""
    made = [write(Elsewhere, "hold_always", {"folder": str(tmp_path)}) for _ in range(2)]
    unstarted = write(Elsewhere, "hold_always", {"folder": str(tmp_path)})
    working = start("--concurrency", "2")
    await_(lambda: len(notes(tmp_path)) == 2, "both threads are in a call")
    working.send_signal(signal.SIGINT)
    first_line(working)
    await_(lambda: "stopping: " in first_line(working), "it stops")
    working.send_signal(signal.SIGTERM)
    assert working.wait() == 130
    for one in (*made, unstarted):
        row = row_of(engine, one.id)
        assert (row.status, row.claim_id, row.lease_until) == (Status.PENDING, None, None)
        assert (row.num_errors, row.num_crashes) == (0, 0)
    assert row_of(engine, unstarted.id).num_attempts == 0
    assert run("workers", "--json").out == ""


@pytest.mark.only_on("postgresql")
def test_calls_that_do_not_finish_within_the_grace_are_abandoned(
    start: Start, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    attempt = write(Elsewhere, "hold_always", {"folder": str(tmp_path)})
    working = start("--grace", "10ms")
    await_(lambda: notes(tmp_path), "it is in the call")
    working.send_signal(signal.SIGTERM)
    assert working.wait() == 143
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.num_crashes) == (Status.PENDING, None, 0)


# Invalid


def test_a_database_that_is_away_at_the_start_exits_with_69(say: Run) -> None:
    for words in ([], ["--processes", "2"]):
        said = say("worker", *words, "--database-url", "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop")
        assert (said.code, said.out, said.err.count("\n")) == (69, "", 1)
        assert "the database cannot be used" in said.err
        assert "s3cret" not in said.err


def test_tables_of_another_version_exit_with_78(start: Start, engine: Engine) -> None:
    version: Any = SchemaVersion.__table__
    with engine.begin() as connection:
        connection.execute(update(version).values(version=1))
    try:
        for words in ([], ["--processes", "2"]):
            said = start(*words).completed()
            assert (said.returncode, said.stdout, said.stderr.count("\n")) == (78, "", 1)
    finally:
        with engine.begin() as connection:
            connection.execute(update(version).values(version=SCHEMA_VERSION))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--concurrency 0", "0 is not in the range x>=1"),
        ("--processes 0", "0 is not in the range x>=1"),
        ("--processes none", "'none' is not a valid integer"),
        ("--poll often", "'often' is not a length of time"),
        ("--poll 0s", "it is at least 10ms, and was 0s"),
        ("--poll 1ms --processes 2", "it is at least 10ms, and was 1ms"),
        ("--poll 2h", "it is at most 1h, and was 2h"),
        ("--settle-within 5", "'5' is not a length of time"),
        ("--queue=", "the name of a queue is missing"),
        ("--queue=:2", "the name of a queue is missing"),
        ("--queue=mail:0", "write the number of threads after the colon"),
        ("--queue=mail:2x", "write the number of threads after the colon"),
        ("--log-format yaml", "'yaml' is not one of 'text', 'json'"),
        ("--top", "--top needs a terminal"),
        ("--top --processes 2", "--top shows one process"),
    ],
)
def test_invalid_options_exit_with_2_and_one_sentence(say: Run, words: str, said: str) -> None:
    ended = say("worker", *words.split(), "--database-url", "sqlite:///nowhere.sqlite")
    assert (ended.code, ended.out, ended.err.count("\n"), "Traceback" in ended.err) == (2, "", 1, False)
    assert said in ended.err


@pytest.mark.only_on("sqlite")
def test_a_value_that_does_not_fit_the_lease_of_the_application_exits_with_78(start: Start) -> None:
    for words in (["--settle-within", "1min"], ["--settle-within", "1min", "--processes", "2"]):
        said = start(*words).completed()
        assert (said.returncode, said.stderr.count("\n")) == (78, 1)


# Logs


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The root logger as it is before anything configures it."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    return root


def test_logging_that_the_application_has_configured_stays_unless_a_format_is_requested(root: logging.Logger) -> None:
    own = logging.NullHandler()
    root.handlers = [own]  # here: pytest has added its own meanwhile
    log_lines(None, "web")
    assert root.handlers == [own]
    log_lines("json", "web")
    assert [type(one.formatter) for one in root.handlers] == [Lines]


@pytest.mark.only_on("sqlite")
def test_logging_that_the_application_sets_up_as_it_is_imported_stays(start: Start) -> None:
    assert first_line(start("--module", "own_logging")).startswith("MINE async-task ")
    assert json.loads(first_line(start("--module", "own_logging", "--log-format", "json")))["service"] == "worker"


class _Unreadable:
    def __str__(self) -> str:
        raise OSError("gone")


def test_a_field_that_is_no_text_loses_no_record() -> None:
    record = logging.LogRecord("shop", logging.WARNING, "", 0, "odd", (), None)
    record.attempt_id, record.error, record.target = uuid.UUID(int=7), ValueError("pg://me:s3cret@db/x"), _Unreadable()
    said = json.loads(Lines("json", "web").format(record))
    assert (said["attempt_id"], said["error"]) == (str(uuid.UUID(int=7)), "pg://me:***@db/x")
    assert said["target"] == "<a _Unreadable that cannot be read: OSError>"


def test_an_error_that_is_its_own_cause_is_logged_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    for error, times in ((first, 2), (_its_own_cause(), 1)):
        record = logging.LogRecord("shop", logging.ERROR, "", 0, "odd", (), (type(error), error, None))
        assert json.loads(Lines("json", "web").format(record))["trace"].count("Traceback ") == times


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_stack_that_was_asked_for_is_logged(kind: str) -> None:
    stack = "Stack (most recent call last):\n  at pg://me:s3cret@db/x"
    record = logging.LogRecord("shop", logging.INFO, "", 0, "here", (), None, sinfo=stack)
    said = Lines(kind, "web").format(record)
    shown = json.loads(said)["stack"] if kind == "json" else said.split("here\n")[1]
    assert shown == stack.replace("s3cret", "***")


def _its_own_cause() -> ValueError:
    error = ValueError("own")
    error.__cause__ = error
    return error


@pytest.mark.parametrize(
    ("given", "meant"),
    [("mail", ("mail", None)), ("mail:2", ("mail", 2)), ("shop.outbox:Mail", ("shop.outbox:Mail", None)),
     ("shop.outbox:Mail:3", ("shop.outbox:Mail", 3)), ("shop:_mail", ("shop:_mail", None))],
)  # fmt: skip
def test_the_queue_of_a_target_has_a_colon_in_its_name(given: str, meant: object) -> None:
    assert QueueThreads().convert(given, None, None) == meant


@pytest.mark.parametrize("given", ["", ":2", "mail:", "mail:0", "mail:-1"])
def test_a_queue_without_a_name_or_threads_is_refused(given: str) -> None:
    with pytest.raises(click.BadParameter):
        QueueThreads().convert(given, None, None)


def test_an_error_in_the_log_has_its_traceback_without_passwords_and_rows(root: logging.Logger) -> None:
    from sqlalchemy.exc import IntegrityError

    refusal = Exception("duplicate\nDETAIL: (card)=(canary)")
    try:
        raise IntegrityError("INSERT", {"card": "canary"}, refusal)
    except IntegrityError:
        record = logging.LogRecord("shop", logging.ERROR, "", 0, "at %s", ("pg://me:s3cret@db/x",), sys.exc_info())
    as_json, as_text = json.loads(Lines("json", "web").format(record)), Lines("text", "web").format(record)
    assert (as_json["logger"], as_json["level"], as_json["message"]) == ("shop", "ERROR", "at pg://me:***@db/x")
    assert as_json["trace"].startswith("Traceback ")
    assert as_text.startswith(as_json["@timestamp"].partition("T")[0])
    assert "canary" not in as_text.rpartition("IntegrityError: ")[2]
    assert "s3cret" not in as_text + as_json["message"]


def test_what_a_target_logs_has_the_fields_of_its_attempt_and_the_names_that_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASYNC_TASK_DOMAIN", "shop-production")
    lines, record = Lines("json", "mailer"), logging.LogRecord("shop", logging.INFO, "", 0, "packed", None, None)
    outside = json.loads(lines.format(record))
    assert (outside["domain"], outside["service"], outside["thread"]) == ("shop-production", "mailer", "MainThread")
    one = CurrentAttempt(uuid.uuid4(), 3, None, "shop.orders", "fulfill", "mail")
    token = performing.set(lambda: one)
    try:
        inside = json.loads(lines.format(record))
    finally:
        performing.reset(token)
    assert {name: inside[name] for name in inside if name not in outside} == {
        "attempt_id": str(one.id), "target": "shop.orders", "method": "fulfill", "queue": "mail", "try": 3,
    }  # fmt: skip


@pytest.mark.only_on("sqlite")
def test_one_environment_can_set_the_format_and_the_service_of_all_logs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNC_TASK_LOG_FORMAT", "json")
    monkeypatch.setenv("ASYNC_TASK_SERVICE", "mailer")
    for more, service in (((), "mailer"), (("--service", "other"), "other")):
        working = start(*more)
        assert json.loads(first_line(working))["service"] == service
        working.send_signal(signal.SIGTERM)
        assert working.wait() == 143


# Shown


def test_the_backlog_counts_due_waiting_and_claimed_attempts_by_queue(app: AsyncTask, write: Write) -> None:
    assert app.backlog() == []
    for priority in (0, 5, 9):
        write(Client, "ping", priority=priority)
    write(Client, "ping", scheduled_at=dt.datetime(2099, 1, 1, tzinfo=dt.UTC))
    write(Client, "ping", queue="mail", priority=9)
    seen: list[Any] = []
    will(lambda: seen.extend([*app.backlog(["default"]), *app.workers()]))
    write(act_leased, queue="mail", priority=0)
    app.run_batch(limit=1, queues=["mail"])
    assert seen[:2] == [Depth("default", due=3, later=1, claimed=0), Depth("mail", due=1, later=0, claimed=1)]
    assert app.backlog() == [Depth("default", 3, 1, 0), Depth("mail", 1, 0, 0)]
    [batch] = [one for one in seen if isinstance(one, WorkerInfo)]
    assert (batch.kind, batch.pid, batch.claims, batch.about) == ("run-batch", os.getpid(), 1, {})


@pytest.mark.only_on("postgresql")
def test_it_shows_a_live_view_on_a_terminal(
    start: Start, engine: Engine, write: Write, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    write(Client, "fail", {"message": "no such order"}, queue="mail")
    write(Elsewhere, "hold", {"folder": str(tmp_path)})
    write(Client, "ping", queue="later", scheduled_at=dt.datetime(2099, 1, 1, tzinfo=dt.UTC))
    terminal = Terminal()
    working = start("--top", stderr=terminal.theirs)
    for words in ("a second; 1 retried", "QUEUE", "later", "Broken: no such order", "busy"):
        terminal.await_words(words)
    (tmp_path / "go").touch()
    terminal.await_words("1 retried, 1 succeeded")
    working.send_signal(signal.SIGTERM)
    assert working.wait() == 143
    assert "\x1b[?25h" in terminal.close(), "the cursor is back"


# Names


def names(app: AsyncTask) -> dict[str, int]:
    """The process of each worker by its given name."""
    return {one.name.partition("@")[0]: one.pid for one in app.workers() if not one.is_dead}


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("door", ["sync"])
def test_with_processes_each_has_a_name_that_its_next_process_takes_over_and_others_are_refused(
    start: Start, app: AsyncTask
) -> None:
    working = start("--name", "web", "--processes", "2")
    before = await_(lambda: len(found := names(app)) == 2 and found, "both have begun")
    assert set(before) == {"web-1", "web-2"}
    os.kill(before["web-1"], signal.SIGKILL)
    after = await_(lambda: (found := names(app)) != before and len(found) == 2 and found, "another one has the name")
    assert (set(after), after["web-2"]) == ({"web-1", "web-2"}, before["web-2"])
    for words in (("--name", "web", "--processes", "2"), ("--name", "web-2")):
        said = start(*words).completed()
        refused = [line for line in said.stderr.splitlines() if line.startswith("async-task: ")]
        assert (said.returncode, said.stdout, len(refused)) == (75, "", 1)
        assert "another worker has the name web-" in refused[0]
        assert "Traceback" not in said.stderr
    assert names(app) == after
    working.send_signal(signal.SIGTERM)
    working.communicate()
    assert (working.returncode, names(app)) == (143, {})


@pytest.mark.only_on("sqlite")
def test_a_bad_name_exits_with_78(start: Start, engine: Engine) -> None:
    said = start("--name", "a b").completed()
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (78, "", 1)
    assert "name is 1 to 63 letters, digits" in said.stderr
