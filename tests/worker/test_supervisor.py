"""Several worker processes under a supervisor: one that dies is replaced, and its attempts are recovered at once."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select

import elsewhere
from async_task import AsyncTask, Attempt, ConfigurationError, Status
from async_task.queue import recovery
from async_task.queue.processes import Process, process_started
from async_task.queue.sweep import SweepReport, recover_process
from async_task.queue.workers import names_of
from async_task.worker.link import ABANDON, STOP
from async_task.worker.supervised_worker import obey
from async_task.worker.supervisor_process import pause_before
from clockwork import row_of
from databases import Database
from elsewhere import Program, await_, notes
from offspring import parent_of
from outbox import Elsewhere, events_of
from said import Run
from workers import at_rest, working

pytestmark = pytest.mark.long

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__

# No main guard, and a connection that was used before. The lease is so long that only a supervisor recovers a claim.
SCRIPT = """
import asyncio, logging, os, pathlib, threading, time
from sqlalchemy import create_engine, text
from async_task import AsyncTask

logging.basicConfig(level="INFO", format="%(message)s")
engine = create_engine(os.environ["ASYNC_TASK_DATABASE_URL"])
with engine.begin() as connection:
    connection.execute(text("SELECT 1"))
is_async = os.environ["DOOR"] == "async"
app = AsyncTask(os.environ["ASYNC_URL"] if is_async else engine, modules=["outbox"], lease=600)
worker = app.worker(processes=2, concurrency=2, poll=0.05)

def stop():
    while not worker.is_stopping:
        if pathlib.Path("stop").exists():
            worker.stop()
        time.sleep(0.01)
    pathlib.Path("stopping").touch()

