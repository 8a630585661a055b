"""What a batch promises on the lanes of a worker: limits, released claims, coroutines, order keys, errors, Ctrl-C."""

import datetime as dt
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, AttemptJob, BatchReport, Status, target
from async_task.database.lanes import Lane
from async_task.execution import batch_executor
from async_task.execution.batch_executor import BatchExecutor
from async_task.outcomes import Outcome
from async_task.queue import fetch
from async_task.queue.claim import Claim
from async_task.queue.recovery import CRASH_LIMIT
from async_task.worker import batch_workload, lane_loop, run_batch
from async_task.worker.claimer import Claimer
from async_task.worker.start_limit import StartLimit
from async_task.worker.watchdog import Watchdog
from clockwork import row_of
from conftest import by_one_door
from databases import Database
from elsewhere import await_
from outbox import Client, Gate, Gated, Meeting, act, act_in_session, act_later, application, calls, gates, will
from workers import counted, make

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__
sync_only = pytest.mark.parametrize("door", ["sync"])


def starts(engine: Engine) -> Counter[int]:
    """How many attempts were started how often."""
    with engine.connect() as connection:
        rows = connection.execute(select(TABLE.c.num_attempts, func.count()).group_by(TABLE.c.num_attempts)).all()
    return Counter(dict(rows))


