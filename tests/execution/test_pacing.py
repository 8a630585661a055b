"""How long a lane waits until it looks again."""

import itertools
import random

import pytest

from async_task.execution.adaptive import PollInterval


def middle() -> float:
    return 0.5


def test_a_fresh_sleeper_looks_after_5_10_20_ms_and_so_on_up_to_poll() -> None:
    pace = PollInterval(1.0, draw=middle)
    waits = [pace.next() for _ in range(10)]
    assert waits == pytest.approx([0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0])


def test_what_was_found_is_followed_by_a_look_at_once_and_then_by_those_of_a_fresh_sleeper() -> None:
    pace = PollInterval(1.0, draw=middle)
    for _ in range(12):
        pace.next()
    pace.found()
    assert [pace.next() for _ in range(3)] == pytest.approx([0.0, 0.005, 0.01])


def test_after_a_ring_it_looks_often_again() -> None:
    pace = PollInterval(1.0, draw=middle)
    for _ in range(12):
        pace.next()
    pace.notified()
    assert [pace.next() for _ in range(2)] == pytest.approx([0.005, 0.01])


@pytest.mark.parametrize("poll", [0.001, 0.005, 0.0055, 0.3, 1.0, 60.0])
@pytest.mark.parametrize("draw", [lambda: 0.0, lambda: 1.0])
def test_none_is_longer_than_poll_by_more_than_3_percent(poll: float, draw: "type[float]") -> None:
    pace = PollInterval(poll, draw=draw)
    waits = [pace.next() for _ in range(30)]
    assert max(waits) <= poll * 1.03 + 1e-9
    assert waits[-1] == pytest.approx(poll * (0.97 if draw() == 0 else 1.03))
    assert min(waits) > 0


def test_the_first_waits_differ_by_a_quarter() -> None:
    assert PollInterval(1.0, draw=lambda: 0.0).next() == pytest.approx(0.00375)
    assert PollInterval(1.0, draw=lambda: 1.0).next() == pytest.approx(0.00625)


def test_who_idles_looks_as_often_as_it_was_told_and_99_of_100_rows_wait_no_longer_than_poll() -> None:
    pace = PollInterval(1.0, draw=random.Random(7).random)
    settled = list(itertools.islice((pace.next() for _ in itertools.count()), 10, 10_010))
    assert sum(settled) / len(settled) == pytest.approx(1.0, abs=0.001)
    late = sum(wait - 1.0 for wait in settled if wait > 1.0)
    assert late / sum(settled) < 0.01