threading.Thread(target=stop, daemon=True).start()
print("the script runs once")
tally = asyncio.run(asyncio.to_thread(worker.run)) if os.environ["IN_THREAD"] else worker.run()
print({kind.__name__: number for kind, number in tally.items()})
"""


@pytest.fixture
def start(process: Callable[..., Program]) -> Callable[..., Program]:
    """`async-task worker` in its own process."""
    return lambda *words: process("worker", "--module", "outbox", "--poll", "50ms", "--log-format", "json", *words)


@pytest.fixture
def script(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, alone: None, database: Database, engine: Engine, door: str
) -> Iterator[Program]:
    """SCRIPT in its own process, in the folder of the test; the parameter "in a thread" runs its worker in one."""
    pathlib.Path("script.py").write_text(SCRIPT)
    given = {
        "ASYNC_TASK_DATABASE_URL": database.sync_url, "ASYNC_URL": database.async_url, "DOOR": door,
        "IN_THREAD": getattr(request, "param", ""), "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
    }  # fmt: skip
    with contextlib.closing(Program("script", cwd=tmp_path, env={**os.environ, **given})) as running:
        yield running


def is_alive(pid: int) -> bool:
    return process_started(pid) is not None


def worker_pids(app: AsyncTask) -> set[int]:
    return {one.pid for one in app.workers()}


by_one_door = pytest.mark.parametrize("door", ["sync"])


# From Python


@by_one_door
@pytest.mark.only_on("postgresql", "sqlite")
def test_a_killed_process_is_replaced_and_its_attempts_are_recovered_at_once_and_none_runs_twice(
    script: Program, app: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    attempt = write(Elsewhere, "hold", {"folder": str(tmp_path)}, priority=0)
    [(_, _, victim, _)] = await_(lambda: notes(tmp_path), "a process is in the call")
    await_(lambda: len(worker_pids(app)) == 2, "both processes have begun")
    os.kill(victim, signal.SIGKILL)
    others = [write(Elsewhere, "start", {"folder": str(tmp_path)}) for _ in range(20)]
    await_(lambda: row_of(engine, attempt.id).status is Status.SUCCEEDED, "another process performs it")
    await_(lambda: len(notes(tmp_path)) == 22, "all others are performed")
    await_(lambda: len(worker_pids(app) - {victim}) == 2, "there are two processes again")
    await_(lambda: victim not in worker_pids(app), "the supervisor has removed the row of the killed process")
    (tmp_path / "stop").touch()
    out, err = script.communicate()
    assert script.returncode == 0
    assert out.splitlines() == ["the script runs once", "{'Succeeded': 21}"]
    killed, *recovered = err.splitlines()
    assert killed == f"worker process {victim} was killed by SIGKILL: another is started at once"
    # The sweep of the other process may be quicker than the supervisor, which then has nothing to tell.
    assert recovered in ([], [f"attempts recovered from process {victim}: 1"])
    [loss] = events_of(engine, attempt.id, "loss")
    assert loss.message.endswith(" has died")
    assert f":{victim}:" in loss.message
    assert row_of(engine, attempt.id).num_attempts == 2
    assert sorted(one[:2] for one in notes(tmp_path)) == sorted(
        [(str(attempt.id), 1), (str(attempt.id), 2), *((str(one.id), 1) for one in others)]
    )
    assert worker_pids(app) == set()


@pytest.mark.long
@by_one_door
@pytest.mark.only_on("postgresql")
def test_a_process_that_reports_nothing_for_eight_seconds_is_killed_and_replaced(
    script: Program, app: AsyncTask, tmp_path: pathlib.Path
) -> None:
    await_(lambda: len(worker_pids(app)) == 2, "both processes have begun")
    frozen = min(worker_pids(app))
    os.kill(frozen, signal.SIGSTOP)
    try:
        await_(lambda: not is_alive(frozen), "it is killed")
        await_(lambda: len(worker_pids(app) - {frozen}) == 2, "another one is started")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGKILL)
    (tmp_path / "stop").touch()
    _, err = script.communicate()
    assert script.returncode == 0
    assert f"worker process {frozen} has not reported for 8 s: it is killed" in err


@pytest.mark.parametrize("door", ["async"])
@pytest.mark.only_on("postgresql")
def test_the_first_sigterm_stops_all_processes_and_the_second_abandons_their_calls(
    script: Program, app: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    made = [write(Elsewhere, "hold_always", {"folder": str(tmp_path)}) for _ in range(4)]
    await_(lambda: len(notes(tmp_path)) == 4, "all threads of both processes are in a call")
    pids = {pid for _, _, pid, _ in notes(tmp_path)}
    assert len(pids) == 2
    script.send_signal(signal.SIGTERM)
    await_((tmp_path / "stopping").exists, "it stops")
    late = write(Elsewhere, "start", {"folder": str(tmp_path)})
    script.send_signal(signal.SIGTERM)
    out, _ = script.communicate()
    assert (script.returncode, out) == (0, "the script runs once\n{}\n")
    for one in made:
        row = row_of(engine, one.id)
        assert (row.status, row.claim_id, row.num_crashes) == (Status.PENDING, None, 0)
    assert row_of(engine, late.id).num_attempts == 0
    assert not any(map(is_alive, pids))


@by_one_door
@pytest.mark.only_on("postgresql")
def test_processes_whose_supervisor_is_killed_finish_their_calls_and_end(
    script: Program, app: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    """The supervisor process, and so the program knows that it has failed."""
    attempt = write(Elsewhere, "hold", {"folder": str(tmp_path)})
    [(_, _, child, _)] = await_(lambda: notes(tmp_path), "a process is in the call")
    await_(lambda: len(worker_pids(app)) == 2, "both processes have begun")
    supervisor = parent_of(child)
    assert parent_of(supervisor) == script.pid
    os.kill(supervisor, signal.SIGKILL)
    assert script.wait() == 1
    await_(lambda: worker_pids(app) == {child}, "the idle process has ended")
    (tmp_path / "go").touch()
    await_(lambda: worker_pids(app) == set(), "both have ended")
    assert "AsyncTaskError: the supervisor process was killed by SIGKILL" in script.communicate()[1]
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.SUCCEEDED, 1, 0)


@by_one_door
@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("script", ["in a thread"], indirect=True)
def test_it_runs_in_a_thread_and_stops_from_another(
    script: Program, app: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    attempt = write(Elsewhere, "start", {"folder": str(tmp_path)})
    await_(lambda: row_of(engine, attempt.id).status is Status.SUCCEEDED, "it is performed")
    (tmp_path / "stop").touch()
    out, _ = script.communicate()
    assert (script.returncode, out) == (0, "the script runs once\n{'Succeeded': 1}\n")


@by_one_door
@pytest.mark.only_on("sqlite")
def test_an_open_sqlite_database_is_refused(app: AsyncTask, engine: Engine) -> None:
    with engine.connect(), pytest.raises(ConfigurationError, match=r" open, and SQLite must not be open in a process"):
        app.worker(processes=2).run()


@by_one_door
def test_invalid_numbers_and_event_loops_are_refused(app: AsyncTask) -> None:
    for processes in (0, "2", True):
        with pytest.raises(ConfigurationError, match="processes is a whole number of at least 1"):
            app.worker(processes=processes)  # type: ignore[arg-type]

    async def run() -> None:
        app.worker(processes=2).run()

    with pytest.raises(ConfigurationError, match=r"await asyncio.to_thread\(worker.run\)"):
        asyncio.run(run())


@by_one_door
def test_a_supervisor_that_is_stopped_before_it_runs_starts_nothing(app: AsyncTask) -> None:
    supervisor = app.worker(processes=2)
    supervisor.stop()
    assert supervisor.run() == {}


# From the command line


@pytest.mark.only_on("postgresql")
def test_processes_that_receive_signals_finish_and_only_their_supervisor_abandons(
    start: Callable[..., Program], run: Run, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    """A terminal or a service manager may send a signal to them too."""
    quick = write(Elsewhere, "say", {"text": "quick"})
    working = start("--processes", "2", "--json")
    log = working.stderr
    assert log is not None
    first = json.loads(log.readline())
    assert first["message"].startswith("async-task 0.1.0: 2 processes on ")
    assert first["worker"] == f"{os.uname().nodename}:{working.pid}:supervisor"
    await_(lambda: row_of(engine, quick.id).status is Status.SUCCEEDED, "it is performed")
    attempt = write(Elsewhere, "hold_always", {"folder": str(tmp_path)})
    [(_, _, child, _)] = await_(lambda: notes(tmp_path), "a process is in the call")
    working.send_signal(signal.SIGINT)
    await_(lambda: '"stopping: running calls are finished' in log.readline(), "the supervisor stops")
    for _ in range(2):
        os.kill(child, signal.SIGTERM)
        await_(lambda: f'"worker process {child} received SIGTERM' in log.readline(), "the process finishes")
    assert is_alive(child)
    assert row_of(engine, attempt.id).claim_id is not None
    working.send_signal(signal.SIGINT)
    out, err = working.communicate()
    assert working.returncode == 130
    assert json.loads(out)["succeeded"] == 1
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[0]["message"] == "abandoning the running calls"
    assert any(line["worker"].startswith(f"{os.uname().nodename}:{child}:") for line in lines), "the child has its name"
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.num_crashes, is_alive(child)) == (Status.PENDING, None, 0, False)


@pytest.mark.only_on("postgresql")
def test_processes_whose_program_is_killed_finish_their_calls_and_end(
    start: Callable[..., Program], run: Run, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    attempt = write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start("--processes", "2")
    [(_, _, child, _)] = await_(lambda: notes(tmp_path), "a process is in the call")
    await_(lambda: len(run("workers", "--json").lines) == 2, "both have begun")
    supervisor = parent_of(child)
    working.kill()
    working.wait()
    await_(lambda: len(run("workers", "--json").lines) == 1, "the idle one has ended")
    late = write(Elsewhere, "start", {"folder": str(tmp_path)})
    (tmp_path / "go").touch()
    await_(lambda: not is_alive(child) and not is_alive(supervisor), "all have ended")
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.SUCCEEDED, 1, 0)
    assert row_of(engine, late.id).claim_id is None
    assert not run("workers", "--json").lines


# A process that cannot start

BROKEN = """
import os, pathlib
from async_task import AsyncTask, ConfigurationError
from sqlalchemy import create_engine, event

