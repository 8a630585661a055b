"""A consumer: one lane of a worker, which claims, performs and settles by itself.

1. It takes the queue whose turn it is, and claims as many attempts of it as it will have begun in a moment.
2. Coroutines go to the event loop, as many as it has slots for; all else is a handful for this lane.
3. When it got all that it asked for, there is more: another lane is called, and it comes back itself.
"""

import logging
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from async_task.database.lanes import Lane, open_lane
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.execution.adaptive import BatchSizes
from async_task.execution.batch_executor import BatchExecutor
from async_task.execution.call import ExecutionContext, PreparedCall
from async_task.execution.commit_rules import CommitRules
from async_task.execution.performer import perform_call, prepare_or_park
from async_task.outcomes import Outcome, Succeeded
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import release_claims
from async_task.queue.limits import release_to_own_queue
from async_task.targets.registry import coroutine_calls, limits, own_queue
from async_task.worker.coroutines import Coroutines, runs_on_loop
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from async_task.worker.watchdog import Watchdog

logger = logging.getLogger("async_task")
PATIENCE = 5.0
"""Seconds for which a claim is tried for before it is looked whether this is the end."""
LONGEST_REST = 1.0
"""Seconds for which a lane does nothing that fails again and again."""


class Tally:
    """What became of the attempts that a worker performed, by the kind of the outcome. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._outcomes: Counter[type[Outcome]] = Counter()

    def count(self, outcome: Outcome) -> None:
        with self._guard:
            self._outcomes[type(outcome)] += 1

    def count_succeeded(self, number: int) -> None:
        with self._guard:
            self._outcomes[Succeeded] += number

    def read(self) -> Counter[type[Outcome]]:
        with self._guard:
            return self._outcomes.copy()


class LaneLoop:
    """`single`: performs one claim from its row on, where all are to go through a job of the user's own; else None.
    `is_over`: once it answers True, nothing further is started."""

    def __init__(
        self,
        runtime: Runtime,
        round_robin: RoundRobin,
        coroutines: Coroutines,
        watchdog: Watchdog,
        tally: Tally,
        settle_within: float,
        *,
        single: Callable[[Lane, Claim], Outcome] | None,
        is_over: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._round_robin = round_robin
        self._coroutines = coroutines
        self._watchdog = watchdog
        self._tally = tally
        self._settle_within = settle_within
        self._single = single
        self._is_over = is_over
        self._sizes: dict[str, BatchSizes] = {}
        self._executor: BatchExecutor | None = None
        self._held: list[uuid.UUID] = []
        self.queues_of_coroutines: set[str] = set()
        """Where coroutines were found, and may be found when there are slots for them."""

    def live(self) -> None:
        """Until the rounds are over."""
        num_failed = 0
        with open_lane(self._runtime.source, private=True) as lane:
            while (queue := self._round_robin.take()) is not None:
                number = 0
                try:
                    number = lane.run(partial(self._serve, lane, queue))
                    num_failed = 0
                except BaseException as error:  # SystemExit too would end the thread, and leave its queues to nobody
                    num_failed += 1
                    self._complain(lane, error)
                    time.sleep(min(0.1 * num_failed, LONGEST_REST))
                finally:
                    self._round_robin.put_back(queue, number)

    def _serve(self, lane: Lane, queue: str) -> int:
        """Claim and perform some attempts of this queue. Answers how many."""
        sizes = self._sizes.setdefault(queue, BatchSizes())
        number = sizes.to_claim.number
        claims = self._claim(lane, queue, number)
        if len(claims) >= number:
            self._round_robin.ring(queue, 2)  # for another lane, and for this one
        mine = self._without_paused(lane, queue, claims)
        if mine:
            self._perform(lane, mine, sizes)
        return len(claims)

    def _claim(self, lane: Lane, queue: str, number: int) -> list[Claim]:
        besides = coroutine_calls() if self._coroutines.is_full else ()
        options: Any = {"besides": besides, "patience": PATIENCE}
        is_limited = queue in self._round_robin.limited or queue in limits()
        claim = self._runtime.claim_many_limited if is_limited else self._runtime.claim_many
        claims, after = claim(lane, queue, number, **options)
        if after is not None:
            self._round_robin.ring_later(queue, after.total_seconds())
        return claims

    def _without_paused(self, lane: Lane, queue: str, claims: list[Claim]) -> list[Claim]:
        """Those that may be called. Calls of paused targets are given back, into the lanes of these."""
        if not self._round_robin.paused:
            return claims
        aside: defaultdict[str, list[Claim]] = defaultdict(list)
        for claim in claims:
            aside[own_queue(claim.target)].append(claim)
        paused = [name for name in aside if name in self._round_robin.paused and name != queue]
        for name in paused:
            retry_transient(partial(release_to_own_queue, lane.engine, self._runtime.table, aside.pop(name), name))
        return [claim for kept in aside.values() for claim in kept] if paused else claims

    def _perform(self, lane: Lane, claims: list[Claim], sizes: BatchSizes) -> None:
        held = self._held = [claim.id for claim in claims]
        self._runtime.heartbeat.track(held)
        try:
            calls = self._handed_over(lane, self._prepared(lane, claims), sizes)
            rules = CommitRules(self._settle_within, each_alone=self._single is not None)
            context = self._runtime.context_on(lane)
            executor = BatchExecutor(context, calls, sizes, rules, self._runtime.lease, owner=self)
            self._watch(executor, len(calls))
        finally:
            self._runtime.heartbeat.untrack(held)

    def _prepared(self, lane: Lane, claims: list[Claim]) -> list[tuple[Claim, PreparedCall]]:
        """Those that can be called. What something is missing for is parked."""
        context = self._runtime.context_on(lane)
        calls: list[tuple[Claim, PreparedCall]] = []
        for claim in claims:
            call = prepare_or_park(context, claim)
            if isinstance(call, Outcome):
                self._tally.count(call)
            else:
                calls.append((claim, call))
        return calls

    def _handed_over(
        self, lane: Lane, calls: list[tuple[Claim, PreparedCall]], sizes: BatchSizes
    ) -> list[tuple[Claim, PreparedCall]]:
        """The calls of this lane. Coroutines are begun, as many as there are slots for; the others are given back."""
        if self._single is not None:
            return calls
        is_async = self._runtime.source.is_async
        mine = [one for one in calls if not runs_on_loop(one[1], is_async=is_async)]
        if len(mine) == len(calls):
            return calls
        others = [one for one in calls if runs_on_loop(one[1], is_async=is_async)]
        slots = 0 if self._is_over() else self._coroutines.reserve(len(others))
        self._coroutines.start(others[:slots])
        self.queues_of_coroutines.add(others[0][0].queue)
        if unstarted := [claim for claim, _ in others[slots:]]:
            # As many as quick calls fill a handful with would be claimed, and given back, for each slot that gets free.
            sizes.to_claim.number = max(1, len(calls) - len(unstarted))
            retry_transient(lambda: release_claims(lane.connection, self._runtime.table, unstarted))
        elif not mine:
            sizes.to_claim.note(len(calls), 0.0)  # they take no time of this lane's
        return mine

    def abandon(self, aside: Callable[[list[Claim]], None]) -> list[Claim]:
        """Leave the call that is being made to itself, from another thread: the claims that are to be given back."""
        begun = [] if self._executor is None else self._executor.abandon(aside)
        # Nobody beats for them any more, however long the call goes on: this process holds nothing.
        self._runtime.heartbeat.untrack(self._held)
        return begun

    def _watch(self, executor: BatchExecutor, number: int) -> None:
        self._executor = executor
        if number < 2:
            executor.execute()
            return
        self._watchdog.watch(executor)
        try:
            executor.execute()
        finally:
            self._watchdog.forget(executor)

    # What a batch asks of its owner.

    def is_stopping(self) -> bool:
        return self._is_over()

    def perform_alone(self, context: ExecutionContext, claim: Claim, call: PreparedCall) -> None:
        if self._single is not None:
            self._tally.count(self._single(context.lane, claim))
        elif call.method.policy.isolate:
            self._tally.count(self._runtime.perform(context.lane, claim))
        else:
            self._tally.count(perform_call(context, claim, call, self._runtime.heartbeat.tracking))

    def succeeded(self, claims: list[Claim]) -> None:
        self._tally.count_succeeded(len(claims))
        for queue in {claim.queue for claim in claims if claim.order_key is not None}:
            self._ring_for_following(queue)

    def ended(self, claim: Claim, outcome: Outcome) -> None:
        self._tally.count(outcome)
        if claim.order_key is not None:
            self._ring_for_following(claim.queue)

    def _ring_for_following(self, queue: str) -> None:
        """The next one of a key may go, which was due long before."""
        self._runtime.begin_at_front(queue)
        self._round_robin.ring(queue)

    def _complain(self, lane: Lane, error: BaseException) -> None:
        """What could not be done is tried again at the next look; what was claimed is found as stray by a sweep."""
        logger.error("a lane of %s was stopped short: %s", self._runtime.worker, describe(error).summary)
        lane.run(lane.drop_connection)
