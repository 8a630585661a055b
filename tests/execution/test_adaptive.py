"""Numbers that adapt: batch sizes, the cost of a query, the poll interval."""

import itertools
import random

import pytest

from async_task.execution.adaptive import (
    MAX_BATCH_SIZE,
    BatchSize,
    OtherCalls,
    PollInterval,
    QueryCost,
)

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
