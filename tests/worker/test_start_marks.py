"""Where a claim begins: an old snapshot keeps the index entries of all attempts that were claimed since."""

import asyncio
import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt
from async_task.database.clock import clock_now
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.execution import adaptive
from async_task.execution.adaptive import LONGEST_REST, QueryCost
from async_task.queue import fetch, ordering
from async_task.queue.fenced_writes import release_claims
from async_task.schema.tables import table_of
from async_task.worker import start_marks
from async_task.worker.claimer import Claimer
from async_task.worker.runtime import Runtime
from async_task.worker.start_marks import EARLIEST, PRIORITIES, StartMarks
from async_task.worker.worker import AttemptWorker
from elsewhere import await_
from outbox import act, act_later, will
from workers import counted, make, working

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


def test_the_first_claim_begins_at_the_front() -> None:
    assert StartMarks().at(0.0) == []


def from_front(
    marks: StartMarks, latest: dict[int, dt.datetime], now: float, took: float = 1.0, *, is_all: bool = True
) -> None:
    """A claim from the front."""
    marks.note(latest, [], is_all=is_all, now=now, took=took)


def expensive_marks() -> StartMarks:
    """At noon in priority 0; a claim from the front took 1 s, until 0.0."""
    marks = StartMarks()
    for now in (-1.0, 0.0):
        from_front(marks, {0: NOON}, now)
    return marks


def onward(marks: StartMarks, latest: dict[int, dt.datetime], now: float, *, is_all: bool = True) -> dt.datetime:
    """A claim from where it is to begin: where it did in priority 0."""
    began = marks.at(now)
    marks.note(latest, began, is_all=is_all, now=now, took=0.001)
    return began[0]


def test_after_a_claim_from_the_front_others_begin_where_it_ended_for_nine_times_its_duration() -> None:
    marks = StartMarks()
    from_front(marks, {0: NOON - SECOND}, 99.0, 0.6)
    from_front(marks, {0: NOON, 7: NOON - SECOND}, 100.0, 0.5)
    wanted: dict[int, Any] = dict.fromkeys(PRIORITIES, EARLIEST) | {0: NOON, 7: NOON - SECOND}
    assert marks.at(104.4) == list(wanted.values())
    assert marks.until_front(104.4) == pytest.approx(0.1)
    assert marks.until_front(104.6) == 0
    assert marks.at(104.6) == []


def test_one_lane_claims_from_the_front_while_the_others_go_on() -> None:
    marks = expensive_marks()
    assert marks.at(9.0) == []
    assert marks.at(9.0)[0] == NOON
    assert marks.until_front(9.5) == 8.5
    assert marks.at(18.0) == [], "the lane has failed: another one takes its place"


def test_a_claim_from_the_front_that_is_requested_during_another_one_is_made() -> None:
    marks = StartMarks()
    from_front(marks, {0: NOON}, -1.0)
    marks.request_front()
    assert marks.at(0.0) == []
    marks.request_front()
    from_front(marks, {0: NOON}, 1.0)
    assert marks.until_front(1.0) == 0
    assert marks.at(1.0) == []
    assert marks.at(1.0)[0] == NOON


def test_a_mark_moves_forward_only() -> None:
    marks = expensive_marks()
    onward(marks, {3: NOON}, 0.4)
    onward(marks, {3: NOON - SECOND}, 0.5)
    assert marks.at(1.0)[3] == NOON
    onward(marks, {3: NOON + SECOND}, 1.0)
    assert marks.at(1.0)[3] == NOON + SECOND


def test_a_claim_begins_once_at_the_earliest_attempt_that_was_released() -> None:
    marks = expensive_marks()
    for seconds in (2, 3, 1):
        marks.lower(0, NOON - seconds * SECOND)
    marks.lower(1, NOON)
    assert marks.until_front(1.0) == 0
    assert onward(marks, {0: NOON - SECOND}, 1.0) == NOON - 3 * SECOND
    assert onward(marks, {}, 1.0) == NOON
    assert marks.until_front(1.0) == 8


def test_a_claim_that_did_not_reach_the_mark_is_continued() -> None:
    marks = expensive_marks()
    marks.lower(0, NOON - 3 * SECOND)
    onward(marks, {0: NOON - 2 * SECOND}, 1.0, is_all=False)
    assert onward(marks, {0: NOON - SECOND}, 1.0, is_all=False) == NOON - 2 * SECOND
    assert onward(marks, {0: NOON}, 1.0) == NOON - SECOND
    assert onward(marks, {}, 1.0) == NOON


def test_of_a_limited_claim_only_what_it_did_not_reach_is_continued() -> None:
    marks = expensive_marks()
    onward(marks, {5: NOON, 7: NOON}, 0.5)
    for priority in (0, 5, 7):
        marks.lower(priority, NOON - 3 * SECOND)
    onward(marks, {5: NOON - 2 * SECOND}, 1.0, is_all=False)
    at = marks.at(1.0)
    assert [at[priority] for priority in (0, 5, 7)] == [NOON, NOON - 2 * SECOND, NOON - 3 * SECOND]


