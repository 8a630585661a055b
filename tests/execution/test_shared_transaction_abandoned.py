"""A second stop abandons a shared transaction: its calls are released uncharged, and this process calls none of them
again, wherever its thread is at that moment."""

import threading
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session
from sqlalchemy.sql import Select

from async_task import AsyncTask, Attempt, Status
from async_task.database.disconnection import disconnect
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
    """Set once a lane's batch was abandoned."""
    abandon, done = BatchExecutor.abandon, threading.Event()

    def abandoned(self: BatchExecutor, release: Any) -> Any:
        try:
            return abandon(self, release)
        finally:
            done.set()

    monkeypatch.setattr(BatchExecutor, "abandon", abandoned)
    return done


def charged(engine: Engine) -> list[tuple[int, int]]:
    with engine.connect() as connection:
        rows = connection.execute(select(Attempt.num_errors, Attempt.num_crashes)).all()
    return [tuple(one) for one in rows if any(one)]


def is_released(engine: Engine, *ids: Any) -> bool:
    rows = [row_of(engine, one) for one in ids]
    return all((row.status, row.claim_id) == (Status.PENDING, None) for row in rows)


@pytest.mark.slow
@servers_only
@pytest.mark.parametrize("stays_locked", [False, True])
@pytest.mark.parametrize("at", [0, 2])
def test_while_its_thread_waits_for_a_row_all_calls_are_released_and_none_runs_again(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, is_abandoned: threading.Event, at: int,
    stays_locked: bool,
) -> None:  # fmt: skip
    """If the row is free only after the shutdown, it stays claimed; on MariaDB so do the rows before it, which stay
    locked until the server notices that the client has gone. On PostgreSQL the statement is canceled."""
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
            assert is_released(engine, *ids[at + 1 :])
            assert is_released(engine, ids[at]) is not stays_locked
            is_canceled = engine.dialect.name == "postgresql"
            assert is_released(engine, *ids[:at]) is (is_canceled or not stays_locked or not at)
    assert calls == list(range(at))
    assert (written(engine), charged(engine)) == ([], [])
    assert [row_of(engine, one).num_attempts for one in ids] == [1] * (at + 1) + [0] * (4 - at)


@pytest.mark.slow
@servers_only
def test_a_call_abandoned_before_its_transaction_is_open_does_not_run(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, is_abandoned: threading.Event
) -> None:
    monkeypatch.setattr(lane_pool, "LONGEST_RELEASE", 0.3)
    run_call = SharedTransaction.run_call

    def perform_abandoned(self: SharedTransaction, *given: Any) -> bool:
        lock(other, ids[0])
        work.abandon()
        assert is_abandoned.wait(30)
        work.await_farewell()
        holding.rollback()
        return run_call(self, *given)

    monkeypatch.setattr(SharedTransaction, "run_call", perform_abandoned)
    does(lambda session, number: None)
    with engine.connect() as other, other.begin() as holding:
        ids = numbered(engine, 3)
        with at_work(app) as work:
            await_(is_abandoned.is_set, "it is abandoned")
    assert (calls, written(engine), charged(engine)) == ([], [], [])


@pytest.mark.slow
@servers_only
def test_an_undone_call_that_waits_for_its_row_is_not_called_again(
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


@pytest.mark.slow
@servers_only
def test_calls_abandoned_after_a_failed_commit_are_not_called_again(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, is_abandoned: threading.Event
) -> None:
    """The connection is lost at the COMMIT. When the rows were read, the worker is abandoned, and one row is locked."""
    monkeypatch.setattr(lane_pool, "LONGEST_RELEASE", 0.3)
    finish, seen = SharedTransaction.finish, list[Any]()

    def lose(connection: Any) -> None:
        if seen and connection is seen[0]:
            disconnect(connection)

    def finish_and_wait(self: SharedTransaction, outcomes: Any) -> None:
        finish(self, outcomes)
        lock(other, ids[1])
        work.abandon()
        assert is_abandoned.wait(30)

    monkeypatch.setattr(SharedTransaction, "finish", finish_and_wait)
    event.listen(Engine, "commit", lose)
    does(lambda session, number: seen.append(session.connection()))
    try:
        with engine.connect() as other, other.begin() as holding:
            ids = numbered(engine, 3)
            with at_work(app) as work:
                await_(is_abandoned.is_set, "it is abandoned")
                work.await_farewell()
                assert is_released(engine, ids[0], ids[2])
                holding.rollback()
    finally:
        event.remove(Engine, "commit", lose)
    assert calls == [0, 1, 2]
    assert (written(engine), charged(engine)) == ([], [])


@pytest.mark.slow
@servers_only
@pytest.mark.parametrize("ends", [True, False])
def test_a_parked_call_of_an_abandoned_transaction_is_released_at_once(
    app: AsyncTask, engine: Engine, is_abandoned: threading.Event, ends: bool
) -> None:
    """The second call meets a lock error, and would be parked after the transaction. The third one is abandoned,
    whether it returns or not."""
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
            assert is_released(engine, *ids)
            gate.opened.set()
    assert (calls, written(engine), charged(engine)) == ([0, 1, 2], [], [])
    assert [row_of(engine, one).num_attempts for one in ids] == [1, 1, 1, 0, 0]
