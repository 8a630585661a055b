"""Slow calls, waiting COMMITs, stops and abandoned workers, where the row of the next call is locked already."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from async_task import AsyncTask, Status, Succeeded
from async_task.execution import batch_executor
from async_task.execution.transaction import CallTransaction
from async_task.worker.batch_workload import BatchWorkload
from clockwork import row_of
from elsewhere import await_
from following_calls import each, is_locked, run
from outbox import calls
from shared_calls import does, lock, numbered, written
from workers import at_rest, at_work, counted, working

pytestmark = [pytest.mark.only_on("postgresql"), pytest.mark.usefixtures("many_at_once")]


def test_a_call_that_was_locked_when_the_worker_stops_is_released_uncharged(
    plain: AsyncTask, engine: Engine, followed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = BatchWorkload.is_over
    monkeypatch.setattr(BatchWorkload, "is_over", lambda self: bool(followed) or is_over(self))
    ids = numbered(engine, 3, each)
    run(plain)
    assert followed == [True]
    assert calls == [0]
    for one in ids[1:]:
        row = row_of(engine, one)
        assert (row.status, row.claim_id, row.num_attempts, row.attempted_at) == (Status.PENDING, None, 0, None)
        assert not is_locked(engine, one)


@pytest.mark.slow
def test_a_slow_call_lets_go_of_the_calls_behind_it(
    plain: AsyncTask, engine: Engine, followed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog releases what waits, and not the running call, whose row was locked with the commit before it."""
    monkeypatch.setattr(batch_executor, "LONGEST_ALONE", 0.05)
    slow, go_on = threading.Event(), threading.Event()

    def act(session: Session, number: int) -> None:
        if number == 1 and not slow.is_set():
            slow.set()
            assert go_on.wait(30)

    does(act)
    ids = numbered(engine, 5, each)
    with working(plain, concurrency=2):
        try:
            await_(lambda: sorted(calls) == list(range(5)), "another lane has called the others")
            assert row_of(engine, ids[1]).status is Status.PENDING
        finally:
            go_on.set()
        await_(lambda: at_rest(engine), "all are called")
    assert written(engine) == list(range(5))
    assert {row_of(engine, one).num_attempts for one in ids} == {1}
    assert followed[0]


def test_a_call_that_is_abandoned_with_its_worker_is_released(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    go_on = threading.Event()

    def act(session: Session, number: int) -> None:
        if number == 1:
            assert go_on.wait(30)

    does(act)
    ids = numbered(engine, 4, each)
    with at_work(plain, grace=0.1) as worker:
        try:
            await_(lambda: calls == [0, 1], "the second one runs")
            worker.abandon()
            worker.await_farewell()
            assert [row_of(engine, one).claim_id for one in ids] == [None] * 4
            assert written(engine) == [0]
        finally:
            go_on.set()
        worker.await_lanes()
    assert followed == [True]
    assert written(engine) == [0]
    assert counted(engine) == {"succeeded": 1, "pending": 3}


def test_a_call_that_is_abandoned_before_it_starts_is_not_made(
    plain: AsyncTask, engine: Engine, followed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is abandoned when the row of the next call is locked, and its call has not started."""
    chosen, go_on = threading.Event(), threading.Event()
    executor = batch_executor.BatchExecutor
    perform = executor._perform_alone

    def wait(self: Any, ahead: Any) -> None:
        if followed and not chosen.is_set():
            chosen.set()
            assert go_on.wait(30)
        perform(self, ahead)

    monkeypatch.setattr(executor, "_perform_alone", wait)
    ids = numbered(engine, 3, each)
    _abandon_between(plain, chosen, go_on)
    assert calls == [0]
    assert written(engine) == [0]
    assert [row_of(engine, one).claim_id for one in ids] == [None] * 3
    assert not any(is_locked(engine, one) for one in ids)


def test_a_row_that_somebody_else_has_locked_is_not_waited_for(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    """The outcome of the call before is known at once, and the calls behind go on."""
    ids = numbered(engine, 4, each)
    with engine.connect() as other, working(plain, concurrency=2) as worker:
        try:
            does(lambda session, number: lock(other, ids[1]) if number == 0 else None)
            await_(lambda: worker.tally[Succeeded] == 1 and followed == [False], "the first one is counted")
            assert 1 not in calls
        finally:
            other.rollback()
        await_(lambda: at_rest(engine), "all are called")
    assert sorted(calls) == list(range(4))


@pytest.fixture
def slow_commit(engine: Engine) -> Iterator[Connection]:
    """Until this connection ends its transaction, a COMMIT waits that has written "0"."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW WHEN (NEW.what = '0') EXECUTE FUNCTION wait_at_commit()"
            )
        )
    with engine.connect() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(4711)"))
        yield holder
    with engine.begin() as connection:
        connection.execute(text("DROP FUNCTION wait_at_commit CASCADE"))


