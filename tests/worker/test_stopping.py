"""Stopping is bounded, whatever the database and the targets do."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from async_task import AsyncTask, Status
from async_task.outcomes import Outcome
from async_task.queue.claim import Claim
from async_task.queue.workers import STOPPED
from async_task.schema.tables import Worker
from async_task.worker import heartbeat, lane_pool, runtime, worker
from async_task.worker.bounded import finish_within
from async_task.worker.processes.parent import Children
from claims import TABLE
from clockwork import forget_beats, let_pass, row_of
from conftest import by_one_door
from elsewhere import await_
from outbox import act_in_async_session, act_leased, acts, calls, events_of, will
from workers import AtWork, at_work, make


def test_work_that_takes_longer_is_left_to_itself() -> None:
    gate = threading.Event()
    assert not finish_within(0.01, "slow", gate.wait)
    gate.set()
    assert finish_within(10, "quick", gate.wait)
    assert not finish_within(10, "failing", lambda: 1 / 0)


@contextlib.contextmanager
def _opened(calling: Any) -> Iterator[Callable[[Claim], Outcome]]:
    raise AssertionError("no call is made")
    yield


def test_a_process_that_a_target_left_behind_does_not_keep_the_child_processes_from_ending() -> None:
    """It has inherited the socket by whose end they notice that their worker ends."""
    children = Children(_opened)
    children.prepare()
    left = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    left.start()
    try:
        began = time.monotonic()
        children.close()
        assert time.monotonic() - began < 5
        assert left.is_alive()
    finally:
        assert left.pid is not None
        os.kill(left.pid, signal.SIGKILL)
        left.join()


@by_one_door
@pytest.mark.only_on("postgresql")
def test_a_worker_ends_although_another_session_has_locked_the_table_and_no_call_is_charged(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LONGEST_END", 0.3)
    monkeypatch.setattr(runtime, "LONGEST_FAREWELL", 1.0)
    monkeypatch.setattr(heartbeat, "LONGEST_STOP", 0.1)
    made, may_return = make(engine, act_leased, 1), threading.Event()
    before = set(threading.enumerate())
    acts[:] = [lambda: calls.append("act") or may_return.wait(30)]
    running = app.worker(concurrency=1, poll=0.05, grace=0.2)
    thread = threading.Thread(target=running.run)
    thread.start()
    await_(lambda: bool(calls), "the call begins")
    with engine.begin() as holder:
        holder.execute(text("LOCK TABLE async_task_attempts IN ACCESS EXCLUSIVE MODE"))
        may_return.set()
        running.stop()
        thread.join(timeout=10)
        assert not thread.is_alive()
        assert holder.scalars(select(Worker.kind)).all() == [STOPPED]
    for one in set(threading.enumerate()) - before:  # those it has left behind write and release what they can
        one.join(timeout=30)
    let_pass(engine, 60)
    forget_beats(engine)
    app.sweep()
    row = row_of(engine, made[0])
    assert row.status in (Status.PENDING, Status.SUCCEEDED)
    assert (row.claim_id, row.num_crashes, row.num_errors) == (None, 0, 0)


@by_one_door
@pytest.mark.only_on("postgresql")
def test_an_abandoned_call_that_could_not_be_released_counts_as_started(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next start would have the same number: one that the world outside has seen already."""
    monkeypatch.setattr(lane_pool, "LONGEST_RELEASE", 0.2)
    monkeypatch.setattr(worker, "LONGEST_END", 0.3)
    monkeypatch.setattr(runtime, "LONGEST_FAREWELL", 1.0)
    monkeypatch.setattr(heartbeat, "LONGEST_STOP", 0.1)
    (attempt_id,), may_return = make(engine, act_leased, 1), threading.Event()
    acts[:] = [lambda: calls.append("act") or may_return.wait(30)]
    working = AtWork(app)
    await_(lambda: bool(calls), "the call begins")
    with engine.begin() as holder:
        holder.execute(select(TABLE.c.id).where(TABLE.c.id == attempt_id).with_for_update())
        working.abandon()
        working.await_farewell()
    let_pass(engine, 60)
    forget_beats(engine)
    app.sweep()
    row = row_of(engine, attempt_id)
    may_return.set()
    working.await_lanes()
    assert (row.status, row.claim_id, row.num_attempts, row.num_errors) == (Status.PENDING, None, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("door", ["async"])
def test_an_abandoned_coroutine_with_a_session_is_charged_no_error(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is canceled, which is no error of its own."""
    release = lane_pool.LanePool._release_abandoned

    def release_later(pool: lane_pool.LanePool, claims: list[Claim]) -> None:
        pool.coroutines.slots.wait(30)  # whoever is first: an outcome that is written would be there by then
        release(pool, claims)

    monkeypatch.setattr(lane_pool.LanePool, "_release_abandoned", release_later)

    async def called(session: AsyncSession) -> None:
        calls.append("begun")
        await asyncio.sleep(60)

    will(called)
    (made,) = make(engine, act_in_async_session, 1)
    with at_work(app) as work:
        await_(lambda: calls, "the call begins")
        work.abandon()
        work.await_farewell()
    row = row_of(engine, made)
    assert (row.status, row.claim_id, row.num_attempts) == (Status.PENDING, None, 1)
    assert (row.num_errors, row.num_crashes, row.num_losses) == (0, 0, 0)
    assert [event.kind for event in events_of(engine, made)] == ["parked"]
