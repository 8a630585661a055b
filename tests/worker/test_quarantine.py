"""The quarantine: a call that kills its process ends failed after three starts, and takes no neighbour along."""

import asyncio
import contextlib
import datetime as dt
import os
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text, update

import elsewhere
from async_task import (
    AsyncTask,
    Attempt,
    Busy,
    Canceled,
    Expired,
    Failed,
    NotDue,
    NotPending,
    Outcome,
    Parked,
    Retried,
    Status,
    Succeeded,
    Superseded,
    outcomes,
)
from async_task.arguments.decoding import decode
from async_task.arguments.encoding import encode
from async_task.queue.claim import Claim
from async_task.worker.processes import child_life, parent, pool
from async_task.worker.processes.child_life import Calling
from async_task.worker.processes.parent import Died, NotPerformed
from clockwork import let_pass, row_of
from conftest import by_one_door
from databases import Database, close_file
from elsewhere import await_, notes
from offspring import NOW, children, claim, is_there, num_children, num_descriptors, parent_of, performing
from outbox import Client, Elsewhere, be_greedy, effect, events_of
from workers import at_work, counted

Write = Callable[..., Attempt]
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def url(database: Database, door: str) -> str:
    return database.sync_url if door == "sync" else database.async_url


@pytest.fixture
def home(url: str, engine: Engine) -> Iterator[AsyncTask]:
    """An application from a URL. SQLite's file is then open nowhere in this process, so that it may fork."""
    app = AsyncTask(url, lease=1)
    close_file(engine)
    yield app
    app.close()


