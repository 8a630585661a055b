"""Interruptions: busy pools, Ctrl-C, errors of other databases, targets that change their own row. No attempt is lost,
doubled, or charged for what is not its fault."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, event, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from async_task import (
    AsyncTask,
    Attempt,
    Failed,
    Retried,
    Retry,
    Status,
    Succeeded,
    current_attempt,
    target,
)
from async_task.schema.tables import Worker
from clockwork import row_of
from databases import Database
from outbox import Broken, act, act_in_session, act_leased, calls, effects, will

Write = Callable[..., Attempt]
LEASE = 1.0


@target("test.interruptions.cancel_itself")
async def cancel_itself(and_wait: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    if and_wait:
        await asyncio.sleep(0)


@pytest.mark.slow
@pytest.mark.parametrize("and_wait", [False, True])
def test_an_async_target_that_cancels_its_own_task_is_charged_with_an_error(
    app: AsyncTask, engine: Engine, write: Write, and_wait: bool
) -> None:
    attempt, other = write(cancel_itself, None, {"and_wait": and_wait}), write(act)
    will(lambda: None)
    assert app.run_batch(concurrency=1).succeeded == 1
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.num_errors) == (Status.PENDING, None, 1)
    assert row_of(engine, other.id).status == Status.SUCCEEDED


MINUTES = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000000000) SELECT count(*) FROM c"


@target("test.interruptions.take_minutes", retry=Retry.every(60), timeout=0.3)
async def take_minutes(session: AsyncSession) -> None:
    await session.execute(insert(effects).values(what="undone"))
    await session.execute(text(MINUTES))


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("door", ["async"])
def test_a_coroutine_that_is_canceled_in_a_statement_does_not_keep_the_file_locked(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(take_minutes)
    assert isinstance(app.perform(attempt.id), Retried)
    with engine.begin() as connection:
        assert connection.scalars(select(effects.c.what)).all() == []
        connection.execute(insert(effects).values(what="written"))
    assert str(row_of(engine, attempt.id).last_error).startswith("TimeoutError: the call took longer")


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_calls_wait_for_a_free_connection_of_a_busy_pool_and_run_once(
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

    def occupy_the_pool() -> None:
        calls.append(1)
        if not held.is_set():
            threads.append(threading.Thread(target=hold))
            threads[0].start()
            held.wait(20)
            threading.Timer(0.7, ended.set).start()

    threads: list[threading.Thread] = []
    will(occupy_the_pool)
    report = app.run_batch(concurrency=1)
    threads[0].join()
    assert (report.succeeded, len(calls)) == (3, 3)
    assert {row_of(engine, one.id).num_attempts for one in attempts} == {1}
    small.dispose()


def test_ctrl_c_during_a_call_is_raised_after_the_outcome_is_committed(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(act, max_attempts=1)
    will(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        app.perform(attempt.id)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_errors) == (Status.SUCCEEDED, 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_ctrl_c_in_a_batch_starts_no_further_call_and_waits_for_the_running_ones(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempts = [write(act_leased) for _ in range(5)]
    stop = threading.Event()

    def interrupt() -> None:
        calls.append("begun")
        os.kill(os.getpid(), signal.SIGINT)
        stop.wait(30)  # the batch has noticed
        calls.append("ended")

    will(interrupt)
    with pytest.raises(KeyboardInterrupt):
        app.run_batch(concurrency=1, stop=stop)
    rows = [row_of(engine, one.id) for one in attempts]
    assert calls == ["begun", "ended"]
    assert sorted(row.status for row in rows) == [Status.PENDING] * 4 + [Status.SUCCEEDED]
    assert all(row.claim_id is None for row in rows)


def test_ctrl_c_while_a_batch_starts_its_threads_waits_for_them_and_starts_no_call(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a thread that is just being started would not be waited for."""
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


def test_an_error_of_another_database_is_charged_to_the_target(
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
def test_a_target_that_changes_its_own_row_fails_and_its_change_is_undone(
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


def test_a_process_that_has_ended_its_work_is_no_running_worker(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(act)
    will(lambda: calls.append(row_of(engine, attempt.id).claimed_by))
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    with engine.connect() as connection:
        assert calls[0] not in list(connection.scalars(select(Worker.name)))


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("lease", [LEASE])
def test_after_an_outage_a_sweep_waits_for_heartbeats_before_it_recovers_claims(
    app: AsyncTask, engine: Engine, write: Write, database: Database
) -> None:
    """The worker's heartbeat comes half a lease after the sweep could connect."""
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


def test_an_error_text_that_the_database_cannot_store_is_stored_in_ascii(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from async_task.queue import fenced_writes

    write_outcome = fenced_writes.write_outcome

    def refuse_other_characters(connection: Any, table: Any, claim: Any, decision: Any, failure: Any) -> bool:
        if failure is not None:
            failure.summary.encode("latin-1")
        return write_outcome(connection, table, claim, decision, failure)

    monkeypatch.setattr(fenced_writes, "write_outcome", refuse_other_characters)

    def fail() -> None:
        raise Broken("price in \N{EURO SIGN}")

    attempt = write(act)
    will(fail)
    assert isinstance(app.perform(attempt.id), Retried)
    assert row_of(engine, attempt.id).last_error == "Broken: price in \\u20ac"


REFUSING = {
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.status = 'succeeded' THEN "
        "RAISE EXCEPTION 'no success today'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    "mysql": [
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts FOR EACH ROW IF NEW.status = 'succeeded' THEN "
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no success today'; END IF"
    ],
    "sqlite": [
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts WHEN NEW.status = 'succeeded' BEGIN "
        "SELECT RAISE(ABORT, 'no success today'); END"
    ],
}
ALLOWING = {
    "postgresql": "DROP FUNCTION refuse CASCADE",
    "mysql": "DROP TRIGGER refuse",
    "sqlite": "DROP TRIGGER refuse",
}


@target("test.interruptions.refused", retry=Retry.schedule(0))
async def refused_later() -> None:
    calls.append("later")


@target("test.interruptions.refused_leased", mode="leased", retry=Retry.schedule(0))
def refused_leased() -> None:
    calls.append("leased")


@target("test.interruptions.refused_locked", retry=Retry.schedule(0))
def refused_locked(session: Session) -> None:
    calls.append("locked")


@pytest.mark.slow
@pytest.mark.parametrize("fn", [refused_later, refused_leased, refused_locked])
def test_a_call_whose_outcome_the_database_refuses_is_charged_and_not_made_for_ever(
    app: AsyncTask, engine: Engine, write: Write, fn: Callable[..., Any]
) -> None:
    attempt = write(fn)
    with engine.begin() as connection:
        for statement in REFUSING[engine.dialect.name]:
            connection.execute(text(statement))
    try:
        for _ in range(3):
            app.run_batch()
    finally:
        with engine.begin() as connection:
            connection.execute(text(ALLOWING[engine.dialect.name]))
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_errors, len(calls)) == (Status.FAILED, 2, 2)
    assert "no success today" in row.last_error


def test_listeners_of_the_users_engine_see_the_transactions_of_targets(
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
