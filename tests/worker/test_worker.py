"""The worker: it performs what is due for as long as it lives, and leaves nothing behind."""

import datetime as dt
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import outbox
from async_task import Again, AsyncTask, Attempt, AttemptJob, ConfigurationError, JobEvent, Status
from async_task.database.lanes import Lane
from async_task.execution import adaptive
from async_task.execution.adaptive import BatchSize
from async_task.execution.batch_executor import BatchExecutor
from async_task.queue.claim import ClaimRequest
from async_task.schema.tables import Worker
from async_task.worker import poller
from async_task.worker.claimer import Claimer
from clockwork import forget_beats, row_of
from conftest import by_one_door
from databases import Database
from elsewhere import await_
from outbox import (
    Broken,
    Client,
    Gate,
    Gated,
    Meeting,
    act,
    act_later,
    act_leased,
    application,
    calls,
    effect,
    effect_later,
    effects,
    will,
)
from workers import at_rest, at_work, counted, make, working

sync_only = pytest.mark.parametrize("door", ["sync"])


def settled(engine: Engine, number: int) -> Callable[[], bool]:
    return lambda: sum(count for status, count in counted(engine).items() if status != "pending") == number


@pytest.mark.slow
def test_a_worker_performs_existing_and_new_attempts_of_every_kind(app: AsyncTask, engine: Engine) -> None:
    """Also other kinds of call at once: plain, with a session, coroutines, leased; each exactly once."""
    outbox.acts[:] = [lambda: calls.append("act")]
    ledger = effect_later if app._source.is_async else effect
    make(engine, act, 30)
    with working(app):
        await_(lambda: at_rest(engine), "what was there is performed")
        for target in (act, act_leased, act_later):
            make(engine, target, 20)
        make(engine, ledger, 20)
        await_(lambda: counted(engine) == {"succeeded": 110}, "what came is performed")
    assert calls.count("act") == 90
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(effects)) == 20
        assert set(connection.scalars(select(Attempt.num_attempts))) == {1}


@pytest.mark.slow
def test_a_worker_writes_errors_retries_polls_and_failures(app: AsyncTask, engine: Engine) -> None:
    """Beside calls that succeed in the same commit."""
    [failing] = make(engine, Client, method_name="fail", method_args={"message": "no such order"})
    [polling] = make(engine, Client, method_name="poll", method_args={"seconds": 30})
    [given_up] = make(engine, Client, method_name="give_up", method_args={"reason": "closed"})
    well = make(engine, Client, 20, method_name="ping")
    with working(app, concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 20, "failed": 1, "pending": 2}, "all were called")
        await_(lambda: row_of(engine, failing).num_errors == 1, "the error is written")
        await_(lambda: row_of(engine, polling).num_attempts == 1, "it was polled")
    rows = {one: row_of(engine, one) for one in (failing, polling, given_up, well[0])}
    assert rows[failing].last_error == "Broken: no such order"
    assert (rows[failing].num_errors, rows[failing].num_crashes, rows[failing].claim_id) == (1, 0, None)
    assert (rows[polling].num_errors, rows[polling].claim_id) == (0, None)
    assert rows[given_up].last_error is not None
    with engine.connect() as connection:
        events = connection.scalars(select(JobEvent.kind).where(JobEvent.job_id == str(failing))).all()
    assert list(events) == ["error"]


@pytest.mark.slow
def test_attempts_claimed_with_a_slow_call_do_not_wait_for_it(app: AsyncTask, engine: Engine) -> None:
    """One lane is in a call that does not end; the other does all the rest, also what was claimed with it."""
    gate = outbox.gates["slow"] = Gate()
    outbox.acts[:] = [lambda: calls.append("act")]
    make(engine, act, 50)
    [slow] = make(engine, Gated, method_name="locked", method_args={"gate": "slow"})
    make(engine, act, 200)
    with working(app):
        gate.await_call()
        await_(lambda: counted(engine) == {"succeeded": 250, "pending": 1}, "the others did not wait")
        row = row_of(engine, slow)
        assert row.claim_id is not None
        gate.opened.set()
        await_(lambda: at_rest(engine), "it has ended too")
    assert row_of(engine, slow).num_attempts == 1
    with engine.connect() as connection:
        assert set(connection.scalars(select(Attempt.num_attempts))) == {1}  # released uncharged


