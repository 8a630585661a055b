"""What lanes have to do, and the rules by which they claim it: the same ones for a worker and for a batch.

1. Nothing is claimed from a paused queue, and from a limited one no more than its limit allows.
2. Calls of a paused target are released, uncharged, into the queue of that target.
3. Calls that this process does not know, or has no key for, are released, uncharged, and left to other processes.
4. When an attempt with an order key has ended, the queue in which the next one may be due is requested.
5. Outcomes are counted.
"""

import itertools
import random
import threading
import uuid
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence, Set
from functools import partial

from async_task.database.lanes import Lane
from async_task.database.transactions import PATIENCE, retry_transient
from async_task.outcomes import Outcome, Succeeded
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.fenced_writes import release_to_others, release_to_queue
from async_task.targets.registry import limits as target_limits
from async_task.targets.registry import own_queue
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from async_task.worker.suspects import Besides, SuspectRun, SuspectWidth

PerformClaim = Callable[[Lane, Claim], Outcome]
"""Performs one claim from its row on."""


class Workload(ABC):
    """Shared by all threads of a worker or batch. Thread-safe; what takes a lane is called inside of `lane.run`.

    `own_job`: what every claim is to be performed by, where that is a job of the user's own. `concurrency`: how many
    suspects of plain functions may be performed at once.
    """

    patience = PATIENCE
    """Seconds for which transient errors of a claim are retried."""

    def __init__(
        self, runtime: Runtime, round_robin: RoundRobin, own_job: PerformClaim | None, concurrency: int = 1
    ) -> None:
        self.runtime = runtime
        self.width = SuspectWidth()
        self._concurrency = concurrency
        self.round_robin = round_robin
        self.own_job = own_job
        self._guard = threading.Lock()
        self._outcomes: Counter[type[Outcome]] = Counter()
        self._suspects: dict[uuid.UUID, Claim] = {}
        self._suspect_turns = itertools.count()
        self._held_back: set[str] = set()
        self._coroutine_queues: set[str] = set()
        runtime.performer.released = self.note_next_released

    @property
    def is_watched(self) -> bool:
        """Whether a function of the user's is called after each commit."""
        return False

    @abstractmethod
    def is_over(self) -> bool:
        """Whether nothing further is to be started."""

    @abstractmethod
    def serves(self, queue: str) -> bool:
        """Whether calls of this queue are performed here."""

    @property
    @abstractmethod
    def goes_on(self) -> bool:
        """Whether whatever is due in its queues will be started."""

    @abstractmethod
    def note_failure(self, error: BaseException, queue: str | None = None) -> None:
        """A worker thread failed, with `queue`, at something that is not charged to any call."""

    # Claiming.

    def claim(
        self, lane: Lane, queue: str, limit: int, *,
        besides: Sequence[tuple[str, str]] = (), suspects: bool = False, requests_more: bool = True,
    ) -> list[Claim]:  # fmt: skip
        """Claim up to `limit` attempts of this queue that may be started now. `besides`: calls to leave out.
        `requests_more`: lanes are requested if it was given all that it asked for; else only where some of that was
        released again."""
        if self.is_over():
            return []
        request = self._request(queue, limit, besides, suspects=suspects)
        is_limited = queue in self.round_robin.limited or queue in target_limits()
        claims, after = self.runtime.claimer.claim(lane, request, is_limited=is_limited, patience=self.patience)
        if after is not None:
            self._hold_back(lane, queue, after.total_seconds(), has_claimed=bool(claims), suspects=suspects)
        kept = self._without_paused(lane, queue, self._without_unknown(lane, queue, claims, suspects=suspects))
        if len(claims) >= limit and (requests_more or len(kept) < limit):
            self._request_more(queue, suspects=suspects)
        return kept

    def served(self, queue: str) -> None:
        """A lane has performed what it had claimed from this queue."""
        if self.was_held_back(queue):
            self.round_robin.request(queue)

    def was_held_back(self, queue: str) -> bool:
        """Whether there may be more in this queue than the last claim was given; asked once."""
        with self._guard:
            is_held_back = queue in self._held_back
            self._held_back.discard(queue)
            return is_held_back

    def perform_suspects(self, lane: Lane, queues: Callable[[], Sequence[str]]) -> bool:
        """Perform the suspects of these queues, many at once, until none is left. Whether there were any. Not inside of
        `lane.run`."""
        performer = self.runtime.performer
        is_wide = self.own_job is None and performer.can_start_children
        run = SuspectRun(
            self.width if is_wide else SuspectWidth(1, 1), self._concurrency, partial(self._claim_suspects, queues),
            self.runtime.private_lane, self._perform_suspect, self._release_suspects, performer.abandon,
        )  # fmt: skip
        try:
            return run.run(lane, lambda: not self.is_over())
        finally:
            self._release_suspects(lane, run.unstarted)

    def _claim_suspects(
        self, queues: Callable[[], Sequence[str]], lane: Lane, limit: int, besides: Besides
    ) -> list[Claim]:
        """Up to `limit` of these queues. An error at one of them is raised only if nothing was claimed from another."""
        claims: list[Claim] = []
        for queue in _in_another_order(queues(), next(self._suspect_turns)):
            if queue in self.round_robin.paused or len(claims) >= limit:  # paused since the run began
                continue
            number = limit - len(claims)
            try:
                claims += lane.run(partial(self.claim, lane, queue, number, besides=besides, suspects=True))
            except Exception as error:
                if not claims:
                    raise
                self.note_failure(error, queue)
                break
        self.runtime.heartbeat.track([claim.id for claim in claims])
        return claims

    def _release_suspects(self, lane: Lane, claims: list[Claim]) -> None:
        """Release claims that were not started. Sleeping workers are notified."""
        by_claim = defaultdict(list)
        for claim in claims:
            by_claim[claim.claim_id].append(claim)
        for same in by_claim.values():
            lane.run(partial(release_to_others, lane.engine, self.runtime.table, same))
            self.note_released(same)
            self._forget(same)

    def _perform_suspect(self, lane: Lane, claim: Claim) -> None:
        with self._guard:
            self._suspects[claim.id] = claim
        try:
            outcome = (self.own_job or self.runtime.performer.perform_claim)(lane, claim)
            self.width.note(has_died=self.runtime.performer.has_died(claim))
            self.note_ended(claim, outcome)
        finally:
            with self._guard:
                del self._suspects[claim.id]
            self._forget([claim])

    def _forget(self, claims: list[Claim]) -> None:
        """These suspects are no longer claimed."""
        self.runtime.heartbeat.untrack([claim.id for claim in claims])
        self.note_done(claims)

    @property
    def running_suspects(self) -> list[Claim]:
        """The claims of suspects that are being performed."""
        with self._guard:
            return list(self._suspects.values())

    def _request(self, queue: str, limit: int, besides: Sequence[tuple[str, str]], *, suspects: bool) -> ClaimRequest:
        unknown = self.runtime.unknown_calls.left_out()
        return self.runtime.claimer.request(queue, limit, besides=besides, unknown=unknown, suspects=suspects)

    def _request_more(self, queue: str, *, suspects: bool) -> None:
        """A claim was given all that it asked for: there is more, for this lane and another one."""
        if not suspects:
            self.round_robin.request(queue, 2)
            return
        with self._guard:
            self._held_back.add(queue)

    def _hold_back(self, lane: Lane, queue: str, seconds: float, *, has_claimed: bool, suspects: bool) -> None:
        """There may be more in this queue, which can be claimed in so many seconds, or when a call has ended."""
        with self._guard:
            self._held_back.add(queue)
        if not suspects:
            self.round_robin.request_later(queue, seconds)

    def _without_unknown(self, lane: Lane, queue: str, claims: list[Claim], *, suspects: bool) -> list[Claim]:
        """The claims without those of unknown calls, which are released to other processes."""
        unknown = self.runtime.unknown_calls.found_in(claims)
        if not unknown:
            return claims
        retry_transient(partial(release_to_others, lane.engine, self.runtime.table, unknown))
        self._request_more(queue, suspects=suspects)  # they may have taken the place of others
        ids = {one.id for one in unknown}
        return [one for one in claims if one.id not in ids]

    def _without_paused(self, lane: Lane, queue: str, claims: list[Claim]) -> list[Claim]:
        """The claims without those of paused targets, which are released into the queues of these."""
        if not self.round_robin.paused:
            return claims
        by_target: defaultdict[str, list[Claim]] = defaultdict(list)
        for claim in claims:
            by_target[own_queue(claim.target)].append(claim)
        paused = [name for name in by_target if name in self.round_robin.paused and name != queue]
        for name in paused:
            released = by_target.pop(name)
            retry_transient(partial(release_to_queue, lane.engine, self.runtime.table, released, name))
            self.runtime.claimer.start_at_front(name)  # when it is resumed
        return [claim for kept in by_target.values() for claim in kept] if paused else claims

    # What became of claims.

    def note_ended(self, claim: Claim, outcome: Outcome) -> None:
        """A claim was brought to its outcome."""
        self.count(claim, outcome)

    def note_succeeded(self, claims: list[Claim]) -> None:
        """These have succeeded, in one commit."""
        self.count_succeeded(len(claims))

    def note_coroutines(self, started: Collection[Claim], queue: str) -> None:
        """Of the coroutines of this queue, these were started: only their outcomes will be counted. Others may wait
        there."""
        with self._guard:
            self._coroutine_queues.add(queue)

    def has_coroutines(self, queue: str) -> bool:
        """Whether coroutines of this queue were claimed so far."""
        with self._guard:
            return queue in self._coroutine_queues

    def note_next_released(self, queues: Set[str]) -> Set[str]:
        """The next attempts of order keys may have been released in these queues. Returns those in which they may not
        be performed here."""
        served = {queue for queue in queues if self.serves(queue)}
        for queue in served:  # it may have been due long before
            self.runtime.claimer.start_at_front(queue)
            self.request(queue)
        return queues - served if self.goes_on else queues

    def note_released(self, claims: Collection[Claim]) -> None:
        """These were released without having been started."""
        self.runtime.claimer.note_released(claims)
        for queue in {claim.queue for claim in claims}:
            self.request(queue)

    def note_done(self, claims: Collection[Claim]) -> None:  # noqa: B027 - only a batch wants to know
        """A lane is done with these, whatever became of them."""

    def count(self, claim: Claim, outcome: Outcome) -> None:
        with self._guard:
            self._outcomes[type(outcome)] += 1

    def count_succeeded(self, number: int) -> None:
        with self._guard:
            self._outcomes[Succeeded] += number

    @property
    def outcomes(self) -> Counter[type[Outcome]]:
        """How many attempts ended how, so far."""
        with self._guard:
            return self._outcomes.copy()

    # Requests.

    def request(self, queue: str) -> None:
        """Something may be due there."""
        self.round_robin.request(queue)

    def request_coroutines(self) -> None:
        """There are free slots for coroutines again."""
        with self._guard:
            queues = list(self._coroutine_queues)
        random.shuffle(queues)  # the first one takes the slot: it is not to be always the same
        for queue in queues:
            self.request(queue)


def _in_another_order(queues: Sequence[str], turn: int) -> list[str]:
    """Each of them is the first one in its turn."""
    first = turn % len(queues) if queues else 0
    return [*queues[first:], *queues[:first]]