def test_a_claim_from_the_front_that_did_not_reach_the_mark_is_continued() -> None:
    marks = expensive_marks()
    onward(marks, {7: NOON}, 0.5)
    from_front(marks, {0: NOON - SECOND}, 1.0, is_all=False)
    at = marks.at(1.0)
    assert (at[0], at[7]) == (NOON - SECOND, EARLIEST), "the less urgent ones were not searched"


def test_what_is_released_during_a_claim_is_found_by_the_next_one() -> None:
    marks = expensive_marks()
    began = marks.at(1.0)
    marks.lower(0, NOON)
    marks.note({0: NOON + SECOND}, began, is_all=True, now=1.0, took=0.001)
    assert onward(marks, {}, 1.0) == NOON


def test_a_claim_from_a_mark_does_not_delay_the_next_one_from_the_front() -> None:
    marks = expensive_marks()
    onward(marks, {0: NOON}, 8.9)
    assert marks.at(9.0) == []


def test_every_claim_begins_at_the_front_as_long_as_that_is_cheap() -> None:
    marks = StartMarks()
    for _ in range(2):
        from_front(marks, {0: NOON}, 0.0, 0.01)
    assert marks.at(0.0) == []
    assert marks.at(0.0) == []


def test_a_claim_begins_at_the_front_now_and_then_however_expensive_that_is() -> None:
    marks = StartMarks()
    for now in (-1_000.0, 0.0):
        from_front(marks, {0: NOON}, now, 1_000.0)
    assert marks.until_front(0.0) == LONGEST_REST


@pytest.fixture
def runtime(engine: Engine, expensive: None) -> Iterator[Runtime]:
    with Runtime(Source(engine), Attempt, dt.timedelta(seconds=5)) as runtime:
        yield runtime


@pytest.fixture
def lane(runtime: Runtime) -> Iterator[Lane]:
    with open_lane(runtime.source, private=True) as lane:
        yield lane