@pytest.mark.slow
def test_a_commit_that_waits_lets_go_of_the_calls_behind_it(
    plain: AsyncTask, engine: Engine, slow_commit: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_executor, "LONGEST_ALONE", 0.05)
    ids = numbered(engine, 5, each)
    with working(plain, concurrency=2):
        # Two lanes that claim at once may each get some of them: then the second call is behind no other one.
        await_(lambda: written(engine)[-3:] == [2, 3, 4], "another lane has performed the others")
        assert sorted(calls) == [0, *written(engine)]
        slow_commit.rollback()
        await_(lambda: at_rest(engine), "all are called")
    assert written(engine) == list(range(5))
    assert {row_of(engine, one).num_attempts for one in ids} == {1}


def test_calls_behind_a_commit_that_waits_are_released_uncharged_with_their_worker(
    plain: AsyncTask, engine: Engine, slow_commit: Connection
) -> None:
    ids = numbered(engine, 4, each)
    with at_work(plain, grace=0.1) as worker:
        await_(lambda: calls == [0], "the first one runs")
        await_(lambda: _is_waiting(engine), "its COMMIT waits")
        worker.abandon()
        worker.await_farewell()
        slow_commit.rollback()
        worker.await_lanes()
    for one in ids[1:]:
        row = row_of(engine, one)
        assert (row.status, row.claim_id, row.num_attempts, row.last_error) == (Status.PENDING, None, 0, None)
    assert calls == [0]


def _is_waiting(engine: Engine) -> bool:
    with engine.connect() as connection:
        found = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        return bool(connection.scalar(text(found)))


def test_once_the_worker_stops_no_row_is_locked(plain: AsyncTask, engine: Engine, followed: list[bool]) -> None:
    ids = numbered(engine, 3, each)
    with at_work(plain) as worker:
        does(lambda session, number: worker.stop())
        await_(lambda: counted(engine).get("succeeded") == 1, "the first one is called")
        worker.await_farewell()
    assert calls == [0]
    assert followed == []
    assert [row_of(engine, one).num_attempts for one in ids] == [1, 0, 0]


def test_a_call_that_is_abandoned_as_it_starts_is_not_made(
    plain: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is abandoned when the call counts as running, and before its target is called."""
    begun, go_on = threading.Event(), threading.Event()
    continue_with = CallTransaction.continue_with

    def wait(self: CallTransaction, claim: Any) -> bool:
        continues = continue_with(self, claim)
        if continues and not begun.is_set():
            begun.set()
            assert go_on.wait(30)
        return continues

    monkeypatch.setattr(CallTransaction, "continue_with", wait)
    ids = numbered(engine, 3, each)
    _abandon_between(plain, begun, go_on)
    assert calls == [0]
    assert [row_of(engine, one).claim_id for one in ids] == [None] * 3
    assert not any(is_locked(engine, one) for one in ids)


def _abandon_between(app: AsyncTask, begun: threading.Event, go_on: threading.Event) -> None:
    """Abandon a worker once its thread has `begun` to wait for `go_on`."""
    with at_work(app, grace=0.1) as worker:
        try:
            assert begun.wait(30)
            worker.abandon()
            worker.await_farewell()
        finally:
            go_on.set()
        worker.await_lanes()
