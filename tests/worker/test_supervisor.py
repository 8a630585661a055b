"""Several processes under a supervisor: none is missed for long, and what a dead one had in hand is given back."""

import contextlib
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

import elsewhere
from async_task import AsyncTask, Attempt, ConfigurationError, Status
from async_task.queue import recovery
from async_task.queue.sweep import SweepReport
from async_task.queue.workers import Process, names_of, process_started
from async_task_cli.link import ABANDON, STOP, obey
from async_task_cli.supervisor import pause_before, program
from clockwork import row_of
from elsewhere import Program, await_, notes
from outbox import Elsewhere, events_of
from said import Run

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__


@pytest.fixture
def start(process: Callable[..., Program]) -> Callable[..., Program]:
    """A supervisor in a process of its own."""
    return lambda *words: process("worker", "--module", "outbox", "--poll", "50ms", "--log-format", "json", *words)


def lives(pid: int) -> bool:
    return process_started(pid) is not None


# A child that is killed


def test_what_a_killed_child_had_in_hand_is_performed_again_and_nothing_twice(
    start: Callable[..., Program], run: Run, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    held = write(Elsewhere, "hold", {"folder": str(tmp_path)}, priority=0)
    working = start("--processes", "2", "--json")
    [(_, _, victim, _)] = await_(lambda: notes(tmp_path), "a child is in the call")
    os.kill(victim, signal.SIGKILL)
    others = [write(Elsewhere, "start", {"folder": str(tmp_path)}) for _ in range(20)]
    await_(lambda: row_of(engine, held.id).status is Status.SUCCEEDED, "another one performs it")
    await_(lambda: len(notes(tmp_path)) == 22, "all else is performed")
    await_(lambda: len(run("workers", "--json").lines) == 2, "there are two again")
    assert victim not in [one["pid"] for one in run("workers", "--json").lines]
    working.send_signal(signal.SIGTERM)
    out, err = working.communicate()
    assert working.returncode == 143
    [crash] = events_of(engine, held.id, "crash")
    assert crash.message.endswith(" has died")
    assert f":{victim}:" in crash.message
    assert row_of(engine, held.id).num_attempts == 2
    assert sorted(one[:2] for one in notes(tmp_path)) == sorted(
        [(str(held.id), 1), (str(held.id), 2), *((str(one.id), 1) for one in others)]
    )
    assert json.loads(out)["succeeded"] == 21
    messages = [json.loads(line)["message"] for line in err.splitlines()]
    assert messages[0].startswith("async-task 0.1.0: 2 processes on ")
    assert f"worker process {victim} was killed by SIGKILL: another one is started at once" in messages
    assert not run("workers", "--json").lines


# Signals


@pytest.mark.only_on("postgresql")
def test_the_supervisor_alone_hears_signals_twice_and_then_all_is_abandoned(
    start: Callable[..., Program], engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    """A child may get them too, from a terminal or a service manager: for it the first is all."""
    attempt = write(Elsewhere, "hold_always", {"folder": str(tmp_path)})
    working = start("--processes", "1")
    [(_, _, child, _)] = await_(lambda: notes(tmp_path), "the child is in the call")
    heard = working.stderr
    assert heard is not None
    working.send_signal(signal.SIGINT)
    await_(lambda: "stopping: " in heard.readline(), "the supervisor has heard")
    for _ in range(2):
        os.kill(child, signal.SIGTERM)
        await_(lambda: "stopping: " in heard.readline(), "the child has heard")
    assert lives(child)
    assert row_of(engine, attempt.id).claim_id is not None
    working.send_signal(signal.SIGINT)
    assert working.wait() == 130
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.num_crashes, lives(child)) == (Status.PENDING, None, 0, False)


def test_only_the_word_to_abandon_abandons_however_often_a_child_is_told_to_stop() -> None:
    worker = AsyncTask("sqlite:///nowhere.sqlite").worker()
    for _ in range(3):
        obey(worker, STOP)
    assert (worker.is_stopping, worker.is_abandoning) == (True, False)
    obey(worker, ABANDON)
    assert worker.is_abandoning


@pytest.mark.only_on("postgresql")
def test_children_whose_supervisor_is_killed_finish_what_is_in_hand_and_end(
    start: Callable[..., Program], run: Run, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    attempt = write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start("--processes", "1")
    [(_, _, child, _)] = await_(lambda: notes(tmp_path), "the child is in the call")
    working.kill()
    working.wait()
    late = write(Elsewhere, "start", {"folder": str(tmp_path)}, scheduled_at=None, queue="late")
    (tmp_path / "go").touch()
    await_(lambda: not lives(child), "the child has gone")
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.SUCCEEDED, 1, 0)
    assert row_of(engine, late.id).claim_id is None
    assert not run("workers", "--json").lines


# A child that cannot start


@pytest.mark.only_on("sqlite")
def test_a_child_that_cannot_start_at_the_begin_ends_the_whole_with_its_code(
    start: Callable[..., Program], tmp_path: pathlib.Path
) -> None:
    pathlib.Path("only_once.py").write_text("import sys\nif '--link' in sys.argv:\n    raise ValueError('not twice')\n")
    ended = start("--processes", "1", "--module", "only_once").completed()
    assert ended.returncode == 78
    assert "importing only_once raised ValueError: not twice" in ended.stderr
    assert "another one" not in ended.stderr


def test_who_dies_at_once_again_and_again_is_started_later_and_later() -> None:
    assert [pause_before(deaths) for deaths in (1, 2, 3, 4, 99)] == [0, 0.5, 1, 2, 30]


def test_a_child_is_started_as_its_supervisor_was(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["worker", "--processes", "2"]
    for given in (["python", "-X", "dev", "/bin/async-task"], ["python3", "-m", "async_task_cli"]):
        monkeypatch.setattr(sys, "orig_argv", [*given, *words])
        assert program(words) == [sys.executable, *given[1:], *words]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "main([...])"])
    assert program(words) == [sys.executable, "-m", "async_task_cli", *words]