@pytest.mark.slow
@sync_only
def test_finished_calls_are_committed_while_a_slow_call_runs(app: AsyncTask, engine: Engine) -> None:
    """One lane: calls that ended before the slow one are at rest while that still runs, and the running row
    is still locked where rows can be."""
    gate = outbox.gates["slow"] = Gate()
    outbox.acts[:] = [lambda: calls.append("act")]
    with working(app, concurrency=1) as worker:
        for number in (1, 2, 4, 8, 16):  # it learns that these calls are quick, and takes more at once
            make(engine, act, number)
        await_(lambda: at_rest(engine), "it is warm")
        with Session(engine) as session, session.begin():
            first = Attempt.create_many(session, [{"target": act} for _ in range(3)])
            slow = Attempt.create_many(
                session, [{"target": Gated, "method_name": "locked", "method_args": {"gate": "slow"}}]
            )
            last = Attempt.create_many(session, [{"target": act} for _ in range(3)])
        gate.await_call()
        await_(lambda: all(row_of(engine, one).status is Status.SUCCEEDED for one in first), "they are written")
        await_(lambda: all(row_of(engine, one).claim_id is None for one in last), "they are released")
        assert row_of(engine, slow[0]).claim_id is not None
        if engine.dialect.name != "sqlite":
            with engine.connect() as connection:
                lock = select(Attempt.id).where(Attempt.id == slow[0]).with_for_update(skip_locked=True)
                assert connection.execute(lock).first() is None
        gate.opened.set()
        await_(lambda: at_rest(engine), "all are done")
        del worker


