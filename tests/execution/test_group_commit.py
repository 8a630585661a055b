"""Group commit: calls that take no session share their commit, and one round trip locks the next group."""

import gc
import logging
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, Select, create_engine, event, select, text, update

import outbox
from async_task import AsyncTask, Attempt, Status, Succeeded, current_attempt
from async_task.execution import batch_executor, group_commit, in_flight
from async_task.execution.adaptive import CLAIM_BUDGET, LONGEST_REST, BatchSize, QueryCost
from async_task.execution.batch_executor import BatchExecutor
from async_task.queue import fenced_writes
from async_task.worker import lane_pool
from async_task.worker.claimer import Claimer
from async_task.worker.heartbeat import Heartbeat
from clockwork import row_of
from databases import Database, _kill_all, impatient_engine, somebody_waits
from elsewhere import await_
from outbox import Broken, act, calls
from shared_calls import lock_before_the_first_call
from workers import at_rest, at_work, counted, make, working

sync_only = pytest.mark.parametrize("door", ["sync"])
servers_only = pytest.mark.only_on("postgresql", "mysql")
postgresql_only = pytest.mark.only_on("postgresql")
NUMBER = 6


@pytest.fixture(autouse=True)
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane claims many from the start, commits each outcome by itself, and no call is overdue."""
    monkeypatch.setattr(BatchSize, "number", _groups_of(1), raising=False)
    monkeypatch.setattr(BatchExecutor, "is_overdue", lambda self, now: False)


def _groups_of(number: int) -> Any:
    """So many are locked, and committed, together."""
    return property(lambda self: 30 if self._budget == CLAIM_BUDGET else number, lambda self, number: None)


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """For each time that rows were locked: the function, and the number of rows."""
    found: list[tuple[str, int]] = []

    def note(name: str) -> None:
        lock_rows = getattr(fenced_writes, name)

        def noted(*given: Any) -> Any:
            found.append((name, len(given[-2])))
            return lock_rows(*given)

        monkeypatch.setattr(fenced_writes, name, noted)

    note("lock_claims")
    note("succeed_and_lock")
    return found


def does(act: Callable[[int], Any]) -> None:
    """At the call with this number, from 0."""

    def call() -> Any:
        number = len(calls)
        calls.append(current_attempt().id)
        return act(number)

    outbox.acts[:] = [call]


def is_locked(engine: Engine, attempt_id: Any) -> bool:
    with engine.connect() as connection:
        lock: Select[Any] = select(Attempt.id).where(Attempt.id == attempt_id).with_for_update(skip_locked=True)
        return connection.execute(lock).first() is None


def perform(app: AsyncTask, engine: Engine, until: Callable[[], bool] | None = None, **settings: Any) -> int:
    """How many have succeeded, as the worker counts them."""
    with working(app, concurrency=1, **{"settle_within": 0, **settings}) as worker:
        await_(until or (lambda: at_rest(engine)), "all are at rest")
    return worker.tally[Succeeded]


@pytest.mark.slow
def test_each_outcome_is_committed_and_the_next_row_locked_before_the_next_call(app: AsyncTask, engine: Engine) -> None:
    found: list[Any] = []

    def check(number: int) -> None:
        with engine.connect() as connection:
            succeeded = select(Attempt.id).where(Attempt.status == Status.SUCCEEDED)
            found.append(set(connection.scalars(succeeded)))
        if engine.dialect.name != "sqlite":
            assert is_locked(engine, calls[number])

    does(check)
    make(engine, act, NUMBER)
    perform(app, engine)
    assert counted(engine) == {"succeeded": NUMBER}
    assert found == [set(calls[:number]) for number in range(NUMBER)]


@sync_only
@postgresql_only
def test_commit_and_next_lock_are_one_round_trip(app: AsyncTask, engine: Engine, locks: list[tuple[str, int]]) -> None:
    does(lambda number: None)
    make(engine, act, NUMBER)
    perform(app, engine)
    assert counted(engine) == {"succeeded": NUMBER}
    assert locks == [("lock_claims", 1)] + [("succeed_and_lock", 1)] * (NUMBER - 1)


@pytest.mark.slow
def test_a_finished_call_is_committed_within_settle_within(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call takes longer than that. The third one finds both committed, although more share their lock."""
    passed, found = [0.0], list[Any]()
    moved = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr(in_flight, "time", moved)
    monkeypatch.setattr(group_commit, "time", moved)
    monkeypatch.setattr(BatchSize, "number", _groups_of(30))

    def check(number: int) -> None:
        with engine.connect() as connection:
            succeeded = select(Attempt.id).where(Attempt.status == Status.SUCCEEDED)
            found.append(set(connection.scalars(succeeded)))
        if number == 1:
            passed[0] = 1.0

    does(check)
    make(engine, act, 4)
    perform(app, engine, settle_within=0.5)
    assert found[:3] == [set(), set(), set(calls[:2])]


