"""Coroutines: slots are reserved before they are claimed, and the thread that settles them lasts."""

import asyncio
import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, QueuePool, StaticPool, create_engine, event, update
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from async_task import AsyncTask, Attempt, Discard, RetryAfter, Status, current_attempt
from async_task.database.clock import clock_now
from async_task.database.engines import keep_opened
from async_task.execution.adaptive import PollInterval
from async_task.worker import coroutines, lane_loop, poller, run_batch
from async_task.worker.slots import LINGER, Slots
from clockwork import row_of
from conftest import LEASE
from elsewhere import await_
from outbox import (
    Client,
    Gate,
    Gated,
    Meeting,
    act,
    act_in_async_session,
    act_later,
    application,
    calls,
    effects,
    gates,
    will,
)
from shared_calls import claim_many
from workers import counted, make, working


class OwnError(BaseException):
    """No Exception."""


@pytest.mark.slow
def test_what_is_raised_while_a_group_is_settled_ends_neither_the_thread_nor_the_batch(
    engine: Engine, door: str, async_engine_url: str, write: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    own: AsyncTask = application(engine, door, async_engine_url, lease=LEASE)
    will(lambda: None)
    ids = [write(act_later).id for _ in range(4)]
    settled: list[int] = []
    write_group = coroutines.write_group

    def write_once_raised(context: Any, group: Any) -> bool:
        settled.append(len(group))
        if len(settled) == 1:
            raise OwnError
        return write_group(context, group)

    monkeypatch.setattr(coroutines, "write_group", write_once_raised)
    for _ in range(2):  # what was lost is released, and is for a later batch
        own.run_batch(concurrency=1)
    assert len(settled) > 1
    assert {row_of(engine, one).status for one in ids} == {Status.SUCCEEDED}
    lost = [one for one in caplog.records if "is not settled: OwnError" in one.getMessage()]
    assert len(lost) == settled[0]
    own.close()


@pytest.mark.slow
def test_coroutines_that_found_no_slot_do_not_wait_for_the_plain_calls_of_their_claim(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch with a limit has room for them again as soon as they are released."""
    claim_many(partial(monkeypatch.setattr, raising=False))
    monkeypatch.setattr(run_batch, "LanePool", partial(run_batch.LanePool, async_concurrency=2))
    will(lambda: calls.append("act"))
    gate = gates["slow"] = Gate()
    make(engine, Gated, method_name="locked", method_args={"gate": "slow"})
    make(engine, act_later, 9)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(app.run_batch, limit=10, concurrency=2)
        gate.await_call()
        await_(lambda: counted(engine).get("succeeded") == 9, "the coroutines are called")
        gate.opened.set()
        assert running.result().succeeded == 10


def slots_of(number: int) -> tuple[Slots, list[str]]:
    asked: list[str] = []
    return Slots(number, lambda: True, asked.append), asked


def test_what_a_lane_has_reserved_no_other_one_gets() -> None:
    own, asked = slots_of(8)
    first, second = own.reserve(5, "mail"), own.reserve(5, "default")
    assert (first.number, second.number) == (5, 3)
    assert own.reserve(1, "default").number == 0
    first.use(0)
    assert asked == ["default"], "it was refused"
    assert own.reserve(8, "mail").number == 5
    second.use(0)
    assert asked == ["default"]


def test_while_few_are_free_one_lane_at_a_time_gets_all_of_them() -> None:
    own, asked = slots_of(8)
    first = own.reserve(7, "mail")
    waiting = own.reserve(1, "mail")
    assert waiting.number == 0
    first.grow(20)
    assert first.number == 8, "it has claimed them already"
    first.use(0)
    assert asked == ["mail"]
    assert own.reserve(8, "mail").number == 8
    assert asked == ["mail"], "nobody was refused since"


def test_slots_are_released_once() -> None:
    own, _ = slots_of(2)
    first = own.reserve(2, "mail")
    for _ in range(2):
        first.use(0)
    assert own.reserve(3, "mail").number == 2


def test_a_slot_that_is_used_is_free_after_it_was_freed() -> None:
    own, asked = slots_of(2)
    own.reserve(2, "mail").use(2)
    assert not own.wait(0)
    assert own.reserve(1, "default").number == 0
    assert own.free() == 0
    assert own.offer(), "whoever freed the slot requests all queues"
    assert own.free() is None
    assert own.wait(0)
    own.reserve(2, "default").use(0)
    assert asked == []


def test_few_free_slots_wait_for_others_so_that_one_claim_is_for_several() -> None:
    own, _ = slots_of(8)
    own.reserve(8, "mail").use(8)
    assert [own.free(), own.free(), own.free()] == [LINGER, 0, 0]
    assert [own.offer(), own.offer()] == [True, False]
    assert [own.free() for _ in range(5)] == [None] * 5, "all is told"


def test_few_free_slots_are_offered_after_a_moment_unless_a_lane_has_used_them() -> None:
    own, _ = slots_of(8)
    own.reserve(8, "mail").use(8)
    assert own.free() == LINGER
    assert own.offer()
    own.reserve(1, "mail").use(1)
    assert own.free() == LINGER
    own.reserve(1, "mail").use(1)
    assert not own.offer()
    assert own.free() == LINGER


def test_slots_that_another_queue_had_reserved_in_vain_are_for_a_queue_that_wants_more() -> None:
    own, asked = slots_of(8)
    own.reserve(8, "mail").use(8)
    own.want("mail")
    assert own.free() == LINGER
    other = own.reserve(1, "default")
    assert not own.offer(), "none is free"
    other.use(0)
    assert asked == ["mail"]


def test_slots_for_which_a_lane_got_other_calls_are_for_a_queue_that_wants_more() -> None:
    own, asked = slots_of(8)
    first = own.reserve(5, "mail")
    own.want("mail")
    first.use(2)
    assert asked == ["mail"]


def test_whoever_frees_slots_tells_a_queue_that_wants_more() -> None:
    own, asked = slots_of(8)
    first = own.reserve(8, "mail")
    own.want("mail")
    first.use(8)
    assert (asked, own.free(), own.free()) == ([], LINGER, 0)
    assert own.offer()


def note_released(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many claims each release by a lane is."""
    released, release = list[int](), lane_loop.release_claims

    def noting(where: Any, table: Any, claims: Any) -> None:
        released.append(len(claims))
        release(where, table, claims)

    monkeypatch.setattr(lane_loop, "release_claims", noting)
    return released


@pytest.mark.slow
def test_of_coroutines_no_more_are_claimed_than_can_be_started(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else lanes would claim them for the same slot, and release them again: two writes for nothing."""
    released = note_released(monkeypatch)

    async def nap() -> None:
        await asyncio.sleep(0.002)

    will(nap)
    make(engine, act_later, 60)
    with working(app, concurrency=4, async_concurrency=3):
        await_(lambda: counted(engine) == {"succeeded": 60}, "all are called")
    assert sum(released) <= 4, "each lane once, before the queue is known for its coroutines"


@pytest.mark.long
@pytest.mark.slow
def test_while_coroutines_wait_for_slots_lanes_turn_to_their_queue_when_slots_are_free(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the worker polls rarely."""
    turns, polls = list[int](), list[float]()
    serve, poll = lane_loop.LaneLoop._serve, poller.poll

    def serving(self: Any, lane: Any, queue: str) -> int:
        turns.append(serve(self, lane, queue))
        return turns[-1]

    def polling(*given: Any) -> Any:
        polls.append(time.monotonic())
        return poll(*given)

    monkeypatch.setattr(lane_loop.LaneLoop, "_serve", serving)
    monkeypatch.setattr(poller, "poll", polling)

    async def nap() -> None:
        await asyncio.sleep(0.01)

    will(nap)
    make(engine, act_later, 200)
    with working(app, concurrency=4, async_concurrency=2, poll=5.0):
        await_(lambda: counted(engine) == {"succeeded": 200}, "all are called")
    num_claims, seconds = sum(number > 0 for number in turns), polls[-1] - polls[0]
    most = 1.5 * num_claims + len(polls) + seconds / 0.05
    assert len(turns) <= most, "a lane does not look for a slot in vain after each claim"
    assert len(polls) <= 10 + seconds / (poller.WITHOUT_SLOTS * 0.7)


@pytest.mark.slow
@pytest.mark.only_on("postgresql")  # a poll of MariaDB does not tell when the next attempt is due
def test_while_coroutines_wait_for_slots_retries_are_made_when_they_are_due(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the worker polls by itself once a minute."""
    is_over = threading.Event()

    async def last() -> None:
        while not is_over.is_set():
            await asyncio.sleep(0.02)

    def behave() -> Any:
        if current_attempt().target == "test.act_later":
            return last()
        calls.append("tried")
        raise RetryAfter(after=0.1) if len(calls) < 10 else Discard("enough")

    will(behave)
    make(engine, act_later, 6)
    with working(app, concurrency=2, async_concurrency=2):
        await_(lambda: counted(engine), "it runs")
        monkeypatch.setattr(PollInterval, "next", lambda *_, **__: 60.0)
        make(engine, act, queue="other")
        await_(lambda: len(calls) == 10, "it is tried again and again", patience=8)
        is_over.set()


@pytest.mark.slow
def test_a_batch_performs_the_coroutines_of_an_order_key_in_other_queues_too(app: AsyncTask, engine: Engine) -> None:
    will(lambda: asyncio.sleep(0.01))
    for number in range(4):
        for queue in ("first", "first", "second"):
            make(engine, act_later, order_key=str(number), queue=queue)
    assert app.run_batch(concurrency=2).succeeded == 12
    for number in range(4):  # one key alone: nothing else keeps the batch going
        for queue in ("first", "first", "second"):
            make(engine, act_later, order_key=f"again {number}", queue=queue)
        assert app.run_batch(concurrency=2).succeeded == 3


@pytest.mark.slow
def test_more_coroutines_are_claimed_after_those_of_a_paused_target_were_released(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_batch, "LanePool", partial(run_batch.LanePool, async_concurrency=1))
    make(engine, act_later, 40)
    make(engine, Client, 150, method_name="ping")
    make(engine, act_later, 40)
    app.pause(target=Client)
    will(partial(asyncio.sleep, 0))
    assert app.run_batch(concurrency=2).succeeded == 80


@pytest.mark.long
@pytest.mark.slow
def test_while_coroutines_wait_for_slots_calls_of_another_queue_that_become_due_are_found(
    app: AsyncTask, engine: Engine
) -> None:
    async def nap() -> None:
        await asyncio.sleep(0.01)

    will(nap)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    [other] = make(engine, Client, method_name="ping", queue="other", scheduled_at=later)
    make(engine, act_later, 600)
    with working(app, concurrency=2, async_concurrency=2, poll=30.0):
        await_(lambda: counted(engine).get("succeeded", 0) > 200, "the coroutines are called")
        with engine.begin() as connection:  # so that nobody is notified
            connection.execute(update(Attempt).where(Attempt.id == other).values(due_at=clock_now()))
        await_(lambda: row_of(engine, other).status is Status.SUCCEEDED, "the other queue is served")
        assert counted(engine)["pending"] > 0, "at once"


@pytest.mark.slow
def test_coroutines_that_come_after_many_plain_calls_find_the_slots_that_are_free(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lanes have learned to claim many, and no coroutines."""
    released = note_released(monkeypatch)
    meeting = Meeting()
    will(meeting.join)
    with working(app, concurrency=2):
        make(engine, Client, 300, method_name="ping")
        await_(lambda: counted(engine) == {"succeeded": 300}, "plain calls are made")
        make(engine, act_later, 20)
        await_(lambda: meeting.number == 20, "all run at once")
        meeting.end()
    assert released == []


def note_queue(then: Callable[[], Any]) -> list[str]:
    """From now on each coroutine notes its queue. `then` is called in each."""
    found: list[str] = []

    async def note() -> None:
        found.append(current_attempt().queue)
        then()
        await asyncio.sleep(0.002)

    will(note)
    return found


@pytest.mark.slow
def test_queues_take_turns_at_the_slots(app: AsyncTask, engine: Engine) -> None:
    order = note_queue(lambda: None)
    for queue in ("mail", "default"):
        make(engine, act_later, 30, queue=queue)
    with working(app, concurrency=2, async_concurrency=1):
        await_(lambda: len(order) == 60, "all are called")
    assert set(order[:25]) == {"mail", "default"}


@pytest.mark.slow
def test_a_queue_is_served_whose_coroutines_come_when_those_of_another_one_take_all_slots(
    app: AsyncTask, engine: Engine
) -> None:
    def write_more() -> None:
        if len(order) == 1:
            make(engine, act_later, 3, queue="mail")

    order = note_queue(write_more)
    make(engine, act_later, 60)
    with working(app, concurrency=2, async_concurrency=1):
        await_(lambda: len(order) == 63, "all are called")
    assert order.index("mail") < 50


@pytest.mark.only_on("postgresql")
def test_connections_of_coroutines_stay_open(engine: Engine, async_engine_url: str) -> None:
    """Also those beyond `pool_size`, which SQLAlchemy would close after each call."""
    own = create_async_engine(async_engine_url, pool_size=1, max_overflow=3)
    opened: list[Any] = []
    event.listen(own.sync_engine, "connect", lambda connection, _: opened.append(threading.current_thread().name))

    async def write(session: AsyncSession) -> None:
        await session.execute(effects.insert().values(what="kept"))

    will(write)
    make(engine, act_in_async_session, 60)
    with working(AsyncTask(own), concurrency=1, async_concurrency=4):
        await_(lambda: counted(engine) == {"succeeded": 60}, "all are called")
    assert 0 < opened.count("async-task-loop") <= 4


@pytest.mark.parametrize(("overflow", "kept"), [(3, 5), (-1, 6)])
def test_a_pool_that_keeps_what_it_has_opened_opens_no_more_than_before(overflow: int, kept: int) -> None:
    own = create_engine("sqlite://", poolclass=QueuePool, pool_size=2, max_overflow=overflow, pool_timeout=0)
    keep_opened(own.pool)
    pool: Any = own.pool
    with contextlib.ExitStack() as until:
        for _ in range(kept):
            until.enter_context(contextlib.closing(own.raw_connection()))
        if overflow > 0:
            with pytest.raises(PoolTimeout):
                own.raw_connection()
    assert pool.checkedin() == kept
    own.dispose()


@pytest.mark.parametrize("kind", [NullPool, StaticPool])
def test_a_pool_of_another_kind_stays_as_it_is(kind: type[Any]) -> None:
    own = create_engine("sqlite://", poolclass=kind)
    before = dict(vars(own.pool))
    keep_opened(own.pool)
    assert vars(own.pool) == before
    own.dispose()
