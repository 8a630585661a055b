"""Numbers that adapt: batch sizes, the cost of a query, where in a queue a claim begins, the poll interval."""

import datetime as dt
import itertools
import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from async_task import Attempt
from async_task.database.clock import clock_now
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.execution import adaptive
from async_task.execution.adaptive import (
    EARLIEST,
    LONGEST_REST,
    MAX_BATCH_SIZE,
    PRIORITIES,
    BatchSize,
    OtherCalls,
    PollInterval,
    QueryCost,
    StartMarks,
)
from async_task.worker.runtime import Runtime
from outbox import act

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


# Batch sizes


def test_a_batch_size_grows_while_batches_take_half_of_the_budget_and_halves_when_they_exceed_it() -> None:
    size = BatchSize(budget=0.1)
    found = []
    for seconds in (0.05, 0.05, 0.01, 0.06, 0.1, 0.11):
        size.note(size.number, seconds)
        found.append(size.number)
    assert found == [2, 4, 16, 16, 16, 8]


def test_a_batch_size_stays_between_1_and_the_maximum_and_learns_nothing_from_smaller_batches() -> None:
    size = BatchSize(budget=0.1)
    size.note(1, 5.0)
    assert size.number == 1
    for _ in range(20):
        size.note(size.number, 0.0)
    assert size.number == MAX_BATCH_SIZE
    size.note(size.number, 1.0)
    size.note(1, 0.0)
    assert size.number == MAX_BATCH_SIZE // 2


# The cost of a query


def test_one_slow_run_is_not_taken_for_the_cost_of_a_query() -> None:
    cost = QueryCost()
    assert cost.note(0.1, now=1.0) == 0
    assert cost.note(4.0, now=5.5) == pytest.approx(0.9)
    assert cost.note(0.2, now=6.0) == pytest.approx(1.8)
    assert cost.note(0.1, now=7.0) == pytest.approx(0.9)


def test_runs_at_the_same_time_count_as_one_run() -> None:
    cost = QueryCost()
    cost.note(0.1, now=1.0)
    assert [cost.note(4.0, now=5.5 + number / 100) for number in range(4)] == [pytest.approx(0.9)] * 4
    assert cost.note(2.0, now=8.0) == 18


@pytest.mark.parametrize(("took", "rest"), [(0.0001, 0.05), (0.02, 0.18), (5, 1)])
def test_a_search_for_other_calls_that_found_too_few_is_repeated_after_a_rest(took: float, rest: float) -> None:
    others = OtherCalls()
    assert others.rest_of("mail", 7.0) == 0
    assert others.note("mail", 3, took, now=7.0) == pytest.approx(rest)
    assert others.rest_of("mail", 7.0) == pytest.approx(rest)
    assert others.rest_of("default", 7.0) == 0
    assert others.rest_of("mail", 7.0 + rest + 0.001) == 0


def test_searches_that_find_nothing_become_rarer() -> None:
    others, found = OtherCalls(), (0, 0, 0, 0, 0, 1, 0)
    rests = [others.note("mail", number, 0.0001, now=now) for now, number in enumerate(found)]
    assert rests == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.4, 0.05, 0.1])
    assert others.note("mail", 0, 0.0001, now=6.09) == pytest.approx(0.01), "at the same time as the last one"
    others.forget("mail")
    assert others.rest_of("mail", 6.09) == 0
    assert others.note("mail", 0, 0.0001, now=6.09) == pytest.approx(0.05)


# Where a claim begins: another session's old snapshot keeps the index entries of attempts that were claimed long ago


def test_the_first_claim_begins_at_the_front() -> None:
    assert StartMarks().at(0.0) == []


def test_after_a_claim_from_the_front_others_begin_where_it_ended_for_nine_times_its_duration() -> None:
    marks = StartMarks()
    marks.note({0: NOON - SECOND}, now=99.0, front_took=0.6)
    marks.note({0: NOON, 7: NOON - SECOND}, now=100.0, front_took=0.5)
    wanted: dict[int, Any] = dict.fromkeys(PRIORITIES, EARLIEST) | {0: NOON, 7: NOON - SECOND}
    assert marks.at(104.4) == list(wanted.values())
    assert marks.until_front(104.4) == pytest.approx(0.1)
    assert marks.until_front(104.6) == 0
    assert marks.at(104.6) == []


def test_one_lane_claims_from_the_front_while_the_others_go_on() -> None:
    marks = StartMarks()
    marks.note({0: NOON}, now=-1.0, front_took=1.0)
    marks.note({0: NOON}, now=0.0, front_took=1.0)
    assert marks.at(9.0) == []
    assert marks.at(9.0)[0] == NOON
    assert marks.until_front(9.5) == 8.5
    assert marks.at(18.0) == [], "the lane has failed: another one takes its place"