@pytest.mark.slow
@sync_only
def test_a_lost_claim_changes_nothing_and_does_not_affect_others_of_its_batch(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence: another session ended one of the claimed rows between its claim and its lock."""
    made = make(engine, act, 8)
    stolen: list[Any] = []
    outbox.acts[:] = [lambda: calls.append("act")]
    execute = BatchExecutor.execute

    def after_a_theft(self: BatchExecutor) -> None:
        waiting = [claim.id for claim, _ in self._in_flight.waiting]
        if len(waiting) > 1 and not stolen:
            stolen.append(waiting[1])
            with engine.begin() as connection:
                taken = {"claim_id": None, "claimed_by": None, "lease_until": None, "status": Status.CANCELED}
                theft = update(Attempt).where(Attempt.id == stolen[0])
                connection.execute(theft.values(taken | {"completed_at": Attempt.created_at}))
        execute(self)

    monkeypatch.setattr(BatchExecutor, "execute", after_a_theft)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are at rest")
    assert stolen
    assert row_of(engine, stolen[0]).status is Status.CANCELED
    assert counted(engine) == {"succeeded": 7, "canceled": 1}
    assert len(made) == 8


@pytest.mark.slow
def test_stop_finishes_running_calls_and_releases_the_others(app: AsyncTask, engine: Engine) -> None:
    gate = outbox.gates["slow"] = Gate()
    outbox.acts[:] = [lambda: calls.append("act")]
    [slow] = make(engine, Gated, method_name="locked", method_args={"gate": "slow"})
    with at_work(app) as work:
        gate.await_call()
        others = make(engine, act, 5)
        work.stop()
        gate.opened.set()
        work.await_farewell()
    assert row_of(engine, slow).status is Status.SUCCEEDED
    for one in others:
        row = row_of(engine, one)
        assert (row.status, row.claim_id, row.num_attempts) == (Status.PENDING, None, 0)
    with engine.connect() as connection:
        assert connection.scalars(select(Worker.name)).all() == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["locked", "leased", "later", "write_leased"])
def test_a_second_stop_abandons_a_running_call_and_releases_its_claim(
    app: AsyncTask, engine: Engine, method: str
) -> None:
    """No row waits for a lease; nothing is charged; what the call comes to afterwards is not written."""
    _abandon(app, engine, method)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_second_stop_abandons_a_call_that_has_written(app: AsyncTask, engine: Engine) -> None:
    _abandon(app, engine, "write_locked")


@sync_only
@pytest.mark.only_on("sqlite")
def test_a_second_stop_abandons_a_call_that_has_locked_the_whole_database(app: AsyncTask, engine: Engine) -> None:
    """On an AsyncEngine the connection belongs to a thread of its driver: there the end of the process frees it."""
    _abandon(app, engine, "write_locked")


def _abandon(app: AsyncTask, engine: Engine, method: str) -> None:
    gate = outbox.gates["slow"] = Gate()
    [slow] = make(engine, Gated, method_name=method, method_args={"gate": "slow"})
    with at_work(app) as work:
        gate.await_call()
        work.abandon()
        await_(lambda: row_of(engine, slow).claim_id is None, "it is released")
        gate.opened.set()
    row = row_of(engine, slow)
    assert (row.status, row.num_errors, row.num_crashes, row.num_attempts) == (Status.PENDING, 0, 0, 1)


@pytest.mark.slow
def test_coroutines_run_concurrently_up_to_the_number_of_slots(app: AsyncTask, engine: Engine) -> None:
    """Ten wait for each other: with ten slots they all meet; further ones wait for a slot, and plain calls for none."""
    meeting = Meeting()
    outbox.acts[:] = [meeting.join]
    make(engine, act_later, 13)
    with working(app, concurrency=1, async_concurrency=10):
        await_(lambda: meeting.number >= 10, "ten run at once")
        make(engine, Client, 5, method_name="ping")
        await_(settled(engine, 5), "plain calls pass")
        assert meeting.number == 10
        meeting.end()
        await_(lambda: at_rest(engine), "all have ended")
    assert counted(engine) == {"succeeded": 18}
    with engine.connect() as connection:
        assert set(connection.scalars(select(Attempt.num_attempts))) == {1}


@pytest.mark.slow
def test_a_suspect_is_performed_beside_other_attempts(app: AsyncTask, engine: Engine) -> None:
    outbox.acts[:] = [lambda: calls.append("act")]
    [suspect] = make(engine, Client, method_name="ping")
    with engine.begin() as connection:
        connection.execute(update(Attempt).where(Attempt.id == suspect).values(num_attempts=1, num_crashes=1))
    make(engine, act, 5)
    with working(app):
        await_(lambda: at_rest(engine), "the suspect too")
    row = row_of(engine, suspect)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.SUCCEEDED, 2, 0)


@by_one_door
@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")  # on SQLite suspects are claimed one at a time: nothing is kept
def test_a_claim_that_fails_keeps_no_suspects_of_other_queues(
    engine: Engine, door: str, async_engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stayed claimed until the end of their lease."""
    for queue in ("one", "other"):
        make(engine, Client, method_name="ping", queue=queue)
    with engine.begin() as connection:
        connection.execute(update(Attempt).values(num_attempts=1, num_crashes=1))
    claim, asked = Claimer.claim, list[str]()

    def fail_at_the_second(self: Claimer, lane: Lane, request: ClaimRequest, **options: Any) -> Any:
        if request.suspects:
            asked.append(request.queue)
            if len(asked) == 2:
                raise OperationalError("SELECT", None, Exception("no"))
        return claim(self, lane, request, **options)

    monkeypatch.setattr(Claimer, "claim", fail_at_the_second)
    with working(application(engine, door, async_engine_url, lease=60)):
        await_(lambda: at_rest(engine), "both are performed long before the end of a lease")
    assert set(asked[:2]) == {"one", "other"}


@pytest.mark.slow
def test_claims_of_a_dead_worker_are_recovered_and_overdue_attempts_expire(app: AsyncTask, engine: Engine) -> None:
    [orphan] = make(engine, Client, method_name="ping")
    past = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    [late] = make(engine, Client, method_name="ping", expires_at=past)
    with engine.begin() as connection:
        held = {"claim_id": orphan, "claimed_by": "nobody", "num_attempts": 1, "lease_until": past}
        connection.execute(update(Attempt).where(Attempt.id == orphan).values(held))
    forget_beats(engine)
    with working(app):
        await_(lambda: at_rest(engine), "both are at rest")
    assert row_of(engine, late).status is Status.EXPIRED
    row = row_of(engine, orphan)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.SUCCEEDED, 2, 0)


@pytest.mark.slow
def test_a_lost_claim_of_the_worker_itself_is_released(app: AsyncTask, engine: Engine) -> None:
    """The worker lives, so that the claim is never an orphan."""
    with working(app):
        await_(lambda: _workers(engine), "it is there")
        [stray] = make(engine, Client, method_name="ping", scheduled_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
        past = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
        with engine.begin() as connection:
            held = {"claim_id": stray, "claimed_by": _workers(engine)[0], "num_attempts": 1, "lease_until": past}
            connection.execute(update(Attempt).where(Attempt.id == stray).values(held | {"due_at": past}))
        await_(lambda: at_rest(engine), "it is performed")
    row = row_of(engine, stray)
    assert (row.status, row.num_crashes) == (Status.SUCCEEDED, 0)


def _workers(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Worker.name).where(Worker.kind == "worker")))