@pytest.fixture
def expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every claim from the front took long."""
    monkeypatch.setattr(adaptive, "rest_after", lambda seconds: LONGEST_REST)


def make_due(engine: Engine, seconds_ago: float, priority: int = 0, **options: Any) -> uuid.UUID:
    """An attempt that has been due for so long."""
    with Session(engine) as session, session.begin():
        attempt = Attempt.create(target=act, priority=priority, session=session, **options)
        session.flush()
        session.execute(update(Attempt).where(Attempt.id == attempt.id).values(due_at=clock_now(-seconds_ago)))
        return attempt.id


def claim(runtime: Runtime, lane: Lane, number: int) -> tuple[list[uuid.UUID], dt.timedelta | None]:
    request = runtime.claimer.request("default", number)
    claims, after = lane.run(lambda: runtime.claimer.claim(lane, request, is_limited=False))
    return [one.id for one in claims], after


@pytest.mark.only_on("postgresql")
def test_attempts_due_before_the_mark_wait_for_a_claim_from_the_front_and_the_claim_says_when(
    runtime: Runtime, lane: Lane, engine: Engine
) -> None:
    first, second, third = (make_due(engine, ago) for ago in (30, 20, 10))
    assert claim(runtime, lane, 2) == ([first, second], None)
    late, urgent = make_due(engine, 40), make_due(engine, 50, priority=3)
    found, after = claim(runtime, lane, 10)
    assert found == [third, urgent]  # a priority of which nothing was claimed yet begins at the front
    assert after is not None
    assert LONGEST_REST - 5 < after.total_seconds() <= LONGEST_REST
    runtime.claimer.start_at_front("default")
    assert claim(runtime, lane, 10) == ([late], None)


@pytest.mark.only_on("postgresql")
def test_attempts_that_were_released_are_claimed_next_wherever_the_marks_are(
    runtime: Runtime, lane: Lane, engine: Engine
) -> None:
    _, second, third = (make_due(engine, ago) for ago in (30, 20, 10))
    request = runtime.claimer.request("default", 3)
    claims, _ = lane.run(lambda: runtime.claimer.claim(lane, request, is_limited=False))
    make_due(engine, 25)
    release_claims(engine, table_of(Attempt), claims[1:])
    runtime.claimer.note_released(claims[1:])
    assert claim(runtime, lane, 1) == ([second], None)
    found, after = claim(runtime, lane, 10)
    assert found == [third]
    assert after is not None
    assert after.total_seconds() > LONGEST_REST - 5


@pytest.mark.only_on("postgresql")
def test_after_a_claim_that_failed_the_next_one_begins_at_the_front(
    runtime: Runtime, lane: Lane, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_due(engine, 20)
    assert len(claim(runtime, lane, 2)[0]) == 1
    late = make_due(engine, 40)
    with monkeypatch.context() as broken:
        broken.setattr(fetch, "claim_due", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            claim(runtime, lane, 2)
    assert claim(runtime, lane, 2) == ([late], None)


@pytest.mark.only_on("postgresql")
def test_attempts_due_at_the_very_instant_of_the_mark_are_all_found(
    runtime: Runtime, lane: Lane, engine: Engine
) -> None:
    ids = sorted(make_due(engine, 10) for _ in range(4))
    with engine.begin() as connection:
        connection.execute(update(Attempt).values(due_at=NOON - 300 * 365 * 24 * 3600 * SECOND + SECOND / 3))
    assert claim(runtime, lane, 1) == ([ids[0]], None)
    assert sorted(claim(runtime, lane, 2)[0] + claim(runtime, lane, 2)[0]) == ids[1:]


@pytest.mark.only_on("postgresql")
def test_coroutines_left_out_of_a_claim_for_lack_of_slots_are_found_by_the_next_one(
    runtime: Runtime, lane: Lane, engine: Engine
) -> None:
    left_out = make_due(engine, 20)
    request = runtime.claimer.request("default", 5, besides=[("test.act", "__call__")])
    assert lane.run(lambda: runtime.claimer.claim(lane, request, is_limited=False)) == ([], None)
    assert claim(runtime, lane, 5) == ([left_out], None)


@pytest.mark.only_on("mysql", "sqlite")
def test_on_other_databases_every_claim_begins_at_the_front(runtime: Runtime, lane: Lane, engine: Engine) -> None:
    first = make_due(engine, 10)
    assert claim(runtime, lane, 1) == ([first], None)
    late = make_due(engine, 20)
    assert claim(runtime, lane, 5) == ([late], None)


class Dear(QueryCost):
    """As if every claim from the front took long."""

    @property
    def rest(self) -> float:
        return LONGEST_REST

    def note(self, seconds: float, *, now: float) -> float:
        return LONGEST_REST


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """All claims but the first one begin at the marks: the first sweep of a worker finds nothing, whenever it ends."""
    monkeypatch.setattr(start_marks, "QueryCost", Dear)
    monkeypatch.setattr(Claimer, "start_all_at_front", lambda self: None)


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("by", ["its own process", "a sweep"])
def test_the_next_coroutine_of_an_order_key_does_not_wait_for_a_claim_from_the_front(
    engine: Engine, by: str, dear: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "a sweep":
        release = ordering.release
        monkeypatch.setattr(ordering, "release", lambda *given: release(*given)[:0])
    will(lambda: asyncio.sleep(0.005))
    make(engine, act_later, 3, order_key="one after the other")
    make(engine, act_later, 60)
    with working(AsyncTask(engine), concurrency=1, async_concurrency=2):
        await_(lambda: counted(engine) == {"succeeded": 63}, "all are called", patience=LONGEST_REST / 2)


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
def test_the_first_attempt_of_a_new_order_key_does_not_wait_for_a_claim_from_the_front(
    engine: Engine, dear: None
) -> None:
    will(lambda: None)
    with working(AsyncTask(engine), concurrency=1):
        make(engine, act)
        await_(lambda: counted(engine) == {"succeeded": 1}, "the first claim is made, from the front")
        make_due(engine, 20, order_key="new")
        await_(lambda: counted(engine) == {"succeeded": 2}, "all are called", patience=LONGEST_REST / 2)


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
def test_calls_of_a_paused_target_do_not_wait_for_a_claim_from_the_front_when_it_is_resumed(
    engine: Engine, dear: None
) -> None:
    will(lambda: None)
    app = AsyncTask(engine)
    with working(app, concurrency=1) as worker:
        make(engine, act, queue="test.act")
        await_(lambda: counted(engine) == {"succeeded": 1}, "the first claim of its queue is made, from the front")
        app.pause(target=act)
        await_(lambda: _knows_pause(worker), "the worker knows that it is paused")
        make_due(engine, 20)
        await_(lambda: _queues(engine) == {"test.act"}, "it waits in the queue of its target")
        app.resume(target=act)
        await_(lambda: counted(engine) == {"succeeded": 2}, "all are called", patience=LONGEST_REST / 2)


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
def test_what_a_sweep_recovers_does_not_wait_for_a_claim_from_the_front(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_marks, "QueryCost", Dear)
    will(lambda: None)
    with Runtime(Source(engine), Attempt, dt.timedelta(seconds=0.2)) as dead, open_lane(dead.source) as lane:
        claim_id = make_due(engine, 20)
        assert claim(dead, lane, 1)[0] == [claim_id]
    with working(AsyncTask(engine, lease=0.2), concurrency=1):
        make(engine, act, 3)
        await_(lambda: counted(engine) == {"succeeded": 4}, "all are called", patience=LONGEST_REST / 2)


def _knows_pause(worker: AttemptWorker) -> bool:
    return worker._workload is not None and worker._workload.round_robin.paused == {"test.act"}


def _queues(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(select(Attempt.queue)))