def claimed(engine: Engine) -> int:
    """How many attempts are claimed now."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(TABLE).where(TABLE.c.claim_id.is_not(None))) or 0


# Claims and commits


@pytest.mark.slow
@sync_only
def test_attempts_are_claimed_many_at_a_time(app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    claim = Claimer.claim

    def noted(self: Claimer, lane: Any, request: Any, **how: Any) -> Any:
        asked.append(request.limit)
        return claim(self, lane, request, **how)

    monkeypatch.setattr(Claimer, "claim", noted)
    make(engine, Client, 300, method_name="ping")
    assert app.run_batch(concurrency=1).succeeded == 300
    assert len(asked) < 100
    assert starts(engine) == {1: 300}


# The limit


@pytest.mark.slow
def test_exactly_as_many_are_started_as_the_limit_allows(app: AsyncTask, engine: Engine) -> None:
    make(engine, Client, 120, method_name="ping")
    make(engine, Client, 30, method_name="ping", queue="other")
    report = app.run_batch(limit=67)
    assert (report.claimed, report.succeeded, claimed(engine)) == (67, 67, 0)
    assert starts(engine) == {1: 67, 0: 83}


@pytest.mark.slow
def test_what_is_released_behind_a_slow_call_is_performed_in_the_same_batch_and_counts_once(
    app: AsyncTask, engine: Engine
) -> None:
    name = uuid.uuid4().hex
    gate = gates[name] = Gate()
    will(lambda: calls.append("act"))
    make(engine, act, 30)
    [slow] = make(engine, Gated, method_name="locked", method_args={"gate": name})
    make(engine, act, 60)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(app.run_batch, limit=80, concurrency=2)
        gate.await_call()
        await_(lambda: counted(engine) == {"succeeded": 79, "pending": 12}, "the others did not wait")
        assert row_of(engine, slow).claim_id is not None
        gate.opened.set()
        report = running.result()
    assert (report.claimed, report.succeeded, calls.count("act")) == (80, 80, 79)
    assert starts(engine) == {1: 80, 0: 11}
    assert app.run_batch().succeeded == 11


@pytest.mark.slow
@sync_only
def test_calls_of_a_paused_target_do_not_count(app: AsyncTask, engine: Engine) -> None:
    will(lambda: None)
    make(engine, act, 10)
    make(engine, Client, 5, method_name="ping")
    app.pause(target=act)
    assert app.run_batch(limit=5).succeeded == 5
    assert starts(engine) == {1: 5, 0: 10}


# Coroutines


@pytest.mark.slow
def test_coroutines_run_beside_each_other(app: AsyncTask, engine: Engine) -> None:
    """Twelve wait until all are there, on one lane, beside plain calls."""
    meeting = Meeting()
    will(meeting.join)
    make(engine, act_later, 12)
    make(engine, Client, 5, method_name="ping")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(app.run_batch, concurrency=1)
        await_(lambda: meeting.number == 12, "all run at once")
        await_(lambda: counted(engine).get("succeeded") == 5, "plain calls do not wait for them")
        meeting.end()
        report = running.result()
    assert (report.claimed, report.succeeded) == (17, 17)
    assert starts(engine) == {1: 17}


@pytest.mark.slow
def test_coroutines_that_find_no_slot_are_performed_in_the_same_batch(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_batch, "LanePool", partial(run_batch.LanePool, async_concurrency=2))
    will(lambda: calls.append("act"))
    make(engine, act_later, 25)
    report = app.run_batch(limit=20, concurrency=2)
    assert (report.claimed, report.succeeded, len(calls)) == (20, 20, 20)
    assert app.run_batch().succeeded == 5
    assert starts(engine) == {1: 25}


# Order keys


@pytest.mark.slow
def test_the_next_of_a_key_is_performed_in_the_same_batch_in_whichever_queue_it_waits(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    for number in range(6):
        arguments = {"customer_token": "key", "order_number": number}
        write(Client, "fulfill", arguments, order_key="key", queue=("one", "two", "three")[number % 3])
    other = write(Client, "ping", order_key="alone", queue="four")
    assert app.run_batch().succeeded == 7
    assert [call for call in calls if call[0] == "key"] == [("key", number) for number in range(6)]
    assert row_of(engine, other.id).status is Status.SUCCEEDED


@pytest.mark.slow
def test_a_suspect_behind_the_attempt_before_it_is_performed_in_another_queue_too(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    write(Client, "ping", order_key="key", queue="one")
    suspect = write(Client, "ping", order_key="key", queue="two")
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == suspect.id).values(num_attempts=1, num_losses=1))
    assert app.run_batch().succeeded == 2


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize(("then", "batches"), [("returns", 1), ("dies", CRASH_LIMIT)])
def test_the_next_of_a_key_is_performed_after_a_call_in_a_child_process_too(
    app: AsyncTask, engine: Engine, write: Write, registered: None, then: str, batches: int
) -> None:
    target("batch.isolated", isolate=True)(_nothing if then == "returns" else _die)
    first = write("batch.isolated", order_key="key", queue="one")
    write(Client, "ping", order_key="key", queue="two")
    write(Client, "ping", order_key="key", queue="three")
    succeeded = [app.run_batch().succeeded for _ in range(batches)]
    assert succeeded == ([3] if then == "returns" else [0] * (batches - 1) + [2])
    assert row_of(engine, first.id).status is (Status.SUCCEEDED if then == "returns" else Status.FAILED)


def _die() -> None:
    os._exit(9)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_pool_of_one_connection_is_enough(database: Database, engine: Engine, registered: None, write: Write) -> None:
    """A lane keeps a connection open, and releases keys and asks for limits on another one."""
    own = create_engine(database.sync_url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    target("limited.nothing", max_running=1)(_nothing)
    target("test.plain")(_nothing_else)
    for number in range(3):
        write(_nothing, order_key="key")
        write(_nothing_else, order_key=f"key {number}")
    assert AsyncTask(own).run_batch().succeeded == 6
    own.dispose()


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_an_attempt_that_stays_locked_is_left_to_the_next_batch(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_workload, "MOST_MISSES", 3)
    locked, other = write(Client, "ping"), write(Client, "ping")
    with engine.connect() as connection:
        connection.execute(select(TABLE.c.id).where(TABLE.c.id == locked.id).with_for_update())
        assert app.run_batch().claimed <= 1  # MariaDB may lock the other one too
    app.run_batch()
    assert {row_of(engine, one.id).num_attempts for one in (locked, other)} == {1}


@by_one_door
@pytest.mark.only_on("postgresql")
def test_a_queue_that_the_limit_denied_is_claimed_from_when_starts_are_restored(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted, denied, grant = threading.Event(), threading.Event(), StartLimit.grant

    def in_turns(limit: StartLimit, queue: str, number: int) -> int:
        """The locked queue first, which keeps the one start until the other queue was denied it."""
        if queue == "other":
            assert granted.wait(10)
        starts = grant(limit, queue, number)
        if queue == "locked" and starts and not granted.is_set():
            granted.set()
            assert denied.wait(10)
        if not starts:
            denied.set()
        return starts

    monkeypatch.setattr(StartLimit, "grant", in_turns)
    monkeypatch.setattr(batch_workload, "MOST_MISSES", 1)
    locked, other = write(Client, "ping", queue="locked"), write(Client, "ping", queue="other")
    with engine.connect() as connection:
        connection.execute(select(TABLE.c.id).where(TABLE.c.id == locked.id).with_for_update())
        assert app.run_batch(limit=1, concurrency=2).claimed == 1
    assert row_of(engine, other.id).status is Status.SUCCEEDED


# Jobs of the user's own


@pytest.mark.slow
def test_every_attempt_goes_through_a_job_of_the_users_own(
    engine: Engine, door: str, async_engine_url: str, write: Write
) -> None:
    seen: list[uuid.UUID] = []

    class NotedJob(AttemptJob):
        def run(self, lane: Lane, claim: Claim) -> Outcome:
            seen.append(claim.id)
            return super().run(lane, claim)

    app = application(engine, door, async_engine_url, attempt_job=NotedJob)
    will(lambda: None)
    suspect = write(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(num_attempts=1, num_crashes=1))
    made = [write(act).id, write(act_later).id, write(Client, "ping").id, write(Client, "fail").id]
    report = app.run_batch()
    assert (report.claimed, report.succeeded, report.retried) == (5, 4, 1)
    assert sorted(seen) == sorted([*made, suspect.id])
    assert seen[-1] == suspect.id
    app.close()


@pytest.mark.slow
def test_a_job_of_the_users_own_that_raises_ends_the_batch_and_charges_nothing(
    engine: Engine, door: str, async_engine_url: str
) -> None:
    class BrokenJob(AttemptJob):
        def run(self, lane: Lane, claim: Claim) -> Outcome:
            if len(calls) == 3:
                raise LookupError("a bug")
            return super().run(lane, claim)

    app = application(engine, door, async_engine_url, attempt_job=BrokenJob)
    make(engine, Client, 40, method_name="fulfill", method_args={"customer_token": "x", "order_number": 1})
    with pytest.raises(LookupError, match="a bug"):
        app.run_batch(concurrency=1)
    assert (len(calls), claimed(engine)) == (3, 0)
    with engine.connect() as connection:
        charged = (TABLE.c.num_errors + TABLE.c.num_crashes > 0, TABLE.c.num_attempts > 1)
        assert not connection.scalars(select(TABLE.c.id).where(charged[0] | charged[1])).all()
    app.close()


# Errors of the database


@pytest.mark.slow
@sync_only
@pytest.mark.parametrize("can_release", [True, False])
def test_an_error_of_the_database_in_a_thread_ends_no_batch_and_leaves_no_claim(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, can_release: bool
) -> None:
    raised: list[BatchExecutor] = []
    execute = BatchExecutor.execute

    def fail_once(self: BatchExecutor) -> None:
        if raised:
            return execute(self)
        raised.append(self)
        raise OperationalError("LOCK", {}, Exception("the connection is lost"))

    def refuse(*given: Any, **more: Any) -> None:
        raise OperationalError("UPDATE", {}, Exception("the connection is lost"))

    monkeypatch.setattr(BatchExecutor, "execute", fail_once)
    if not can_release:
        for name in ("release_claims", "release_abandoned"):
            monkeypatch.setattr(lane_loop, name, refuse)
    make(engine, Client, 20, method_name="ping")
    succeeded = app.run_batch(concurrency=1).succeeded
    assert raised
    assert succeeded == (20 if can_release else 19)  # of what is found claimed it is unknown whether it was started
    assert claimed(engine) == 0
    monkeypatch.undo()
    assert app.run_batch().succeeded == 20 - succeeded
    with engine.connect() as connection:
        assert not connection.scalar(select(func.sum(TABLE.c.num_crashes + TABLE.c.num_errors)))


# Progress


@pytest.mark.slow
def test_progress_is_reported_one_at_a_time_and_never_goes_back(app: AsyncTask, engine: Engine) -> None:
    told: list[BatchReport] = []
    telling = threading.Lock()

    def progress(report: BatchReport) -> None:
        assert telling.acquire(blocking=False)
        told.append(report)
        telling.release()

    will(lambda: None)
    make(engine, act, 60)
    make(engine, act_later, 60)
    report = app.run_batch(progress=progress)
    assert report.succeeded == 120
    assert (told[0].claimed, told[0].left) == (0, 120)
    assert (told[-1].claimed, told[-1].left) == (120, 0)
    assert [one.claimed for one in told] == sorted(one.claimed for one in told)


# The end


@sync_only
def test_ctrl_c_finishes_what_runs_and_releases_what_was_not_started(app: AsyncTask, engine: Engine) -> None:
    """The signal comes in the midst of a portion: what was claimed with that call goes back uncharged."""

    def interrupt() -> None:
        calls.append("act")
        if len(calls) == 30:
            os.kill(os.getpid(), signal.SIGINT)
            interrupted.wait(30)

    interrupted = threading.Event()
    stop = _Noted(interrupted)
    will(interrupt)
    make(engine, act, 100)
    with pytest.raises(KeyboardInterrupt):
        app.run_batch(concurrency=2, stop=stop)
    done = counted(engine)["succeeded"]
    assert len(calls) == done < 100
    assert claimed(engine) == 0
    assert starts(engine) == {1: done, 0: 100 - done}


class _Noted(threading.Event):
    """Sets another one, too."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def set(self) -> None:
        super().set()
        self._other.set()


