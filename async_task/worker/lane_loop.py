"""One worker thread with its lane, which claims, performs and settles by itself.

1. It takes the queue whose turn it is, and claims as many attempts of it as it will have started in a moment.
2. Coroutines go to the event loop, in slots that are reserved before the claim. While there is none, it searches for
   other calls, with a rest after a search that found too few. These are performed on this lane.
3. When it was given all that it asked for, there is more: another lane is requested, and it comes back itself; or, if
   it asked for no more than it had slots, when a slot is free.
"""

import logging
import time
import uuid
from collections.abc import Callable
from functools import partial

from async_task.database.lanes import Lane
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.execution.adaptive import BatchSizes, OtherCalls
from async_task.execution.batch_executor import BatchExecutor
from async_task.execution.in_flight import ClaimedCall, CommitRules
from async_task.execution.performer import perform_call, prepare_or_settle
from async_task.execution.prepared_call import ExecutionContext, PreparedCall
from async_task.outcomes import Outcome
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import release_abandoned, release_claims
from async_task.queue.heavy_arguments import CLAIM_BYTES, weight_of
from async_task.targets.registry import coroutine_calls
from async_task.worker.coroutines import Coroutines, runs_on_loop
from async_task.worker.slots import Reservation
from async_task.worker.watchdog import Watchdog
from async_task.worker.workload import Workload

logger = logging.getLogger("async_task")
LONGEST_PAUSE = 1.0
"""Seconds for which a thread does nothing that fails again and again."""


