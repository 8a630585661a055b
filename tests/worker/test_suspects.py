"""Suspects: many at once, narrower after a death, and alone what has killed alone."""

import contextlib
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

import elsewhere
from async_task.queue.claim import Claim
from async_task.worker import suspects
from async_task.worker.suspects import PROVEN, Besides, SuspectRun, SuspectWidth
from async_task.worker.workload import _in_another_order
from offspring import claim

LANE: Any = contextlib.nullcontext()


def lost(*, crashes: int = 0) -> Claim:
    return claim()._replace(num_crashes=crashes, num_losses=1)


class Performing:
    """Performs claims for a run. The first `together` without a crash wait for each other."""

    def __init__(
        self, *claims: Claim, together: int = 1, concurrency: int = 8, width: SuspectWidth | None = None
    ) -> None:
        self.left = list(claims)
        self._meet = threading.Barrier(together)
        self._together = together
        self._num_met = 0
        self._guard = threading.Lock()
        self._running = 0
        self.asked: list[int] = []
        self.done: list[uuid.UUID] = []
        self.most = 0
        self.ended = 0
        width = width or SuspectWidth()
        self.released: list[Claim] = []
        self.besides: list[Besides] = []
        self.run = self.run_of(width, concurrency, self.perform)

    def run_of(self, width: SuspectWidth, concurrency: int, perform: Callable[[Any, Claim], object]) -> SuspectRun:
        return SuspectRun(width, concurrency, self.claim, lambda: LANE, perform, self.release, self.end_all)

    def release(self, lane: object, claims: list[Claim]) -> None:
        self.released += claims

    def claim(self, lane: object, limit: int, besides: Besides) -> list[Claim]:
        self.asked.append(limit)
        self.besides.append(besides)
        claims, self.left = self.left[:limit], self.left[limit:]
        return claims

    def perform(self, lane: object, one: Claim) -> None:
        with self._guard:
            self._running += 1
            self.most = max(self.most, self._running)
            meets = not one.num_crashes and self._num_met < self._together
            self._num_met += meets
        if meets:
            self._meet.wait(20)
        with self._guard:
            self._running -= 1
            self.done.append(one.id)

    def end_all(self) -> None:
        self.ended += 1
        self._meet.abort()


def test_a_death_halves_the_width_and_each_innocent_adds_one_up_to_the_widest() -> None:
    width = SuspectWidth(8, 8)
    found = [width.number]
    for has_died in (False, True, True, True, True, False, False, True):
        width.note(has_died=has_died)
        found.append(width.number)
    assert found == [8, 8, 4, 2, 1, 1, 2, 3, 1]
    for _ in range(20):
        width.note(has_died=False)
    assert width.number == 8


def test_one_that_has_run_for_a_while_makes_room_for_another_up_to_the_widest() -> None:
    width = SuspectWidth(4, 10)
    assert width.room([]) == 4
    assert width.room([0.0] * 4) == 0
    assert width.room([PROVEN] * 4) == 4
    assert width.room([PROVEN] * 4 + [0.0]) == 3
    assert width.room([PROVEN] * 8) == 2
    assert width.room([PROVEN] * 10) == 0


def test_what_was_lost_with_others_runs_together_and_what_has_killed_alone_runs_alone_afterwards() -> None:
    killers, others = [lost(crashes=1), lost(crashes=2)], [lost() for _ in range(3)]
    made = Performing(killers[0], *others, killers[1], together=3)
    assert made.run.run(LANE, lambda: True)
    assert made.most == 3
    assert made.done[3:] == [one.id for one in killers]


def test_the_next_ones_start_as_soon_as_one_has_ended_and_not_when_all_have() -> None:
    """The first waits until five that were claimed after it have ended."""
    first, *others = [lost() for _ in range(6)]
    made = Performing(first, *others, width=SuspectWidth(2, 2))
    all_others = threading.Event()

    def perform(lane: object, one: Claim) -> None:
        if one is first:
            assert all_others.wait(20)
        made.done.append(one.id)
        if len(made.done) == 5:
            all_others.set()

    run = made.run_of(SuspectWidth(2, 2), 8, perform)
    assert run.run(LANE, lambda: True)
    assert made.done == [*(one.id for one in others), first.id]


@pytest.mark.long
def test_those_that_run_for_a_while_make_room_for_all_others() -> None:
    """None of the first 24 ends before all 24 run, and at most 8 start at once."""
    made = Performing(*(lost() for _ in range(24)), together=24, concurrency=24, width=SuspectWidth(8, 24))
    assert made.run.run(LANE, lambda: True)
    assert (made.most, len(made.done), max(made.asked)) == (24, 24, 8)


def test_plain_functions_run_no_wider_than_the_worker() -> None:
    made = Performing(*(lost() for _ in range(6)), together=2, concurrency=2)
    made.run.run(LANE, lambda: True)
    assert (made.most, len(made.done)) == (2, 6)


