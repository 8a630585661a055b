"""Where in a queue a claim begins, while an old snapshot keeps what was taken long ago in the index."""

import datetime as dt
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
from async_task.execution.adaptive import EARLIEST, LONGEST, PRIORITIES, Cost, Marks
from async_task.worker.runtime import Runtime
from outbox import act

NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


def test_the_first_claim_begins_at_the_front() -> None:
    assert Marks().at(0.0) == []


def test_after_one_from_the_front_others_begin_where_it_came_to_for_nine_times_as_long() -> None:
    marks = Marks()
    marks.note({0: NOON - SECOND}, now=99.0, front_took=0.6)
    marks.note({0: NOON, 7: NOON - SECOND}, now=100.0, front_took=0.5)
    wanted: dict[int, Any] = dict.fromkeys(PRIORITIES, EARLIEST) | {0: NOON, 7: NOON - SECOND}
    assert marks.at(104.4) == list(wanted.values())
    assert marks.until_front(104.4) == pytest.approx(0.1)
    assert marks.at(104.5) == []
    assert marks.until_front(104.6) == 0


def test_a_mark_goes_forward_only() -> None:
    marks = Marks()
    marks.note({3: NOON}, now=-1.0, front_took=1.0)
    marks.note({3: NOON}, now=0.0, front_took=1.0)
    marks.note({3: NOON - SECOND}, now=0.5)
    assert marks.at(1.0)[3] == NOON
    marks.note({3: NOON + SECOND}, now=1.0)
    assert marks.at(1.0)[3] == NOON + SECOND


def test_what_does_not_begin_at_the_front_does_not_put_it_off() -> None:
    marks = Marks()
    marks.note({0: NOON}, now=-1.0, front_took=1.0)
    marks.note({0: NOON}, now=0.0, front_took=1.0)
    marks.note({0: NOON}, now=8.9)
    assert marks.at(9.0) == []


def test_as_long_as_it_is_cheap_every_claim_begins_at_the_front() -> None:
    marks = Marks()
    marks.note({0: NOON}, now=0.0, front_took=0.01)
    assert marks.at(0.0) == []


def test_however_dear_it_is_the_front_is_looked_at_now_and_then() -> None:
    marks = Marks()
    marks.note({0: NOON}, now=-1_000.0, front_took=1_000.0)
    marks.note({0: NOON}, now=0.0, front_took=1_000.0)
    assert marks.until_front(0.0) == LONGEST


def test_what_takes_long_once_is_not_spared() -> None:
    cost = Cost()
    assert cost.note(0.1, now=1.0) == 0
    assert cost.note(4.0, now=5.5) == pytest.approx(0.9)
    assert cost.note(0.2, now=6.0) == pytest.approx(1.8)
    assert cost.note(0.1, now=7.0) == pytest.approx(0.9)


def test_what_several_wait_for_at_once_is_once() -> None:
    cost = Cost()
    cost.note(0.1, now=1.0)
    assert [cost.note(4.0, now=5.5 + number / 100) for number in range(4)] == [pytest.approx(0.9)] * 4
    assert cost.note(2.0, now=8.0) == 18


@pytest.fixture
def runtime(engine: Engine, dear: None) -> Iterator[Runtime]:
    with Runtime(Source(engine), Attempt, dt.timedelta(seconds=5)) as runtime:
        yield runtime


@pytest.fixture
def lane(runtime: Runtime) -> Iterator[Lane]:
    with open_lane(runtime.source, private=True) as lane:
        yield lane


def make_due(engine: Engine, seconds_ago: float, priority: int = 0) -> uuid.UUID:
    """An attempt that has been due for so long."""
    with Session(engine) as session, session.begin():
        attempt = Attempt.create(target=act, priority=priority, session=session)
        session.flush()
        session.execute(update(Attempt).where(Attempt.id == attempt.id).values(due_at=clock_now(-seconds_ago)))
        return attempt.id


def take(runtime: Runtime, lane: Lane, number: int) -> tuple[list[uuid.UUID], dt.timedelta | None]:
    request = runtime.claimer.request("default", number)
    claims, after = lane.run(lambda: runtime.claimer.claim(lane, request, is_limited=False))
    return [claim.id for claim in claims], after


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every claim from the front took long."""
    monkeypatch.setattr(adaptive, "spared", lambda took: LONGEST)


@pytest.mark.only_on("postgresql")
def test_what_is_due_before_the_mark_waits_for_a_claim_from_the_front_and_says_when(
    runtime: Runtime, lane: Lane, engine: Engine
) -> None:
    first, second, third = (make_due(engine, ago) for ago in (30, 20, 10))
    assert take(runtime, lane, 2) == ([first, second], None)
    late, urgent = make_due(engine, 40), make_due(engine, 50, priority=3)
    found, after = take(runtime, lane, 10)
    assert found == [third, urgent]  # of a priority of which nothing was taken yet, it begins at the front
    assert after is not None
    assert LONGEST - 5 < after.total_seconds() <= LONGEST
    runtime.claimer.start_at_front("default")
    assert take(runtime, lane, 10) == ([late], None)


@pytest.mark.only_on("postgresql")
def test_several_due_at_the_very_instant_of_the_mark_are_all_found(
    runtime: Runtime, lane: Lane, engine: Engine
) -> None:
    ids = sorted(make_due(engine, 10) for _ in range(4))
    with engine.begin() as connection:
        connection.execute(update(Attempt).values(due_at=NOON - 300 * 365 * 24 * 3600 * SECOND + SECOND / 3))
    assert take(runtime, lane, 1) == ([ids[0]], None)
    assert sorted(take(runtime, lane, 2)[0] + take(runtime, lane, 2)[0]) == ids[1:]


@pytest.mark.only_on("postgresql")
def test_what_is_left_out_for_want_of_slots_is_not_passed_by(runtime: Runtime, lane: Lane, engine: Engine) -> None:
    left = make_due(engine, 20)
    request = runtime.claimer.request("default", 5, besides=[("test.act", "__call__")])
    assert lane.run(lambda: runtime.claimer.claim(lane, request, is_limited=False)) == ([], None)
    assert take(runtime, lane, 5) == ([left], None)


@pytest.mark.only_on("mysql", "sqlite")
def test_elsewhere_every_claim_begins_at_the_front(runtime: Runtime, lane: Lane, engine: Engine) -> None:
    first = make_due(engine, 10)
    assert take(runtime, lane, 1) == ([first], None)
    late = make_due(engine, 20)
    assert take(runtime, lane, 5) == ([late], None)