@pytest.mark.parametrize(
    "how",
    [
        "sigkill",
        # What the zygote makes of a death, it makes of its process alone: one database will do, through both doors.
        pytest.param("exit", marks=pytest.mark.only_on("postgresql")),
        pytest.param("segfault", marks=pytest.mark.only_on("postgresql")),
        pytest.param("overflow", marks=pytest.mark.only_on("sqlite")),
    ],
)
def test_a_call_that_kills_its_process_fails_after_three_crashes_in_quarantine_and_no_other_fails(
    home: AsyncTask, url: str, engine: Engine, write: Write, tmp_path: pathlib.Path, how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    poison = write(Elsewhere, "die", {"folder": str(tmp_path), "how": how}, priority=1)
    innocents = [write(Elsewhere, "start", {"folder": str(tmp_path)}, priority=n % 3) for n in range(10)]
    _die_of_it(url, tmp_path, poison)
    lost = _sweep(home, engine)
    assert (row_of(engine, poison.id).num_losses, row_of(engine, poison.id).num_crashes) == (1, 0)
    while row_of(engine, poison.id).status == Status.PENDING:
        close_file(engine)
        assert home.run_batch().claimed
    row = row_of(engine, poison.id)
    assert (row.status, row.num_attempts, row.num_crashes, row.num_losses) == (Status.FAILED, 4, 3, 1)
    assert row.last_error.startswith("crashed")
    ours = [one for one in caplog.records if one.name.startswith("async_task")]  # asyncio may tell of an earlier test
    [said] = [one.getMessage() for one in ours if one.levelname == "ERROR"]
    assert said.startswith("test.elsewhere.die failed for good after 4 tries: crashed: 3 starts in a row killed ")
    assert [event.kind for event in events_of(engine, poison.id)] == ["loss", *["crash"] * 3]
    starts = [number for one, number, *_ in notes(tmp_path) if one == str(poison.id)]
    assert starts == [1, 2, 3, 4]
    rows = [row_of(engine, one.id) for one in innocents]
    charged = {(row.status, row.num_crashes, row.num_losses, row.num_errors) for row in rows}
    assert charged == {(Status.SUCCEEDED, 0, 0, 0)}
    assert {row.num_attempts for row in rows} <= {1, 2}
    assert lost >= 1


def test_a_call_that_uses_all_memory_fails_and_affects_no_other(
    home: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    greedy, innocent = _suspect(engine, write(be_greedy, None, {"folder": str(tmp_path)})), write(Client, "ping")
    other = _suspect(engine, write(Elsewhere, "start", {"folder": str(tmp_path)}))
    while row_of(engine, greedy.id).status == Status.PENDING:
        close_file(engine)
        assert home.run_batch().claimed
    assert row_of(engine, greedy.id).status == Status.FAILED
    assert len([one for one, *_ in notes(tmp_path) if one == str(greedy.id)]) <= 2
    for one in (innocent, other):
        assert row_of(engine, one.id).status == Status.SUCCEEDED


@by_one_door
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("limit", [None, 0.2])
def test_a_suspect_that_holds_the_gil_is_killed_and_counted_as_a_crash_with_and_without_a_limit(
    home: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    limit: float | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(child_life, "BEAT", 0.02)
    monkeypatch.setattr(parent, "BEAT", 0.02)
    monkeypatch.setattr(pool, "MARGIN", 0.3)
    monkeypatch.setattr(pool, "LONGEST_SILENCE", 0.5)
    method = "loop" if limit is None else "loop_with_a_limit"
    loop = _suspect(engine, write(Elsewhere, method, {"folder": str(tmp_path)}))
    slow = _suspect(engine, write(Elsewhere, "sleep", {"seconds": 1.0}))
    while row_of(engine, loop.id).status == Status.PENDING:
        assert home.run_batch().claimed
    row = row_of(engine, loop.id)
    assert (row.status, row.num_crashes, row.num_errors) == (Status.FAILED, 3, 0)
    assert "the call had held the GIL for" in row.last_error
    assert (row_of(engine, slow.id).status, row_of(engine, slow.id).num_crashes) == (Status.SUCCEEDED, 0)


def test_innocents_of_a_process_that_died_are_cleared_by_other_processes(
    home: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    suspects = [_suspect(engine, write(Elsewhere, "start", {"folder": str(tmp_path)})) for _ in range(12)]
    close_file(engine)
    report = home.run_batch()
    assert (report.claimed, report.succeeded) == (12, 12)
    assert {row_of(engine, one.id).num_crashes for one in suspects} == {0}
    pids = {pid for _, _, pid, _ in notes(tmp_path)}
    assert os.getpid() not in pids


@pytest.mark.only_on("postgresql", "mysql")
def test_a_suspect_that_waits_behind_a_long_one_is_left_to_a_worker_that_is_idle(
    home: AsyncTask, url: str, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    """Both were claimed by one worker, which kept the second one until the first had ended."""
    held = [_suspect(engine, write(Elsewhere, "hold_always", {"folder": str(tmp_path)})) for _ in range(2)]
    other = AsyncTask(url, lease=1)
    with at_work(home):
        await_(lambda: notes(tmp_path), "the first one begins")
        with at_work(other):
            await_(lambda: len(notes(tmp_path)) == 2, "the second one begins")
            workers = {row_of(engine, one.id).claimed_by for one in held}
            assert len(workers) == 2
            pathlib.Path(tmp_path, "go").touch()
            await_(lambda: {row_of(engine, one.id).status for one in held} == {Status.SUCCEEDED}, "both have ended")
    other.close()
    assert {(row_of(engine, one.id).num_attempts, row_of(engine, one.id).num_losses) for one in held} == {(2, 0)}


def test_a_long_suspect_holds_up_no_suspect_of_another_queue(
    home: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    for queue in ("first", "second"):
        _suspect(engine, write(Elsewhere, "hold_always", {"folder": str(tmp_path)}, queue=queue))
    close_file(engine)
    with at_work(home, concurrency=2):
        await_(lambda: len(notes(tmp_path)) == 2, "both run at once")
        pathlib.Path(tmp_path, "go").touch()
        await_(lambda: counted(engine) == {"succeeded": 2}, "both have ended")


def test_writes_of_a_suspect_are_committed_with_its_outcome(home: AsyncTask, engine: Engine, write: Write) -> None:
    good, bad = _suspect(engine, write(effect)), _suspect(engine, write(effect, None, {"what": "raise"}))
    close_file(engine)
    report = home.run_batch()
    assert (report.succeeded, report.retried) == (1, 1)
    assert row_of(engine, good.id).status == Status.SUCCEEDED  # and its effect is there once: see clockwork
    assert row_of(engine, bad.id).num_errors == 1


@pytest.mark.only_on("postgresql", "mysql")
def test_the_connections_of_the_child_are_its_own(app: AsyncTask, engine: Engine, write: Write) -> None:
    with engine.connect() as connection:
        name = {"postgresql": "pg_backend_pid()", "mysql": "connection_id()"}[engine.dialect.name]
        before = connection.scalar(text(f"SELECT {name}"))
        _suspect(engine, write(effect))
        assert app.run_batch().succeeded == 1
        assert connection.scalar(text(f"SELECT {name}")) == before


def test_when_the_parent_is_killed_the_child_and_the_row_lock_go_with_it(
    home: AsyncTask, url: str, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    suspect = _suspect(engine, write(Elsewhere, "hold_always", {"folder": str(tmp_path)}))
    close_file(engine)
    with elsewhere.process(elsewhere.run_batch, url, 1.0) as parent:
        ((_, _, child, _),) = await_(lambda: notes(tmp_path), "the call begins")
        zygote = parent_of(child)
        assert parent_of(zygote) == parent.pid
        parent.kill()
    await_(lambda: not is_there(child) and not is_there(zygote), "the child and the zygote go away")
    let_pass(engine, 5)
    await_(lambda: home.sweep().recovered, "the row's lock goes too")
    row = row_of(engine, suspect.id)
    assert (row.num_crashes, row.num_losses) == (0, 2)


@by_one_door
def test_a_suspect_that_runs_at_the_end_of_the_grace_is_released_before_the_worker_ends(
    home: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    suspect = _suspect(engine, write(Elsewhere, "hold_always", {"folder": str(tmp_path)}))
    close_file(engine)
    with at_work(home, grace=0.1) as work:
        await_(lambda: notes(tmp_path), "the call begins")
        work.stop()
        work.await_farewell()
        row = row_of(engine, suspect.id)
    assert (row.status, row.claim_id, row.num_attempts) == (Status.PENDING, None, 2)
    assert (row.num_errors, row.num_crashes, row.num_losses) == (0, 0, 1)


def test_with_threads_alive_in_the_parent_suspects_are_cleared_all_the_same(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    _suspect(engine, write(effect))
    try:
        assert app.run_batch().succeeded == 1
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_from_a_coroutine_suspects_are_cleared_in_a_thread(app: AsyncTask, engine: Engine, write: Write) -> None:
    _suspect(engine, write(effect))

    async def run() -> int:
        return (await asyncio.to_thread(app.run_batch)).succeeded

    assert asyncio.run(run()) == 1


def test_four_quarantines_leave_nothing(home: AsyncTask, engine: Engine, write: Write) -> None:
    ids = [_suspect(engine, write(Client, "ping")).id for _ in range(5)]
    close_file(engine)
    assert home.perform(ids[0]) == Succeeded(ids[0])  # what is opened once is open now
    before = num_descriptors(), num_children()
    threads = threading.active_count()  # of which one may just be ending
    for one in ids[1:]:
        assert home.perform(one) == Succeeded(one)
    await_(lambda: threading.active_count() <= threads, "threads that were ending have ended")
    assert (num_descriptors(), num_children()) == before


def test_what_a_suspect_prints_is_printed_once(url: str, engine: Engine, write: Write, tmp_path: pathlib.Path) -> None:
    for word in ("one", "two"):
        _suspect(engine, write(Elsewhere, "say", {"text": word}))
    close_file(engine)
    script = "import sys\nfrom async_task import AsyncTask\nprint('before')\n"
    script += "print(AsyncTask(sys.argv[1], modules=['outbox']).run_batch().succeeded)\n"
    (tmp_path / "printing.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    with contextlib.closing(elsewhere.Program("printing", url, cwd=tmp_path, env=environment)) as begun:
        said = begun.completed()
    assert (said.returncode, sorted(said.stdout.split())) == (0, ["2", "before", "one", "two"])


def test_claims_and_outcomes_survive_the_socket_with_every_field() -> None:
    one, big = uuid.uuid4(), claim("x" * 5_000_000)
    ended: list[Outcome] = [
        Succeeded(one), Retried(one, dt.timedelta(microseconds=1), None), Retried(one, dt.timedelta(days=3), "ß\0\n"),
        Failed(one, "why"), Expired(one, "late"), Canceled(one), NotDue(one, NOW), NotPending(one, None),
        NotPending(one, Status.CANCELED), Busy(one, None, None), Busy(one, "host:1:ab", NOW), Superseded(one),
        Parked(one, dt.timedelta(0), "\N{SNOWMAN}"),
    ]  # fmt: skip
    assert {type(outcome) for outcome in ended} == set(outcomes.KINDS)
    sent = {"claim": big, "ended": ended}
    assert decode(encode(sent)) == sent
    with children(performing(lambda one: Failed(one.id, one.encoded_args))) as quarantine:
        assert quarantine.perform_isolated(big, None) == Failed(big.id, big.encoded_args)


def test_a_big_argument_arrives_in_the_quarantine(
    home: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    suspect = _suspect(engine, write(Elsewhere, "keep", {"folder": str(tmp_path), "text": "y" * 5_000_000}))
    close_file(engine)
    assert home.perform(suspect.id) == Succeeded(suspect.id)
    assert [word for *_, word in notes(tmp_path)] == ["5000000"]


def test_a_child_that_dies_between_two_calls_charges_nothing(tmp_path: pathlib.Path) -> None:
    with children(performing(_say_who)) as quarantine:
        for _ in range(20):
            before = quarantine.perform_isolated(claim(), None)
            assert isinstance(before, Failed)
            os.kill(int(before.reason), 9)
            after = quarantine.perform_isolated(claim(), None)
            assert isinstance(after, Failed)
            assert after.reason != before.reason


def test_a_zygote_that_dies_charges_nothing_and_is_replaced() -> None:
    with children(performing(_say_who)) as quarantine:
        before = quarantine.perform_isolated(claim(), None)
        assert isinstance(before, Failed)
        zygote = parent_of(int(before.reason))
        os.kill(zygote, 9)
        os.waitid(os.P_PID, zygote, os.WEXITED | os.WNOWAIT)
        after = quarantine.perform_isolated(claim(), None)
        assert isinstance(after, Failed)
        assert parent_of(int(after.reason)) not in (zygote, os.getpid())
        await_(lambda: not is_there(int(before.reason)), "its child goes with it")


@pytest.mark.parametrize("is_daemon", [False, True])
def test_a_death_is_reported_at_once_with_its_cause_although_what_the_call_started_lives(
    tmp_path: pathlib.Path, is_daemon: bool
) -> None:
    def leave_a_child_and_die(one: Claim) -> Outcome:
        pid = os.fork()
        if pid == 0:
            if is_daemon:
                os.setsid()
            (tmp_path / "left").write_text(str(os.getpid()))
            (tmp_path / "left").rename(tmp_path / "there")
            threading.Event().wait(60)
        await_((tmp_path / "there").exists, "it lives")
        os._exit(3)

    with children(performing(leave_a_child_and_die)) as quarantine:
        with pytest.raises(Died, match="exit code 3"):
            quarantine.perform_isolated(claim(), None)
        left = int((tmp_path / "there").read_text())
        if is_daemon:
            os.kill(left, 9)  # nobody else does
        await_(lambda: not is_there(left), "what it left behind is ended too: it may hold the row's lock")


def test_a_child_that_cannot_be_started_charges_nothing() -> None:
    @contextmanager
    def fail(calling: Calling) -> Iterator[Callable[[Claim], Outcome]]:
        os._exit(1)
        yield _say_who

    with children(fail) as quarantine, pytest.raises(NotPerformed, match="stays alive") as raised:
        quarantine.perform_isolated(claim(), None)
    assert not raised.value.started


def _die_of_it(url: str, folder: pathlib.Path, poison: Attempt) -> None:
    with elsewhere.process(elsewhere.run_batch, url, 1.0, None, 2) as first:
        assert first.exit_code() is not None
    assert str(poison.id) in {one for one, *_ in notes(folder)}


def _sweep(app: AsyncTask, engine: Engine) -> int:
    let_pass(engine, 5)
    return int(await_(lambda: app.sweep().recovered, "what the dead process held is recovered"))


def _suspect(engine: Engine, attempt: Attempt) -> Attempt:
    """As after one start that was lost with its process."""
    with engine.begin() as connection:
        lost = update(Attempt).where(Attempt.id == attempt.id).values(num_attempts=1, num_losses=1)
        connection.execute(lost)
    return attempt


def _say_who(one: Claim) -> Outcome:
    return Failed(one.id, str(os.getpid()))
