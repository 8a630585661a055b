"""A worker that is asked again abandons a transaction that calls share: what it had begun is given back uncharged, and
nothing of it is called again by this process, wherever its thread is just then."""

import threading
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session
from sqlalchemy.sql import Select

from async_task import AsyncTask, Attempt, Status
from async_task.database.dialects import disconnect
from async_task.execution.batch_executor import BatchExecutor
from async_task.execution.shared_transaction import SharedTransaction
from async_task.worker import lane_pool
from clockwork import row_of
from databases import somebody_waits
from elsewhere import await_
from outbox import Gate, act_in_session, calls
from shared_calls import claim_many, does, lock, lock_before_the_first_call, numbered, written
from workers import at_work, make

servers_only = pytest.mark.only_on("postgresql", "mysql")


@pytest.fixture(autouse=True)
def _many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_many(partial(monkeypatch.setattr, raising=False))


@pytest.fixture
def is_abandoned(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the handful of a lane was abandoned."""
    abandon, done = BatchExecutor.abandon, threading.Event()

    def abandoned(self: BatchExecutor, aside: Any) -> Any:
        try:
            return abandon(self, aside)
        finally:
            done.set()

    monkeypatch.setattr(BatchExecutor, "abandon", abandoned)
    return done


def charged(engine: Engine) -> list[tuple[int, int]]:
    with engine.connect() as connection:
        rows = connection.execute(select(Attempt.num_errors, Attempt.num_crashes)).all()
    return [tuple(one) for one in rows if any(one)]


def is_given_back(engine: Engine, *ids: Any) -> bool:
    rows = [row_of(engine, one) for one in ids]
    return all((row.status, row.claim_id) == (Status.PENDING, None) for row in rows)


@servers_only
@pytest.mark.parametrize("stays_locked", [False, True])
@pytest.mark.parametrize("at", [0, 2])
def test_while_its_thread_waits_for_a_row_all_are_given_back_and_none_is_called_again(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, is_abandoned: threading.Event, at: int,
    stays_locked: bool,
) -> None:  # fmt: skip
    """Also when the row is free only after the farewell: its claim stands then; and in MariaDB those of the rows before
    it, which stay locked as long as the server does not notice. PostgreSQL is told."""
    monkeypatch.setattr(lane_pool, "LONGEST_RELEASE", 0.3 if stays_locked else 30.0)
    does(lambda session, number: None)
    ids = numbered(engine, 5)
    with engine.connect() as other, other.begin() as holding:
        lock_before_the_first_call(monkeypatch, other, ids[at])
        with at_work(app) as work:
            await_(lambda: somebody_waits(engine), "its thread waits for the row")
            work.abandon()
            assert is_abandoned.wait(30)
            if stays_locked:
                work.await_farewell()
            holding.rollback()
            work.await_farewell()
            assert is_given_back(engine, *ids[at + 1 :])
            assert is_given_back(engine, ids[at]) is not stays_locked
            is_told = engine.dialect.name == "postgresql"
            assert is_given_back(engine, *ids[:at]) is (is_told or not stays_locked or not at)
    assert calls == list(range(at))
    assert (written(engine), charged(engine)) == ([], [])
    assert [row_of(engine, one).num_attempts for one in ids] == [1] * (at + 1) + [0] * (4 - at)


@servers_only
def test_what_is_abandoned_before_its_connection_is_had_is_not_called(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, is_abandoned: threading.Event
) -> None:
    monkeypatch.setattr(lane_pool, "LONGEST_RELEASE", 0.3)
    perform = SharedTransaction.perform

    def perform_abandoned(self: SharedTransaction, *given: Any) -> bool:
        lock(other, ids[0])
        work.abandon()
        assert is_abandoned.wait(30)
        work.await_farewell()
        holding.rollback()
        return perform(self, *given)

    monkeypatch.setattr(SharedTransaction, "perform", perform_abandoned)
    does(lambda session, number: None)
    with engine.connect() as other, other.begin() as holding:
        ids = numbered(engine, 3)
        with at_work(app) as work:
            await_(is_abandoned.is_set, "it is abandoned")
    assert (calls, written(engine), charged(engine)) == ([], [], [])


@servers_only
def test_what_was_undone_and_waits_for_its_row_to_be_called_alone_is_not_called_again(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection of all is lost in the third call; the second is locked by somebody when its turn comes again."""
    monkeypatch.setattr(lane_pool, "LONGEST_RELEASE", 0.3)

    def act(session: Session, number: int) -> None:
        if number == 2 and calls.count(2) == 1:
            disconnect(session.connection())
        if number == 0 and calls.count(0) == 2:
            lock(other, ids[1])

    does(act)
    ids = numbered(engine, 5)
    with engine.connect() as other, other.begin() as holding, at_work(app) as work:
        await_(lambda: calls.count(0) == 2 and somebody_waits(engine), "its thread waits for the row")
        work.abandon()
        work.await_farewell()
        holding.rollback()
    assert calls == [0, 1, 2, 0]
    assert (written(engine), charged(engine)) == ([0], [])
    assert [row_of(engine, one).num_attempts for one in ids] == [1, 1, 1, 0, 0]


@servers_only
def test_what_was_not_committed_is_not_called_again_when_it_is_abandoned_at_the_commit(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, is_abandoned: threading.Event
) -> None:
    """The connection is lost at the COMMIT; when the rows have been read, it is abandoned, and one is locked."""
    monkeypatch.setattr(lane_pool, "LONGEST_RELEASE", 0.3)
    end, seen = SharedTransaction.end, list[Any]()

    def lose(connection: Any) -> None:
        if seen and connection is seen[0]:
            disconnect(connection)

    def end_and_wait(self: SharedTransaction) -> Any:
        ended = end(self)
        lock(other, ids[1])
        work.abandon()
        assert is_abandoned.wait(30)
        return ended

    monkeypatch.setattr(SharedTransaction, "end", end_and_wait)
    event.listen(Engine, "commit", lose)
    does(lambda session, number: seen.append(session.connection()))
    try:
        with engine.connect() as other, other.begin() as holding:
            ids = numbered(engine, 3)
            with at_work(app) as work:
                await_(is_abandoned.is_set, "it is abandoned")
                work.await_farewell()
                assert is_given_back(engine, ids[0], ids[2])
                holding.rollback()
    finally:
        event.remove(Engine, "commit", lose)
    assert calls == [0, 1, 2]
    assert (written(engine), charged(engine)) == ([], [])


@servers_only
@pytest.mark.parametrize("ends", [True, False])
def test_what_the_database_did_to_one_of_them_is_not_left_to_its_lease(
    app: AsyncTask, engine: Engine, is_abandoned: threading.Event, ends: bool
) -> None:
    """The second wants a lock that is not to be had, for which it is parked once the transaction has ended: which is
    abandoned in the third, whether that comes to an end or not."""
    [locked] = make(engine, act_in_session, queue="nobody's")
    gate = Gate()

    def act(session: Session, number: int) -> None:
        if number == 1:
            wanted: Select[Any] = select(Attempt.id).where(Attempt.id == locked).with_for_update(nowait=True)
            session.execute(wanted)
        if number == 2:
            gate.pass_through()

    does(act)
    ids = numbered(engine, 5)
    with engine.connect() as other, other.begin():
        lock(other, locked)
        with at_work(app, queues={"default": None}) as work:
            gate.await_call()
            work.abandon()
            assert is_abandoned.wait(30)
            if ends:
                gate.opened.set()
            work.await_farewell()
            assert is_given_back(engine, *ids)
            gate.opened.set()
    assert (calls, written(engine), charged(engine)) == ([0, 1, 2], [], [])
    assert [row_of(engine, one).num_attempts for one in ids] == [1, 1, 1, 0, 0]