@sync_only
@postgresql_only
def test_outcomes_share_a_commit_and_the_next_group_shares_a_lock(
    app: AsyncTask, engine: Engine, locks: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchSize, "number", _groups_of(4))
    does(lambda number: None)
    make(engine, act, 10)
    perform(app, engine, settle_within=0.5)
    assert counted(engine) == {"succeeded": 10}
    assert locks == [("lock_claims", 4), ("succeed_and_lock", 4), ("succeed_and_lock", 2)]
    assert len(set(calls)) == 10


@pytest.mark.slow
@servers_only
def test_a_call_with_a_time_limit_of_its_own_is_in_no_group(
    app: AsyncTask, engine: Engine, locks: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchSize, "number", _groups_of(30))
    does(lambda number: None)
    for options in ({}, {"timeout": 5}, {}, {}):
        make(engine, act, **options)
    perform(app, engine, settle_within=0.5)
    assert counted(engine) == {"succeeded": 4}
    assert [number for _, number in locks] == [1, 2]  # its own lock is not that of a group


@pytest.mark.slow
@pytest.mark.parametrize("happening", ["begin", "commit"])
def test_listeners_see_each_begin_and_commit(
    database: Database, engine: Engine, locks: list[tuple[str, int]], happening: str
) -> None:
    own, heard = create_engine(database.sync_url), list[int]()
    event.listen(own, happening, lambda connection: heard.append(len(calls)))
    does(lambda number: None)
    make(engine, act, NUMBER)
    perform(AsyncTask(own, lease=1), engine)
    own.dispose()
    assert counted(engine) == {"succeeded": NUMBER}
    assert not [name for name, _ in locks if name == "succeed_and_lock"]
    assert set(heard) >= set(range(1, NUMBER + 1))


@pytest.mark.slow
def test_errors_and_polls_are_written_in_the_group(app: AsyncTask, engine: Engine) -> None:
    def act_oddly(number: int) -> Any:
        if number == 2:
            raise Broken("no such order")
        return outbox.Again(after=60) if number == 3 else None

    does(act_oddly)
    make(engine, act, NUMBER)
    perform(app, engine, lambda: counted(engine) == {"succeeded": NUMBER - 2, "pending": 2} and len(calls) == NUMBER)
    broken, polling = row_of(engine, calls[2]), row_of(engine, calls[3])
    assert (broken.last_error, broken.num_errors, broken.claim_id) == ("Broken: no such order", 1, None)
    assert (polling.last_error, polling.num_errors, polling.claim_id) == (None, 0, None)
    assert len(set(calls)) == NUMBER


@servers_only
def test_an_attempt_that_was_canceled_before_its_lock_is_not_called(app: AsyncTask, engine: Engine) -> None:
    ids = make(engine, act, NUMBER)
    canceled: list[Any] = []

    def cancel(number: int) -> None:
        if number == 1:
            canceled.append(next(one for one in ids if one not in calls))
            ended = {"claim_id": None, "claimed_by": None, "lease_until": None, "status": Status.CANCELED}
            with engine.begin() as connection:
                by_hand = update(Attempt).where(Attempt.id == canceled[0])
                connection.execute(by_hand.values(ended | {"completed_at": Attempt.created_at}))

    does(cancel)
    perform(app, engine)
    assert counted(engine) == {"succeeded": NUMBER - 1, "canceled": 1}
    assert sorted(calls) == sorted(set(ids) - set(canceled))


@pytest.mark.slow
@servers_only
def test_a_connection_lost_during_a_call_loses_no_outcome_and_repeats_no_call(app: AsyncTask, engine: Engine) -> None:
    def lose(number: int) -> None:
        if number == 2:
            _kill_all(engine)
        else:
            assert is_locked(engine, calls[number])

    does(lose)
    ids = make(engine, act, NUMBER)
    perform(app, engine, lambda: len(calls) == NUMBER)  # no query meanwhile: its connection would be lost too
    assert sorted(calls) == sorted(ids)
    rows = [row_of(engine, one) for one in ids]
    assert {(row.status, row.num_attempts, row.num_errors) for row in rows} == {(Status.SUCCEEDED, 1, 0)}