class LaneLoop:
    """`settle_within`: seconds for which the outcome of a call may wait to be written with others. `others`: shared by
    the lanes."""

    def __init__(
        self, workload: Workload, coroutines: Coroutines, others: OtherCalls, watchdog: Watchdog, settle_within: float
    ) -> None:  # fmt: skip
        self._workload = workload
        self._runtime = workload.runtime
        self._round_robin = workload.round_robin
        self._coroutines = coroutines
        self._others = others
        self._watchdog = watchdog
        self._settle_within = settle_within
        self._sizes: dict[str, BatchSizes] = {}
        self._executor: BatchExecutor | None = None
        self._claimed: list[uuid.UUID] = []

    def live(self) -> None:
        """Until the round robin is over."""
        try:
            with self._runtime.private_lane() as lane:
                self._serve_all(lane)
        except BaseException as error:
            self._workload.note_failure(error)

    def abandon(self, release: Callable[[list[Claim]], None]) -> list[Claim]:
        """Leave the running call to itself, from another thread: returns the claims that are to be released. `release`
        does that for those that were not started."""
        started = [] if self._executor is None else self._executor.abandon(release)
        # Their leases are no longer extended, however long the call takes.
        self._runtime.heartbeat.abandon(self._claimed)
        return started

    def _serve_all(self, lane: Lane) -> None:
        num_failed = 0
        while (queue := self._round_robin.take()) is not None:
            number = 0
            try:
                number = lane.run(partial(self._serve, lane, queue))
                num_failed = 0
            except BaseException as error:  # SystemExit too would end the thread, and leave its queues unserved
                num_failed += 1
                lane.run(lane.drop_connection)
                self._workload.note_failure(error, queue)
                time.sleep(min(0.1 * num_failed, LONGEST_PAUSE))
            finally:
                self._round_robin.put_back(queue, number)

    def _serve(self, lane: Lane, queue: str) -> int:
        """Claim and perform some attempts of this queue. Returns how many."""
        sizes = self._sizes.setdefault(queue, BatchSizes())
        slots = self._reserved_slots(queue, sizes)
        try:
            claims = self._claim(lane, queue, sizes, slots)
            if claims:
                sizes.note_weight(len(claims), weight_of(claims), CLAIM_BYTES)
                self._perform_claims(lane, claims, sizes, slots)
                self._workload.served(queue)
            return len(claims)
        finally:
            slots.use(0)

    # Claiming.

    def _reserved_slots(self, queue: str, sizes: BatchSizes) -> Reservation:
        """For as many coroutines as this lane may claim: one if the last claim had none."""
        slots = self._coroutines.slots
        if not self._workload.has_coroutines(queue):
            return Reservation(slots)
        return slots.reserve(sizes.number_to_claim if sizes.num_coroutines else 1, queue)

    def _claim(self, lane: Lane, queue: str, sizes: BatchSizes, slots: Reservation) -> list[Claim]:
        number = sizes.number_to_claim
        if not self._workload.has_coroutines(queue):
            return self._workload.claim(lane, queue, number)
        if not slots.number:
            return self._claim_others(lane, queue, number)
        most = slots.number + sizes.num_others if sizes.num_coroutines else number
        claims = self._workload.claim(lane, queue, min(number, most), requests_more=number <= most)
        if len(claims) < min(number, most):
            self._others.forget(queue)
        elif most < number:
            self._coroutines.slots.want(queue)
            self._round_robin.request_search(queue, self._others.rest_of(queue, time.monotonic()))
        return claims

    def _claim_others(self, lane: Lane, queue: str, number: int) -> list[Claim]:
        """Calls that need no slot, while there is none."""
        claims: list[Claim] = []
        began = time.monotonic()
        if not (rest := self._others.rest_of(queue, began)):
            besides = coroutine_calls(partial(runs_on_loop, source=self._runtime.source))
            claims = self._workload.claim(lane, queue, number, besides=besides)
            if len(claims) < number:
                now = time.monotonic()
                rest = self._others.note(queue, len(claims), now - began, now=now)
        if rest:
            self._round_robin.request_search(queue, rest)
        return claims

    def _perform_claims(self, lane: Lane, claims: list[Claim], sizes: BatchSizes, slots: Reservation) -> None:
        tracked = self._claimed = [claim.id for claim in claims]
        self._runtime.heartbeat.track(tracked)
        unstarted = claims
        try:
            calls = self._prepared(lane, claims)
            mine, without_slot = self._handed_over(calls, sizes, slots)
            unstarted = without_slot + [claim for claim, _ in mine]
            if without_slot:
                retry_transient(lambda: release_claims(lane.connection, self._runtime.table, without_slot))
                self._workload.note_released(without_slot)  # a slot may have become free meanwhile
            unstarted = []
            self._execute(lane, mine, sizes)
        except BaseException:
            self._release_unstarted(lane, unstarted)
            raise
        finally:
            self._runtime.heartbeat.untrack(tracked)
            self._workload.note_done(claims)

    def _prepared(self, lane: Lane, claims: list[Claim]) -> list[ClaimedCall]:
        """The calls that can be made; the other claims are parked or settled."""
        context = self._runtime.performer.context_on(lane)
        calls: list[ClaimedCall] = []
        for claim in claims:
            call = prepare_or_settle(context, claim)
            if isinstance(call, Outcome):
                self._workload.note_ended(claim, call)
            else:
                calls.append((claim, call))
        return calls

    # Coroutines.

    def _handed_over(
        self, calls: list[ClaimedCall], sizes: BatchSizes, slots: Reservation
    ) -> tuple[list[ClaimedCall], list[Claim]]:
        """The calls of this lane. Coroutines are started, as many as there are slots for; the claims of the others are
        returned too, and are to be released. No slot stays reserved."""
        mine, others = self._divided(calls)
        if others or slots.number:  # else coroutines were left out
            sizes.num_coroutines, sizes.num_others = len(others), len(mine)
        started = self._start(others, slots)
        if len(started) < len(others):
            # Else as many as there are quick calls would be claimed, and released, for each slot that becomes free.
            sizes.to_claim.number = max(1, len(mine) + len(started))
        elif others and not mine:
            sizes.to_claim.note(len(others), 0.0)  # they take no time of this lane's
        return mine, [claim for claim, _ in others[len(started) :]]

    def _divided(self, calls: list[ClaimedCall]) -> tuple[list[ClaimedCall], list[ClaimedCall]]:
        """Those of this lane, and those of the event loop."""
        source = self._runtime.source
        mine = [one for one in calls if not runs_on_loop(one[1].method, source)]
        if len(mine) == len(calls) or self._workload.own_job is not None:
            return calls, []
        return mine, [one for one in calls if runs_on_loop(one[1].method, source)]

    def _start(self, calls: list[ClaimedCall], slots: Reservation) -> list[ClaimedCall]:
        """Start as many of these coroutines as there are slots for. Returns which."""
        if not calls:
            slots.use(0)
            return []
        slots.grow(len(calls))
        started = calls[: 0 if self._workload.is_over() else slots.number]
        self._workload.note_coroutines([claim for claim, _ in started], calls[0][0].queue)
        self._coroutines.start(started, slots)
        return started

    # Calls of this lane.

    def _execute(self, lane: Lane, calls: list[ClaimedCall], sizes: BatchSizes) -> None:
        rules = CommitRules(self._settle_within, each_alone=self._workload.own_job is not None)
        context = self._runtime.performer.context_on(lane)
        executor = self._executor = BatchExecutor(context, calls, sizes, rules, self._runtime.lease, owner=self)
        try:
            self._watch(executor, len(calls))
        except BaseException as error:
            self._release_unstarted(lane, executor.take_unstarted())
            started = [claim for claim, _ in calls]
            for claim in started:  # those of these that are not claimed any more are left as they are
                self._runtime.performer.charge(lane, claim, error)
            self._release_started(lane, started)
            raise

    def _watch(self, executor: BatchExecutor, number: int) -> None:
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
        return self._workload.is_over()

    def is_watched(self) -> bool:
        return self._workload.is_watched

    def succeeded(self, claims: list[Claim]) -> None:
        self._workload.note_succeeded(claims)

    def released(self, claims: list[Claim]) -> None:
        self._workload.note_released(claims)

    def ended(self, claim: Claim, outcome: Outcome) -> None:
        self._workload.note_ended(claim, outcome)

    def perform_alone(self, context: ExecutionContext, claim: Claim, call: PreparedCall) -> None:
        self._workload.note_ended(claim, self._outcome_alone(context, claim, call))

    def _outcome_alone(self, context: ExecutionContext, claim: Claim, call: PreparedCall) -> Outcome:
        performer, own_job = self._runtime.performer, self._workload.own_job
        if own_job is not None:
            try:
                return own_job(context.lane, claim)
            except BaseException:  # of the user's job: the call is not to blame
                performer.release(context.lane, claim)
                raise
        if call.method.policy.isolate:
            return performer.perform_claim(context.lane, claim)
        try:
            return perform_call(context, claim, call, self._runtime.heartbeat.tracking)
        except BaseException as error:
            performer.break_off(context.lane, claim, error)
            raise

    # After an error: what cannot be released at once is a lost claim, which a sweep releases.

    def _release_unstarted(self, lane: Lane, claims: list[Claim]) -> None:
        if claims:
            lane.drop_connection()
            self._try_release(claims, lambda: release_claims(lane.connection, self._runtime.table, claims))

    def _release_started(self, lane: Lane, claims: list[Claim]) -> None:
        """Those of these that are still claimed: of a call that failed, or whose outcome was not written."""
        if claims:
            self._try_release(claims, lambda: release_abandoned(lane.engine, self._runtime.table, claims))

    def _try_release(self, claims: list[Claim], release: Callable[[], object]) -> None:
        try:
            release()
            self._runtime.claimer.note_released(claims)
        except Exception as error:
            logger.warning("%d claims were not released at once: %s", len(claims), describe(error).summary)