# bury


@contextlib.contextmanager
def dying(engine: Engine, write: Write, folder: pathlib.Path) -> Iterator[tuple[elsewhere.Process, str]]:
    """A process in the middle of a call, and what tells it from others; its lease is long."""
    write(Elsewhere, "hold_always", {"folder": str(folder)})
    with elsewhere.process(elsewhere.run_batch, engine.url.render_as_string(hide_password=False), 600.0) as process:
        await_(lambda: notes(folder), "it is in the call")
        started = process_started(process.pid)
        assert started
        yield process, started


def test_what_a_dead_process_held_is_given_back_before_its_lease_and_nobody_elses(
    app: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    with dying(engine, write, tmp_path) as (process, started):
        with pytest.raises(ConfigurationError, match=f"process {process.pid} still runs"):
            app.bury(process.pid, started)
        process.kill()
        me = Process(os.uname().nodename, process.pid, started)
        assert app.sweep().recovered == 0
        assert app.bury(process.pid, f"{started}0") == SweepReport()
        assert app.bury(process.pid, started) == SweepReport(recovered=1)
        assert app.bury(process.pid, started) == SweepReport()
    with engine.connect() as connection:
        row = connection.execute(select(TABLE)).one()
        assert (row.status, row.claim_id, row.num_crashes, row.num_errors) == (Status.PENDING, None, 1, 0)
        assert names_of(connection, TABLE, me) == []


def test_at_the_crash_limit_it_is_failed(app: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path) -> None:
    with dying(engine, write, tmp_path) as (process, started):
        process.kill()
        with engine.begin() as connection:
            connection.execute(update(TABLE).values(num_crashes=2, num_attempts=3))
        assert app.bury(process.pid, started) == SweepReport(crashed=1)
    with engine.connect() as connection:
        row = connection.execute(select(TABLE)).one()
    assert (row.status, row.num_crashes) == (Status.FAILED, 3)
    assert row.last_error.startswith("crashed: 3 starts in a row")


@pytest.mark.only_on("postgresql", "mysql")
def test_a_row_that_the_server_still_keeps_locked_is_waited_for(
    app: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[SweepReport] = []
    bury, has_looked = recovery.recover_claims_of, threading.Event()

    def look(*args: Any, **options: Any) -> Any:
        answer = bury(*args, **options)
        has_looked.set()
        return answer

    monkeypatch.setattr(recovery, "recover_claims_of", look)
    with dying(engine, write, tmp_path) as (process, started):
        process.kill()
        with engine.connect() as connection, connection.begin() as lock:
            await_(lambda: connection.execute(select(TABLE.c.id).with_for_update(skip_locked=True)).all(), "it is free")
            burying = threading.Thread(target=lambda: found.append(app.bury(process.pid, started)))
            burying.start()
            assert has_looked.wait(30)
            assert not found
            lock.rollback()
            burying.join(30)
    assert found == [SweepReport(recovered=1)]
