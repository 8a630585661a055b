"""What is nobody's fault, and what only looks so: busy pools, Ctrl-C, faults of other databases, targets that change
their own row. Nothing is lost, doubled, or charged to the wrong one."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from async_task import (
    AsyncTask,
    Attempt,
    Failed,
    Retried,
    Status,
    Succeeded,
    current_attempt,
    target,
)
from async_task.schema.tables import Worker
from clockwork import row_of
from databases import Database
from outbox import Broken, act, act_in_session, act_leased, calls, will

Write = Callable[..., Attempt]
LEASE = 1.0


@target("test.weather.cancel_itself")
async def cancel_itself(and_wait: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    if and_wait:
        await asyncio.sleep(0)


@pytest.mark.parametrize("and_wait", [False, True])
def test_an_async_target_that_cancels_its_own_task_is_an_error_of_its_own(
    app: AsyncTask, engine: Engine, write: Write, and_wait: bool
) -> None:
    attempt, other = write(cancel_itself, None, {"and_wait": and_wait}), write(act)
    will(lambda: None)
    assert app.run_batch(concurrency=1).succeeded == 1
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.num_errors) == (Status.PENDING, None, 1)
    assert row_of(engine, other.id).status == Status.SUCCEEDED


@pytest.mark.only_on("postgresql", "mysql")
def test_a_pool_without_a_free_connection_costs_time_and_no_call(
    database: Database, write: Write, engine: Engine
) -> None:
    small = create_engine(database.sync_url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    app = AsyncTask(small, lease=LEASE)
    held = threading.Event()

    def hold() -> None:
        with small.connect() as connection:
            connection.execute(select(1))
            held.set()
            ended.wait(20)

    ended = threading.Event()
    attempts = [write(act_leased) for _ in range(3)]

    def take_the_pool() -> None:
        calls.append(1)
        if not held.is_set():
            threads.append(threading.Thread(target=hold))
            threads[0].start()
            held.wait(20)
            threading.Timer(0.7, ended.set).start()

    threads: list[threading.Thread] = []
    will(take_the_pool)
    report = app.run_batch(concurrency=1)
    threads[0].join()
    assert (report.succeeded, len(calls)) == (3, 3)
    assert {row_of(engine, one.id).num_attempts for one in attempts} == {1}
    small.dispose()


def test_ctrl_c_while_an_attempt_is_performed_comes_after_its_outcome_is_written(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(act, max_attempts=1)
    will(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        app.perform(attempt.id)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_errors) == (Status.SUCCEEDED, 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_a_batch_starts_nothing_further_and_waits_for_what_is_in_hand(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempts = [write(act_leased) for _ in range(5)]
    after = threading.Event()

    def interrupt() -> None:
        calls.append("begun")
        os.kill(os.getpid(), signal.SIGINT)
        after.wait(0.3)
        calls.append("ended")

    will(interrupt)
    with pytest.raises(KeyboardInterrupt):
        app.run_batch(concurrency=1)
    rows = [row_of(engine, one.id) for one in attempts]
    assert calls == ["begun", "ended"]
    assert sorted(row.status for row in rows) == [Status.PENDING] * 4 + [Status.SUCCEEDED]
    assert all(row.claim_id is None for row in rows)


def test_ctrl_c_while_the_lanes_of_a_batch_are_started_waits_for_them_and_starts_nothing_further(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a thread that is just being started would not be waited for."""
    start, stop, lanes = threading.Thread.start, threading.Event(), list[threading.Thread]()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("async-task-lane"):
            lanes.append(thread)
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.is_set()

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    write(act_leased)
    will(lambda: None)
    with pytest.raises(KeyboardInterrupt):
        app.run_batch(concurrency=1, stop=stop)
    assert stop.is_set()
    assert [lane.is_alive() for lane in lanes] == [False]


def test_a_fault_of_another_database_is_the_targets_own_error(
    app: AsyncTask, engine: Engine, write: Write, tmp_path: Path
) -> None:
    def read_elsewhere(session: Session) -> None:
        with create_engine(f"sqlite:///{tmp_path}/missing/x.sqlite").connect():
            pass

    attempt = write(act_in_session)
    will(read_elsewhere)
    assert isinstance(app.perform(attempt.id), Retried)
    assert row_of(engine, attempt.id).num_errors == 1


@pytest.mark.parametrize("change", ["delete", "claim"])
def test_a_target_that_changes_its_own_row_has_failed_and_its_change_is_undone(
    app: AsyncTask, engine: Engine, write: Write, change: str
) -> None:
    table: Any = Attempt.__table__

    def tamper(session: Session) -> None:
        mine = table.c.id == current_attempt().id
        if change == "delete":
            session.execute(delete(table).where(mine))
        else:
            session.execute(table.update().where(mine).values(claim_id=None, lease_until=None, claimed_by=None))

    attempt = write(act_in_session)
    will(tamper)
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("changed_itself: InvalidState")
    assert row_of(engine, attempt.id).status == Status.FAILED


def test_a_process_that_works_no_more_holds_nothing(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act)
    will(lambda: calls.append(row_of(engine, attempt.id).claimed_by))
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    with engine.connect() as connection:
        assert calls[0] not in list(connection.scalars(select(Worker.name)))


@pytest.mark.only_on("postgresql", "mysql")
def test_after_an_outage_a_sweep_lets_the_living_beat_before_it_judges(
    app: AsyncTask, engine: Engine, write: Write, database: Database
) -> None:
    """The living worker is one that beats half a lease after the sweep could connect."""
    attempt = write(act_leased)
    elsewhere = create_engine(database.sync_url)
    other = AsyncTask(elsewhere, lease=LEASE)

    def outlast() -> None:
        table: Any = Attempt.__table__
        with engine.begin() as connection:
            lapsed = row_of(engine, attempt.id).attempted_at.replace(year=2001)
            connection.execute(table.update().values(lease_until=lapsed))
            connection.execute(Worker.__table__.update().values(beat_at=lapsed))
        calls.append(other.sweep().recovered)

    will(outlast)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert calls == [0]
    elsewhere.dispose()


def test_the_failure_of_a_call_that_cannot_be_stored_as_it_is_said_in_ascii(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from async_task.queue import fenced_writes

    written_as_said = fenced_writes.write_outcome

    def refuse_what_is_not_latin(connection: Any, table: Any, claim: Any, decision: Any, failure: Any) -> bool:
        if failure is not None:
            failure.summary.encode("latin-1")
        return written_as_said(connection, table, claim, decision, failure)

    monkeypatch.setattr(fenced_writes, "write_outcome", refuse_what_is_not_latin)

    def complain() -> None:
        raise Broken("price in \N{EURO SIGN}")

    attempt = write(act)
    will(complain)
    assert isinstance(app.perform(attempt.id), Retried)
    assert row_of(engine, attempt.id).last_error == "Broken: price in \\u20ac"


def test_what_the_users_engine_does_at_each_begin_is_done_for_targets_too(
    engine: Engine, door: str, async_engine_url: str, write: Write
) -> None:
    mine = create_async_engine(async_engine_url) if door == "async" else create_engine(engine.url)
    plain = mine.sync_engine if isinstance(mine, AsyncEngine) else mine
    begun: list[str] = []
    event.listen(plain, "begin", lambda connection: begun.append("begin"))
    attempt = write(act_in_session)
    will(lambda session: calls.append((session.scalar(select(1)), len(begun) > 0)))
    assert AsyncTask(mine, lease=LEASE).perform(attempt.id) == Succeeded(attempt.id)
    assert calls == [(1, True)]
    plain.dispose(close=door == "sync")