def test_what_may_not_start_any_more_is_left_to_be_released() -> None:
    killers = [lost(crashes=1), lost(crashes=1)]
    made = Performing(*killers)
    made.run.run(LANE, lambda: len(made.done) == 0)
    assert made.run.unstarted == killers[1:]


def test_an_error_in_one_is_raised_when_all_have_ended_and_nothing_further_starts() -> None:
    bad, *others = [lost() for _ in range(4)]
    made = Performing(bad, *others, together=3, width=SuspectWidth(3, 3))

    def perform(lane: object, one: Claim) -> None:
        made.perform(lane, one)
        if one is bad:
            raise OSError("no process left")

    run = made.run_of(SuspectWidth(3, 3), 8, perform)
    with pytest.raises(OSError, match="no process left"):
        run.run(LANE, lambda: True)
    assert len(made.done) >= 3


def test_a_claim_that_fails_ends_no_call_and_no_process() -> None:
    """The processes of later suspects would be closed with them, for as long as the worker lives."""
    first, *others = (lost() for _ in range(3))
    made = Performing(first, *others, together=3)

    def claim(lane: object, limit: int, besides: Besides) -> list[Claim]:
        if made.asked:
            raise OSError("the database is away")
        return made.claim(lane, limit, besides)

    run = SuspectRun(SuspectWidth(3, 8), 8, claim, lambda: LANE, made.perform, made.release, made.end_all)
    with pytest.raises(OSError, match="the database is away"):
        run.run(LANE, lambda: True)
    assert sorted(made.done) == sorted(one.id for one in (first, *others))
    assert (made.ended, run.unstarted) == (0, [])


def test_an_interruption_ends_all_that_run() -> None:
    made = Performing(*(lost() for _ in range(2)), together=3)

    def may_start() -> bool:
        if made.asked:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        made.run.run(LANE, may_start)
    assert made.ended == 1


def test_nothing_found_is_said() -> None:
    made = Performing()
    assert not made.run.run(LANE, lambda: True)
    assert made.asked == [16]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long does so at once, and others are looked for again and again."""
    monkeypatch.setattr(suspects, "PROVEN", 0.0)
    monkeypatch.setattr(suspects, "AGAIN", 0.005)


class Long:
    """Its first call runs until the others were released."""

    def __init__(self, made: Performing, first: Claim, *, again: int = 0) -> None:
        self._made, self._first, self._again = made, first, again

    def perform(self, lane: object, one: Claim) -> None:
        if one is self._first:
            released = elsewhere.await_(lambda: self._made.released, "what waits behind it is released")
            asked = len(self._made.asked)
            elsewhere.await_(lambda: len(self._made.asked) >= asked + self._again, "others were looked for")
            self._made.left += released
        self._made.done.append(one.id)


def test_what_waits_behind_a_long_call_is_released_and_not_claimed_again_until_one_has_ended(soon: None) -> None:
    """A worker kept it for an hour, while other workers had nothing to do."""
    first, *others = [lost() for _ in range(3)]
    made = Performing(first, *others)
    assert made.run_of(SuspectWidth(), 1, Long(made, first, again=3).perform).run(LANE, lambda: True)
    assert made.released[:2] == others
    call = (first.target, first.method_name)
    assert made.besides[1:4] == [(call,)] * 3
    assert () in made.besides[4:]
    assert {one.id for one in others} <= set(made.done)


def test_what_is_to_run_alone_is_released_while_another_one_takes_long(soon: None) -> None:
    first, killer = lost(), lost(crashes=1)
    made = Performing(first, killer)
    assert made.run_of(SuspectWidth(), 8, Long(made, first).perform).run(LANE, lambda: True)
    assert made.released == [killer]
    assert made.done == [first.id, killer.id]


def test_what_is_to_run_alone_is_released_while_one_runs_alone_that_takes_long(soon: None) -> None:
    killers = [lost(crashes=1), lost(crashes=2)]
    made = Performing(*killers)
    assert made.run_of(SuspectWidth(), 8, Long(made, killers[0]).perform).run(LANE, lambda: True)
    assert made.released == killers[1:]
    assert made.done == [one.id for one in killers]


def test_behind_short_calls_nothing_is_released() -> None:
    made = Performing(*(lost() for _ in range(6)), lost(crashes=1), concurrency=1)
    made.run.run(LANE, lambda: True)
    assert (made.released, len(made.done), made.most) == ([], 7, 1)


def test_each_queue_comes_first_in_its_turn() -> None:
    """Otherwise the suspects of the first queue would leave no room for those of the others."""
    queues = ["a", "b", "c"]
    assert [_in_another_order(queues, turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]
    assert all(sorted(_in_another_order(queues, turn)) == queues for turn in range(4))
    assert _in_another_order([], 7) == []