engine = create_engine(os.environ["ASYNC_TASK_DATABASE_URL"])
app = AsyncTask(engine)
program = os.getpid()

@event.listens_for(engine, "connect")
def refuse(connection, record):
    if os.getpid() != program:
        {refuse}
"""


@pytest.mark.only_on("sqlite")
def test_a_process_that_cannot_start_at_first_ends_all_with_its_error(process: Callable[..., Program]) -> None:
    pathlib.Path("broken.py").write_text(BROKEN.format(refuse='raise ConfigurationError("no key for 7355608")'))
    ended = process("worker", "--app", "broken:app", "--processes", "2").completed()
    assert ended.returncode == 78
    assert ended.stderr.endswith("async-task: no key for 7355608\n")
    assert "another is started" not in ended.stderr


@pytest.mark.only_on("sqlite")
def test_a_process_without_rights_ends_all_with_its_error(process: Callable[..., Program]) -> None:
    refuse = "raise sa.exc.ProgrammingError('INSERT', {}, Exception('permission denied'))"
    pathlib.Path("broken.py").write_text(f"import sqlalchemy as sa\n{BROKEN.format(refuse=refuse)}")
    ended = process("worker", "--app", "broken:app", "--processes", "2").completed()
    assert (ended.returncode, "another is started" in ended.stderr) == (1, False)
    assert "permission denied" in ended.stderr


@pytest.mark.only_on("sqlite")
def test_a_process_that_fails_by_chance_at_its_start_is_replaced(
    process: Callable[..., Program], run: Run, tmp_path: pathlib.Path
) -> None:
    # The second process that fails at the same time finds the file, and raises FileExistsError: it is replaced too.
    once = "pathlib.Path('failed').exists() or pathlib.Path('failed').touch(exist_ok=False) or 1 / 0"
    pathlib.Path("broken.py").write_text(BROKEN.format(refuse=once))
    working = process("worker", "--app", "broken:app", "--processes", "2", "--poll", "50ms")

    def number_alive() -> int:
        # One that fails may have sent a heartbeat on another thread before: then it is in the list, dead.
        return sum(one["state"] != "dead" for one in run("workers", "--json").lines)

    await_(lambda: number_alive() == 2, "both have begun")
    working.send_signal(signal.SIGTERM)
    _, err = working.communicate()
    assert working.returncode == 143
    assert " failed: ZeroDivisionError: division by zero: another is started at once\n" in err


def test_pauses_grow_before_a_process_that_dies_early_again_is_replaced() -> None:
    assert [pause_before(deaths) for deaths in (1, 2, 3, 4, 99)] == [0, 0.5, 1, 2, 30]


def test_only_the_request_to_abandon_abandons_however_often_stop_is_requested() -> None:
    worker = AsyncTask("sqlite:///nowhere.sqlite").worker()
    for _ in range(3):
        obey(worker, STOP)
    assert (worker.is_stopping, worker.is_abandoning) == (True, False)
    obey(worker, ABANDON)
    assert worker.is_abandoning


# Recovery of a dead process


@contextlib.contextmanager
def in_calls(engine: Engine, write: Write, folder: pathlib.Path, number: int) -> Iterator[elsewhere.Process]:
    """A process that is in this number of calls, with a long lease."""
    for _ in range(number):
        write(Elsewhere, "hold_always", {"folder": str(folder)})
    url = engine.url.render_as_string(hide_password=False)
    with elsewhere.process(elsewhere.run_batch, url, 600.0) as process:
        await_(lambda: len(notes(folder)) == number, "it is in the calls")
        yield process


def test_attempts_of_a_dead_process_are_recovered_before_their_lease_and_only_those(
    engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    with in_calls(engine, write, tmp_path, 2) as process:
        started = process_started(process.pid) or ""
        dead = Process(os.uname().nodename, process.pid, started)
        process.kill()
        assert recover_process(engine, TABLE, dead._replace(started=f"{started}0")) == SweepReport()
        assert recover_process(engine, TABLE, dead) == SweepReport(recovered=2)
        assert recover_process(engine, TABLE, dead) == SweepReport()
    with engine.connect() as connection:
        for row in connection.execute(select(TABLE)):
            charged = (row.num_crashes, row.num_losses, row.num_errors)
            assert (row.status, row.claim_id, charged) == (Status.PENDING, None, (0, 1, 0))
        assert names_of(connection, TABLE, dead) == []


def test_after_a_kill_a_worker_that_is_started_on_the_same_machine_makes_the_call_again_at_once(
    engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    """Without a supervisor, and long before the leases of ten minutes are past."""
    with in_calls(engine, write, tmp_path, 1) as process:
        process.kill()
    killed = time.monotonic()
    with working(AsyncTask(engine, lease=600)):
        await_(lambda: len(notes(tmp_path)) == 2, "it is made again")
        assert time.monotonic() - killed < 5  # a second on an idle machine
        (tmp_path / "go").touch()
        await_(lambda: at_rest(engine), "it has ended")


@pytest.mark.only_on("postgresql", "mysql")
def test_recovery_waits_for_a_row_that_the_server_still_keeps_locked(
    engine: Engine, write: Write, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[SweepReport] = []
    recover_page, has_looked = recovery.recover_claims_of, threading.Event()

    def look(*args: Any, **options: Any) -> Any:
        page = recover_page(*args, **options)
        has_looked.set()
        return page

    monkeypatch.setattr(recovery, "recover_claims_of", look)
    with in_calls(engine, write, tmp_path, 1) as process:
        dead = Process(os.uname().nodename, process.pid, process_started(process.pid) or "")
        process.kill()
        with engine.connect() as connection, connection.begin() as lock:
            await_(lambda: connection.execute(select(TABLE.c.id).with_for_update(skip_locked=True)).all(), "it is free")
            recovering = threading.Thread(target=lambda: found.append(recover_process(engine, TABLE, dead)))
            recovering.start()
            assert has_looked.wait(30)
            assert not found
            lock.rollback()
            recovering.join(30)
    assert found == [SweepReport(recovered=1)]