@pytest.mark.slow
def test_only_the_named_queues_are_served_each_by_at_most_its_number_of_lanes(app: AsyncTask, engine: Engine) -> None:
    gate = outbox.gates["slow"] = Gate()
    make(engine, Client, method_name="ping", queue="elsewhere")
    make(engine, Gated, 2, method_name="locked", method_args={"gate": "slow"}, queue="slow")
    with working(app, concurrency=3, queues={"slow": 1, "mail": None}):
        gate.await_call()
        make(engine, Client, 10, method_name="ping", queue="mail")
        await_(settled(engine, 10), "mail is performed meanwhile")
        assert not gate.entered.acquire(blocking=False)  # the second slow one has no lane
        gate.opened.set()
        await_(settled(engine, 12), "then the second")
    assert counted(engine) == {"succeeded": 12, "pending": 1}


@pytest.mark.slow
@pytest.mark.parametrize("settle_within", [0, 0.05])
def test_outcomes_are_written_one_by_one_or_together(app: AsyncTask, engine: Engine, settle_within: float) -> None:
    outbox.acts[:] = [lambda: calls.append("act")]
    make(engine, act, 60)
    with working(app, settle_within=settle_within):
        await_(lambda: at_rest(engine), "all are done")
    assert len(calls) == 60


@pytest.mark.slow
def test_a_job_of_the_users_own_performs_every_attempt(engine: Engine, door: str, async_engine_url: str) -> None:
    class NotedJob(AttemptJob):
        def run(self, lane: Any, claim: Any) -> Any:
            calls.append("noted")
            return super().run(lane, claim)

    app = outbox.application(engine, door, async_engine_url, attempt_job=NotedJob)
    make(engine, Client, 5, method_name="ping")
    with working(app):
        await_(lambda: at_rest(engine), "all are done")
    assert calls.count("noted") == 5


@pytest.mark.slow
def test_attempts_of_one_key_are_performed_one_at_a_time_in_order(app: AsyncTask, engine: Engine) -> None:
    with working(app, concurrency=3):
        with Session(engine) as session, session.begin():
            for number in range(30):
                key = f"key {number % 3}"
                given = {"customer_token": key, "order_number": number}
                Attempt.create(target=Client, method_name="fulfill", method_args=given, order_key=key, session=session)
        await_(lambda: at_rest(engine), "all are done")
    for key in ("key 0", "key 1", "key 2"):
        numbers = [number for token, number in calls if token == key]
        assert numbers == sorted(numbers)
        assert len(numbers) == 10


@pytest.mark.long
@pytest.mark.only_on("sqlite")
@sync_only
@pytest.mark.slow
def test_a_worker_has_imported_what_its_first_call_needs(app: AsyncTask, database: Database) -> None:
    """The first calls after a start waited for that, 0.2 s."""
    program = """
import sys, threading
from sqlalchemy.orm import Session
from async_task import AsyncTask, Attempt, target
@target("first")
def first(number: int) -> None: ...
def checks(): return {name for name in sys.modules if name.startswith("pydantic")}
worker = AsyncTask(sys.argv[1]).worker(poll=0.05)
print(bool(checks()))
threading.Timer(0.5, worker.stop).start()
worker.run()
before = checks()
Attempt.create(target=first, method_args={"number": 1}, session=Session())
print(bool(before), checks() - before)
"""
    command = [sys.executable, "-c", program, database.sync_url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "False\nTrue set()\n"


@sync_only
@pytest.mark.only_on("postgresql")
def test_an_idle_worker_is_notified_of_a_commit_by_another_process(app: AsyncTask, engine: Engine) -> None:
    """With an hour between two polls, only a notification can wake it."""
    outbox.acts[:] = [lambda: calls.append("act")]
    with working(app, poll=3600):
        await_(lambda: _asleep(engine), "it sleeps")
        with Session(engine) as session, session.begin():
            Attempt.create(target=act, session=session)
        await_(lambda: at_rest(engine), "it was woken")
    assert not _asleep(engine)


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
@pytest.mark.only_on("postgresql", "sqlite")  # on MariaDB a poll does not tell when the next attempt is due
def test_an_attempt_that_becomes_due_is_performed_at_its_time_however_rarely_the_worker_polls(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive, "FIRST_POLL", 3600)

    def make_another() -> None:
        # Nobody is told of it, so it is there before the worker polls after this call.
        if "second" not in calls:
            make(engine, act_leased, 1, scheduled_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.5))
        calls.append("second")

    with working(app, poll=3600):
        make(engine, act_leased, 1)
        will(lambda: calls.append("first") or Again(after=0.2))
        await_(lambda: calls, "it is performed")
        will(make_another)
        await_(lambda: "second" in calls, "it is performed again at its time")
        await_(lambda: calls.count("second") == 2, "another one is performed at its time")