def test_what_is_released_during_a_claim_from_the_front_is_found_by_another_one() -> None:
    marks = StartMarks()
    marks.note({0: NOON}, now=-1.0, front_took=1.0)
    marks.request_front()
    assert marks.at(0.0) == []
    marks.request_front()
    marks.note({0: NOON}, now=1.0, front_took=1.0)
    assert marks.until_front(1.0) == 0
    assert marks.at(1.0) == []
    assert marks.at(1.0)[0] == NOON


def test_a_mark_moves_forward_only() -> None:
    marks = StartMarks()
    marks.note({3: NOON}, now=-1.0, front_took=1.0)
    marks.note({3: NOON}, now=0.0, front_took=1.0)
    marks.note({3: NOON - SECOND}, now=0.5)
    assert marks.at(1.0)[3] == NOON
    marks.note({3: NOON + SECOND}, now=1.0)
    assert marks.at(1.0)[3] == NOON + SECOND


def test_a_claim_from_a_mark_does_not_delay_the_next_one_from_the_front() -> None:
    marks = StartMarks()
    marks.note({0: NOON}, now=-1.0, front_took=1.0)
    marks.note({0: NOON}, now=0.0, front_took=1.0)
    marks.note({0: NOON}, now=8.9)
    assert marks.at(9.0) == []


def test_every_claim_begins_at_the_front_as_long_as_that_is_cheap() -> None:
    marks = StartMarks()
    marks.note({0: NOON}, now=0.0, front_took=0.01)
    assert marks.at(0.0) == []


def test_a_claim_begins_at_the_front_now_and_then_however_expensive_that_is() -> None:
    marks = StartMarks()
    marks.note({0: NOON}, now=-1_000.0, front_took=1_000.0)
    marks.note({0: NOON}, now=0.0, front_took=1_000.0)
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


def make_due(engine: Engine, seconds_ago: float, priority: int = 0) -> uuid.UUID:
    """An attempt that has been due for so long."""
    with Session(engine) as session, session.begin():
        attempt = Attempt.create(target=act, priority=priority, session=session)
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


# The poll interval


def middle() -> float:
    return 0.5


def test_polls_come_after_5_10_20_ms_and_so_on_up_to_poll() -> None:
    interval = PollInterval(1.0, draw=middle)
    waits = [interval.next() for _ in range(10)]
    assert waits == pytest.approx([0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0])


def test_a_poll_that_found_something_is_followed_by_one_at_once_and_then_by_short_waits() -> None:
    interval = PollInterval(1.0, draw=middle)
    for _ in range(12):
        interval.next()
    interval.found()
    assert [interval.next() for _ in range(3)] == pytest.approx([0.0, 0.005, 0.01])


def test_after_a_notification_polls_are_frequent_again() -> None:
    interval = PollInterval(1.0, draw=middle)
    for _ in range(12):
        interval.next()
    interval.notified()
    assert [interval.next() for _ in range(2)] == pytest.approx([0.005, 0.01])


@pytest.mark.parametrize("poll", [0.001, 0.005, 0.0055, 0.3, 1.0, 60.0])
@pytest.mark.parametrize("draw", [lambda: 0.0, lambda: 1.0])
def test_no_wait_exceeds_poll_by_more_than_3_percent(poll: float, draw: "type[float]") -> None:
    interval = PollInterval(poll, draw=draw)
    waits = [interval.next() for _ in range(30)]
    assert max(waits) <= poll * 1.03 + 1e-9
    assert waits[-1] == pytest.approx(poll * (0.97 if draw() == 0 else 1.03))
    assert min(waits) > 0


def test_the_first_waits_differ_by_a_quarter() -> None:
    assert PollInterval(1.0, draw=lambda: 0.0).next() == pytest.approx(0.00375)
    assert PollInterval(1.0, draw=lambda: 1.0).next() == pytest.approx(0.00625)


def test_an_idle_process_polls_as_often_as_configured_and_99_of_100_attempts_wait_no_longer_than_poll() -> None:
    interval = PollInterval(1.0, draw=random.Random(7).random)
    waits = list(itertools.islice((interval.next() for _ in itertools.count()), 10, 10_010))
    assert sum(waits) / len(waits) == pytest.approx(1.0, abs=0.001)
    late = sum(wait - 1.0 for wait in waits if wait > 1.0)
    assert late / sum(waits) < 0.01
