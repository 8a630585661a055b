"""Two batches at once: how they share the work, and how one sees the other."""

import contextlib
import datetime as dt
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, select

import elsewhere
from async_task import AlreadyRunning, AsyncTask, Attempt, AttemptBatchJob, BatchReport, Status
from async_task.database.engines import Source
from async_task.database.lanes import open_lane
from async_task.database.transactions import retry_transient
from async_task.queue import running_batches
from async_task.schema.tables import SchemaVersion, Worker
from clockwork import let_pass, row_of
from databases import Database
from elsewhere import await_, notes
from outbox import Client, Elsewhere, Gate, Gated, HookedAttempt, application, effect, effects, gates

pytestmark = pytest.mark.long

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__
LONG = dt.timedelta(seconds=60)


@pytest.fixture
def url(database: Database, door: str) -> str:
    return database.sync_url if door == "sync" else database.async_url


@pytest.fixture
def working(app: AsyncTask, write: Write) -> Iterator["Working"]:
    """A batch of this process that is in a call until it is ended, at the latest by the end of the test."""
    name = uuid.uuid4().hex
    gates[name] = Gate()
    write(Gated, "leased", {"gate": name})
    with ThreadPoolExecutor(1) as threads:
        batch = Working(threads.submit(app.run_batch, concurrency=1), gates[name])
        gates[name].await_call()
        yield batch
        batch.end()
    del gates[name]


@dataclass
class Working:
    future: "Future[BatchReport]"
    gate: Gate

    def end(self) -> BatchReport:
        self.gate.opened.set()
        return self.future.result()