@pytest.mark.slow
def test_a_worker_that_has_claimed_lately_writes_heartbeats_without_any_claim(engine: Engine) -> None:
    """So that its next claim need not wait for a beat. One that is idle beats every 15 s."""

    def beats() -> set[Any]:
        with engine.connect() as connection:
            return set(connection.scalars(select(Worker.beat_at)))

    outbox.acts[:] = [lambda: None]
    make(engine, act)
    with working(AsyncTask(engine, lease=3), listen=False):  # falling asleep would be a beat, too
        await_(lambda: at_rest(engine), "it is performed")
        before = beats()
        await_(lambda: beats() - before, "it beats", patience=10)


@pytest.mark.slow
@sync_only
def test_polls_that_take_long_are_made_rarely(app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do while somebody holds an old snapshot."""
    moments: list[float] = []

    def poll(*given: Any) -> Any:
        moments.append(time.monotonic())
        return found(*given)

    found = poller.poll
    monkeypatch.setattr(poller, "poll", poll)
    monkeypatch.setattr(adaptive, "rest_after", lambda seconds: 0.2)
    outbox.acts[:] = [lambda: None]
    with working(app, poll=0.01):
        await_(lambda: moments, "it has looked")
        make(engine, act, 20)
        await_(lambda: at_rest(engine) and len(moments) >= 4, "all is performed, and it has looked again")
    assert min(later - former for former, later in pairwise(moments)) >= 0.2


@pytest.mark.only_on("postgresql")
def test_a_thread_that_fails_repeatedly_pauses_longer_each_time_and_resumes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By no fault of the database's, which has its own patience."""
    moments: list[float] = []

    def claim(*given: Any, **more: Any) -> Any:
        moments.append(time.monotonic())
        if len(moments) <= 3:
            raise LookupError("a bug")
        return claim_before(*given, **more)

    claim_before = Claimer.claim
    monkeypatch.setattr(Claimer, "claim", claim)
    outbox.acts[:] = [lambda: None]
    make(engine, act)
    with working(AsyncTask(engine), concurrency=1, poll=0.01):
        await_(lambda: at_rest(engine), "it is performed")
    rests = [later - former for former, later in pairwise(moments[:4])]
    assert all(rest >= least for rest, least in zip(rests, (0.1, 0.2, 0.3), strict=True)), rests


def _asleep(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Worker.name).where(Worker.asleep)))


@sync_only
@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0}, {"concurrency": True}, {"async_concurrency": 0}, {"poll": 0}, {"settle_within": -1},
        {"settle_within": 3}, {"queues": {"mail": 0}}, {"queues": "mail"}, {"queues": [""]}, {"grace": -1},
        {"listen": 5},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.only_on("sqlite")