@pytest.mark.long
@pytest.mark.slow
@servers_only
def test_a_row_locked_longer_than_the_lock_timeout_does_not_hold_up_others(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is claimed again when it is free. The others of its batch run meanwhile."""
    own = impatient_engine(database, seconds=1)
    _assert_others_run(own, engine, monkeypatch)


@pytest.mark.long
@postgresql_only
def test_a_row_locked_longer_than_the_statement_timeout_does_not_hold_up_others(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = create_engine(database.sync_url, connect_args={"options": "-c statement_timeout=300ms"})
    _assert_others_run(own, engine, monkeypatch)


@pytest.fixture
def starts_at_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All claims but the first one of a queue begin where the last one ended, as beside an old snapshot."""
    monkeypatch.setattr(QueryCost, "rest", LONGEST_REST)
    monkeypatch.setattr(QueryCost, "note", lambda self, seconds, *, now: LONGEST_REST)
    monkeypatch.setattr(Claimer, "start_all_at_front", lambda self: None)


@postgresql_only
def test_a_call_that_is_not_started_as_its_claim_may_be_lost_does_not_wait_for_a_claim_from_the_front(
    engine: Engine, starts_at_marks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = [one for _ in range(3) for one in make(engine, act)]  # due one after the other
    does(lambda number: None)
    lapsed = {first}

    def may_have_lost(_: Heartbeat, attempt_id: uuid.UUID) -> bool:
        is_lapsed = attempt_id in lapsed
        lapsed.discard(attempt_id)
        return is_lapsed

    monkeypatch.setattr(Heartbeat, "may_have_lost", may_have_lost)
    with working(AsyncTask(engine), concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 3}, "all are called", patience=LONGEST_REST / 2)
    assert calls[-1] == first


@pytest.mark.long
@postgresql_only
def test_what_could_not_be_locked_with_such_a_row_does_not_wait_for_a_claim_from_the_front(
    database: Database, engine: Engine, starts_at_marks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchSize, "number", _groups_of(4))
    ids = [one for _ in range(NUMBER) for one in make(engine, act)]  # due one after the other
    does(lambda number: None)
    own = create_engine(database.sync_url, connect_args={"options": "-c statement_timeout=300ms"})
    with engine.connect() as other, other.begin():
        lock_before_the_first_call(monkeypatch, other, ids[2])
        with working(AsyncTask(own), concurrency=1, settle_within=0):
            are_called = {"succeeded": NUMBER - 1, "pending": 1}
            await_(lambda: counted(engine) == are_called, "the others run", patience=LONGEST_REST / 2)
    own.dispose()


def _assert_others_run(own: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchSize, "number", _groups_of(4))
    ids = sorted(make(engine, act, NUMBER))
    does(lambda number: None)
    with engine.connect() as other, other.begin() as holding:
        lock_before_the_first_call(monkeypatch, other, ids[2])
        with working(AsyncTask(own, lease=1), concurrency=1, settle_within=0):
            await_(lambda: counted(engine) == {"succeeded": NUMBER - 1, "pending": 1}, "the others run")
            holding.rollback()
            await_(lambda: at_rest(engine), "it is claimed again")
    own.dispose()
    assert sorted(calls) == ids
    rows = [row_of(engine, one) for one in ids]
    assert {(row.status, row.num_errors, row.num_crashes) for row in rows} == {(Status.SUCCEEDED, 0, 0)}
    assert {row.num_attempts for row in rows if row.id != ids[2]} == {1}


@pytest.mark.slow
@servers_only
def test_a_worker_whose_connection_was_lost_is_garbage_collected(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It logs an error, and pytest keeps what is logged.
    monkeypatch.setattr(logging.getLogger("psycopg"), "disabled", True)
    does(lambda number: _kill_all(engine) if number == 1 else None)
    make(engine, act, 3)
    with working(app, concurrency=1, settle_within=0) as worker:
        await_(lambda: len(calls) == 3, "all are called")
    kept = weakref.ref(worker)
    del worker
    gc.collect()
    assert kept() is None


REFUSALS = {
    "not written": "CREATE TRIGGER refusal BEFORE UPDATE ON async_task_attempts FOR EACH ROW EXECUTE FUNCTION refuse()",
    "at its commit": "CREATE CONSTRAINT TRIGGER refusal AFTER UPDATE ON async_task_attempts DEFERRABLE INITIALLY "
    "DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
}


@pytest.fixture(params=list(REFUSALS))
def refusing(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Callable[[Any], None]]:
    """From then on, the server refuses the success of this attempt: the row is not changed, or the COMMIT fails."""
    is_silent = request.param == "not written"

    def refuse(attempt_id: Any) -> None:
        does = "RETURN NULL;" if is_silent else "RAISE EXCEPTION 'not this one';"
        body = f"BEGIN IF NEW.status = 'succeeded' AND NEW.id = '{attempt_id}' THEN {does} END IF; RETURN NEW; END"
        with engine.begin() as connection:
            connection.execute(text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"))
            connection.execute(text(REFUSALS[request.param]))

    yield refuse
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER refusal ON async_task_attempts"))
        connection.execute(text("DROP FUNCTION refuse"))


@pytest.mark.slow
@postgresql_only
def test_an_outcome_that_cannot_be_written_does_not_affect_others(
    app: AsyncTask, engine: Engine, refusing: Callable[[Any], None]
) -> None:
    ids = make(engine, act, NUMBER)
    refused = ids[2]
    refusing(refused)
    does(lambda number: None)
    num_succeeded = perform(app, engine, lambda: counted(engine) == {"succeeded": NUMBER - 1, "pending": 1})
    assert num_succeeded == NUMBER - 1
    assert row_of(engine, refused).status is Status.PENDING
    assert {one: calls.count(one) for one in ids if one != refused} == dict.fromkeys(set(ids) - {refused}, 1)


@pytest.mark.slow
@postgresql_only
def test_an_order_key_that_cannot_be_released_affects_neither_other_keys_nor_running_calls(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchSize, "number", _groups_of(4))
    app = AsyncTask(engine, lease=60)
    for key in ("refused", "other"):
        make(engine, act, 2, order_key=key)
    make(engine, act, NUMBER)
    body = (
        "BEGIN IF NEW.released AND NOT OLD.released AND NEW.order_key = 'refused' AND EXISTS (SELECT FROM "
        "async_task_attempts WHERE status = 'succeeded') THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END"
    )
    with engine.begin() as connection:
        connection.execute(text(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"))
        connection.execute(text(REFUSALS["not written"]))
    try:
        does(lambda number: None)
        perform(app, engine, lambda: counted(engine) == {"succeeded": NUMBER + 3, "pending": 1}, settle_within=0.5)
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP TRIGGER refusal ON async_task_attempts"))
            connection.execute(text("DROP FUNCTION refuse"))
    assert len(set(calls)) == len(calls) == NUMBER + 3


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 30])
def test_it_stops_between_two_calls_and_releases_those_that_have_not_started(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(BatchSize, "number", _groups_of(size))
    worker = app.worker(concurrency=1, poll=0.05, settle_within=0.5)
    does(lambda number: worker.stop() if number == 2 else None)
    ids = make(engine, act, NUMBER)
    thread = threading.Thread(target=worker.run)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert counted(engine) == {"succeeded": 3, "pending": NUMBER - 3}
    unstarted = [row_of(engine, one) for one in ids if one not in calls]
    assert {(row.claim_id, row.num_attempts, row.num_crashes) for row in unstarted} == {(None, 0, 0)}


@pytest.mark.slow
@servers_only
@pytest.mark.parametrize(("size", "at"), [(1, 0), (1, 2), (4, 2)])
def test_a_second_stop_while_it_waits_for_a_row_releases_all_of_its_claims(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, size: int, at: int
) -> None:
    """Another transaction has locked the next row: the first of all, one that is locked with the commit before it, or
    one of a group. MariaDB keeps the group's rows before it locked until it notices that the client has gone."""
    monkeypatch.setattr(batch_executor, "LONGEST_AT_DATABASE", 0.1)
    monkeypatch.setattr(lane_pool, "LONGEST_RELEASE", 0.5)
    monkeypatch.setattr(BatchSize, "number", _groups_of(size))
    ids = sorted(make(engine, act, NUMBER))
    does(lambda number: None)
    with engine.connect() as other, other.begin() as holding:
        lock_before_the_first_call(monkeypatch, other, ids[at])
        with at_work(app, settle_within=0) as work:
            await_(lambda: somebody_waits(engine), "its thread waits for the row")
            work.abandon()
            work.await_farewell()
            rows = [row_of(engine, one) for one in ids]
            holding.rollback()
    done = at // size * size
    kept = {at} if engine.dialect.name == "postgresql" else set(range(done, at + 1))
    assert calls == ids[:done]
    assert [row.status for row in rows[:done]] == [Status.SUCCEEDED] * done
    assert {row.claim_id for number, row in enumerate(rows) if number not in kept} == {None}
    assert {(row.num_errors, row.num_crashes) for row in rows} == {(0, 0)}