@pytest.mark.slow
def test_a_limit_that_lets_nothing_start_for_long_leaves_the_rest_to_the_next_batch(
    app: AsyncTask, engine: Engine, registered: None, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    target("limited.nothing", max_running=1)(_nothing)
    held, waiting = write(_nothing), write(_nothing)
    fetch.claim_one(engine, TABLE, "another", dt.timedelta(seconds=60), held.id, uuid.uuid4())
    write(Client, "ping")
    monkeypatch.setattr(batch_workload, "LIMIT_PATIENCE", 0.3)
    assert app.run_batch().succeeded == 1
    assert row_of(engine, waiting.id).num_attempts == 0
    monkeypatch.undo()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(app.run_batch)
        with engine.begin() as connection:
            ended = {"claim_id": None, "claimed_by": None, "lease_until": None, "num_attempts": 0}
            connection.execute(update(TABLE).where(TABLE.c.id == held.id).values(ended))
        assert running.result().succeeded >= 1


def _nothing() -> None: ...


def _nothing_else() -> None: ...


@pytest.mark.slow
def test_a_batch_is_silent_about_order_keys_that_have_just_arrived(
    app: AsyncTask, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        write(Client, "ping", order_key="key")
    assert app.run_batch().succeeded == 2
    assert caplog.messages == []


@pytest.mark.slow
@by_one_door
def test_a_batch_waits_for_what_the_watchdog_releases(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took that for lost claims, and left it to the next batch."""
    monkeypatch.setattr(batch_executor, "LONGEST_ALONE", 0.01)
    has_ended, releasing = threading.Event(), threading.Event()
    release = Watchdog.release

    def release_late(watchdog: Watchdog, claims: list[Claim]) -> None:
        releasing.set()
        assert has_ended.wait(20)
        time.sleep(0.7)  # longer than a batch waits until it looks again
        release(watchdog, claims)

    def act(_session: Session) -> None:
        number.append(1)
        if len(number) == 8:  # by then several are claimed at a time
            assert releasing.wait(20)
            has_ended.set()

    number: list[int] = []
    monkeypatch.setattr(Watchdog, "release", release_late)
    will(act)
    for _ in range(30):
        write(act_in_session)
    assert app.run_batch(concurrency=1).succeeded == 30