def test_an_invalid_setting_is_refused(app: AsyncTask, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        app.worker(**settings)


@pytest.mark.slow
@sync_only
def test_errors_of_many_calls_in_one_commit_are_each_written(app: AsyncTask, engine: Engine) -> None:
    def sometimes() -> None:
        calls.append("act")
        if len(calls) % 3 == 0:
            raise Broken("every third")

    outbox.acts[:] = [sometimes]
    make(engine, act, 30)
    with working(app, concurrency=1):
        await_(lambda: len(calls) == 30, "all were called")
        await_(settled(engine, 20), "the others are at rest")
        await_(lambda: _errors(engine) == 10, "each error is written")
    assert counted(engine) == {"succeeded": 20, "pending": 10}


def _errors(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(JobEvent).where(JobEvent.kind == "error")) or 0


@pytest.mark.slow
@sync_only
def test_a_claim_that_one_lane_released_is_extended_by_the_lane_that_claimed_it_next(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls were claimed together; the second, released behind a slow first, outlasts that one on another lane:
    its lease is extended as before, and it is not called again."""
    monkeypatch.setattr(BatchSize, "note", lambda self, number, seconds: None)
    monkeypatch.setattr(BatchSize, "number", 10, raising=False)
    monkeypatch.setattr(BatchSize, "__init__", lambda self, budget: None)
    first, second = outbox.gates["first"], outbox.gates["second"] = Gate(), Gate()
    outbox.acts[:] = [lambda: calls.append("act")]
    wanted = [{"target": Gated, "method_name": "leased", "method_args": {"gate": name}} for name in ("first", "second")]
    with Session(engine) as session, session.begin():
        made = Attempt.create_many(session, wanted)
    with working(app):
        first.await_call()
        second.await_call()
        held = row_of(engine, made[1])
        first.opened.set()
        await_(lambda: row_of(engine, made[0]).status is Status.SUCCEEDED, "the first has ended")
        make(engine, act)
        await_(lambda: counted(engine) == {"succeeded": 2, "pending": 1}, "its lane has gone on")
        for _ in range(2):  # one beat may have been on its way
            was = row_of(engine, made[1])
            assert was.claim_id == held.claim_id
            await_(lambda was=was: row_of(engine, made[1]).lease_until > was.lease_until, "it is believed in")
        assert row_of(engine, made[1]).claim_id == held.claim_id
        second.opened.set()
        await_(lambda: at_rest(engine), "all are done")
    assert row_of(engine, made[1]).num_attempts == 1


@pytest.mark.long
@pytest.mark.slow
@sync_only
def test_a_worker_ends_in_order_when_claims_cannot_be_released(
    app: AsyncTask, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Its threads and its beat end too; the claim waits for its lease."""
    gate = outbox.gates["slow"] = Gate()
    [slow] = make(engine, Gated, method_name="leased", method_args={"gate": "slow"})
    events, away = JobEvent.__tablename__, "events_away"
    with working(app, concurrency=1) as worker:
        gate.await_call()
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {events} RENAME TO {away}"))
        worker.stop()
        worker.stop()
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {away} RENAME TO {events}"))
    assert row_of(engine, slow).claim_id is not None
    assert "wait for their lease" in caplog.text
    gate.opened.set()
    await_(lambda: at_rest(engine), "the call that was left to itself is over")
    await_(lambda: not any(one.name.startswith("async-task-") for one in threading.enumerate()), "nothing is left")


@pytest.mark.slow
@sync_only
@pytest.mark.only_on("postgresql", "mysql")
def test_other_coroutines_are_written_although_one_outcome_cannot_be(
    app: AsyncTask, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that writes for all coroutines survives; the call whose outcome was refused is made again."""
    events, away = JobEvent.__tablename__, "events_away"

    def fail() -> None:
        raise Broken("its event cannot be written")

    outbox.acts[:] = [lambda: calls.append("act")]
    make(engine, act_later)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "it is running")
        outbox.acts[:] = [fail]
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {events} RENAME TO {away}"))
        [refused] = make(engine, act_later)
        refusal = f"attempt {refused} is not settled: "
        await_(lambda: any(one.levelname == "ERROR" and refusal in one.getMessage() for one in caplog.records), refusal)
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {away} RENAME TO {events}"))
        outbox.acts[:] = [lambda: calls.append("act")]
        make(engine, act_later, 3)
        await_(lambda: counted(engine).get("succeeded", 0) >= 4, "the others are written")
        await_(lambda: at_rest(engine), "it was made again")


@pytest.mark.slow
def test_a_worker_thread_survives_system_exit_of_a_job(engine: Engine, door: str, async_engine_url: str) -> None:
    """A job of the user's own that raises SystemExit: its only lane performs what comes next, and that call too."""
    raised: list[Any] = []

    class LeavingJob(AttemptJob):
        def run(self, lane: Any, claim: Any) -> Any:
            if not raised:
                raised.append(claim.id)
                raise SystemExit(3)
            return super().run(lane, claim)

    app = outbox.application(engine, door, async_engine_url, attempt_job=LeavingJob)
    make(engine, Client, 5, method_name="ping")
    with working(app, concurrency=1):
        await_(lambda: counted(engine).get("succeeded", 0) >= 4, "the others are performed")
    assert raised


@pytest.mark.in_turns
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("column", ["expires_at", "due_at", "scheduled_at", "created_at"])
@pytest.mark.parametrize("target", [act, outbox.act_in_session])
def test_attempts_with_infinite_timestamps_are_performed(
    app: AsyncTask, engine: Engine, column: str, target: Any
) -> None:
    outbox.acts[:] = [lambda *_: calls.append(1) or "done"]
    make(engine, target, 3)
    instant = "infinity" if column == "expires_at" else "-infinity"
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE async_task_attempts SET {column} = '{instant}'"))
    with working(app):
        await_(lambda: at_rest(engine), "all are called")
    assert (counted(engine), len(calls)) == ({"succeeded": 3}, 3)