def test_two_processes_at_once_perform_each_attempt_once_and_share_the_work(
    url: str, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    for _ in range(2):
        write(Elsewhere, "hold_always", {"folder": str(tmp_path)}, priority=0)
    ids = {str(write(effect, priority=1).id) for _ in range(30)}
    ids |= {str(write(effect, queue="other", priority=1).id) for _ in range(10)}
    meet = elsewhere.barrier(2)
    words = ["run-batch", "--database-url", url, "--module", "outbox", "--concurrency", "1", "--queue", "default"]
    also = ["--queue", "other", "--fail-on", "failed"]
    with (
        elsewhere.process(elsewhere.command_line, [*words, *also], meet) as one,
        elsewhere.process(elsewhere.command_line, [*words, *also], meet) as two,
    ):
        await_(lambda: len({pid for _, _, pid, _ in notes(tmp_path)}) == 2, "each is in a call of its own")
        (tmp_path / "go").touch()
        assert (one.answer(), two.answer()) == (0, 0)
    with engine.connect() as connection:
        done = list(connection.scalars(select(effects.c.attempt_id)))
        rows = connection.execute(select(TABLE.c.status, TABLE.c.num_attempts).distinct()).all()
    assert sorted(done) == sorted(ids)
    assert [tuple(row) for row in rows] == [(Status.SUCCEEDED, 1)]
    assert len(notes(tmp_path)) == 2


def test_skip_does_nothing_while_another_batch_is_running_and_names_it(
    app: AsyncTask, engine: Engine, write: Write, working: Working
) -> None:
    late, waiting = write(Client, "ping", expires_at=_in(-1)), write(Client, "ping")
    before = [row_of(engine, one.id) for one in (late, waiting)]
    report = app.run_batch(overlap="skip")
    (other,) = _workers(engine)
    assert report.overlapped == running_batches.RunningBatch(other.name, other.host, other.pid, other.started_at)
    assert report == BatchReport(overlapped=report.overlapped)
    assert [row_of(engine, one.id) for one in (late, waiting)] == before
    working.end()
    report = app.run_batch(overlap="skip")
    assert (report.overlapped, report.expired) == (None, 1)


def test_fail_raises_and_names_the_running_batch(
    app: AsyncTask, engine: Engine, write: Write, working: Working
) -> None:
    waiting = write(Client, "ping")
    with pytest.raises(AlreadyRunning) as refused:
        app.run_batch(overlap="fail")
    (other,) = _workers(engine)
    since = f"{other.started_at:%Y-%m-%d %H:%M:%S} UTC"
    words = f"another batch is running: process {other.pid} on {other.host}, since {since}; nothing was done"
    assert str(refused.value) == words
    assert row_of(engine, waiting.id).num_attempts == 0


def test_allow_performs_attempts_beside_another_batch(app: AsyncTask, write: Write, working: Working) -> None:
    # The other tests show that such a batch is seen itself: `working` is one.
    write(Client, "ping")
    assert app.run_batch().succeeded == 1


def test_performing_a_single_attempt_is_no_batch(app: AsyncTask, write: Write) -> None:
    name = uuid.uuid4().hex
    gate = gates[name] = Gate()
    attempt = write(Gated, "leased", {"gate": name})
    with ThreadPoolExecutor(1) as threads:
        performing = threads.submit(app.perform, attempt.id)
        gate.await_call()
        write(Client, "ping")
        report = app.run_batch(overlap="fail")
        gates.pop(name).opened.set()
        performing.result()
    assert report.succeeded == 1


def test_a_batch_of_another_table_is_no_overlap(
    app: AsyncTask, engine: Engine, door: str, async_engine_url: str, working: Working
) -> None:
    other = application(engine, door, async_engine_url, model=HookedAttempt)
    assert other.run_batch(overlap="fail").claimed == 0
    other.close()


def test_a_killed_batch_counts_as_running_for_one_lease(
    url: str, app: AsyncTask, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    write(Elsewhere, "hold", {"folder": str(tmp_path)})
    with elsewhere.process(elsewhere.run_batch, url, 1.0) as doomed:
        await_(lambda: notes(tmp_path), "it is in the call")
        assert app.run_batch(overlap="skip").overlapped is not None
        doomed.kill()
    assert [(row.kind, row.job_type) for row in _workers(engine)] == [("run-batch", TABLE.name)]
    let_pass(engine, 1.0)
    assert app.run_batch(overlap="skip").overlapped is None


def test_a_batch_has_a_heartbeat_until_it_ends_also_without_claims(
    engine: Engine, door: str, async_engine_url: str
) -> None:
    entered, go = threading.Event(), threading.Event()

    class Slow(AttemptBatchJob):
        def perform(self, limit: int | None = None, concurrency: int = 1) -> BatchReport:
            entered.set()
            assert go.wait(30)
            return super().perform(limit, concurrency)

    app = application(engine, door, async_engine_url, batch_job=Slow, lease=0.3)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(app.run_batch)
        assert entered.wait(30)
        (first,) = _workers(engine)
        try:
            await_(
                lambda: _workers(engine)[0].beat_at > first.beat_at + dt.timedelta(seconds=0.3),
                "its heartbeat continues",
            )
            with engine.begin() as connection:  # as `forget_workers` may, after a day without the database
                connection.execute(delete(Worker))
            again = await_(lambda: _workers(engine), "it registers again")[0]
            assert (again.name, again.kind, again.job_type) == (first.name, "run-batch", TABLE.name)
        finally:
            go.set()
        running.result()
    assert _workers(engine) == []
    app.close()


@pytest.mark.parametrize("is_written", [True, False], ids=["version", "no_version"])
def test_of_two_batches_that_begin_at_the_same_instant_one_runs(engine: Engine, is_written: bool) -> None:
    """Each waits before it registers, so that the other one could look for running batches meanwhile."""
    if not is_written:  # the batch that begins writes it
        with engine.begin() as connection:
            connection.execute(delete(SchemaVersion))
    meet, inside = threading.Barrier(2), threading.Barrier(2)

    @event.listens_for(engine, "before_cursor_execute")
    def hold(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("INSERT INTO async_task_workers"):
            with contextlib.suppress(threading.BrokenBarrierError):  # the other one may not come here
                inside.wait(0.3)

    try:
        with ThreadPoolExecutor(2) as threads:
            one, two = threads.map(partial(_begin, Source(engine), meet), ["one", "two"])
    finally:
        event.remove(engine, "before_cursor_execute", hold)
    (winner,) = _workers(engine)
    assert sorted([getattr(one, "worker", None), getattr(two, "worker", None)], key=str) == [None, winner.name]


def _begin(source: Source, meet: threading.Barrier, worker: str) -> Any:
    with open_lane(source) as lane:
        lane.engine.connect().close()
        meet.wait(30)
        return retry_transient(lambda: running_batches.begin(lane.engine, TABLE, worker, LONG, alone=True))


def _workers(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(Worker.__table__)).all())


def _in(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
