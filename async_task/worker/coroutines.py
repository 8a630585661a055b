"""Runs calls of coroutine functions: many at a time, on one event loop in a thread of its own.

1. What lanes have claimed is started as soon as a slot is free.
2. Finished calls are settled on a second thread with a lane of its own, many in one commit, at the latest
   `settle_within` after the first.
3. A coroutine that takes an AsyncSession, or whose row is locked, is settled by itself, on the loop.
4. While a coroutine blocks the loop, no other one is started here, and a warning says where it blocks.
"""

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

from sqlalchemy.util import greenlet_spawn

from async_task.database.answers import Raised, run_to_end
from async_task.database.dialects import locks_rows
from async_task.database.engines import Source
from async_task.database.lanes import Lane, LoopLane, open_lane
from async_task.error_text import describe
from async_task.execution.call import CLEAN_UP, run_coroutine
from async_task.execution.error_hook import is_hooked
from async_task.execution.follow_up import follow_up
from async_task.execution.in_flight import ClaimedCall, FinishedCall, Settlement, finish
from async_task.execution.outcome_writer import write_each, write_group, write_hooked
from async_task.execution.performer import perform_call
from async_task.execution.prepared_call import ExecutionContext, PreparedCall
from async_task.execution.release import park_lapsed
from async_task.execution.starts import NotStarted
from async_task.outcomes import Outcome
from async_task.queue.claim import Claim
from async_task.targets.target import Method
from async_task.worker.claim_performer import broken_off_by, is_fault_of_ours
from async_task.worker.loop_watch import LoopWatch
from async_task.worker.runtime import Runtime
from async_task.worker.slots import Reservation, Slots

logger = logging.getLogger("async_task")


class Coroutines:
    """At most `number` run at once. `ended` is given each outcome after its commit. `freed` is called when a coroutine
    can be started and none could before: a slot is free, or the loop answers again. Both are called on threads of this
    object. `requested`: as in `Slots`."""

    def __init__(
        self,
        runtime: Runtime,
        number: int,
        settle_within: float,
        *,
        ended: Callable[[Claim, Outcome], None],
        freed: Callable[[], None],
        requested: Callable[[str], None],
    ) -> None:
        self._runtime = runtime
        self.slots = Slots(number, self._can_start, requested)
        """To be reserved before `start`."""
        self._settle_within = settle_within
        self._ended = ended
        self._freed = freed
        self._changed = self.slots.changed
        self._running: dict[uuid.UUID, Claim] = {}
        self._is_abandoned = False
        self._finished: list[FinishedCall] = []
        self._unstarted: list[Claim] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lane: LoopLane | None = None
        self._loop_thread: threading.Thread | None = None
        self._settle_thread: threading.Thread | None = None
        self._is_over = False
        self._watch: LoopWatch | None = None

    def _can_start(self) -> bool:
        is_blocked = self._watch is not None and self._watch.is_blocked
        return not (self._is_over or self._is_abandoned or is_blocked)

    def start(self, calls: Sequence[ClaimedCall], reserved: Reservation) -> None:
        """Start these calls in slots that were reserved, and release the other slots."""
        if not calls:
            reserved.use(0)
            return
        loop = self._running_loop()
        self._runtime.heartbeat.track([claim.id for claim, _ in calls])
        with self._changed:
            self._running.update((claim.id, claim) for claim, _ in calls)
        reserved.use(len(calls))
        loop.call_soon_threadsafe(self._create_tasks, calls)

    def abandon(self) -> list[Claim]:
        """Cancel the running calls, and write no outcomes. Returns the claims that the caller must release."""
        with self._changed:
            self._is_abandoned = True
            running = list(self._running.values())
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tuple(self._tasks)])
        return running

    def close(self) -> None:
        """End both threads. Calls that still run are canceled, and a sweep recovers their claims."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if self._settle_thread is not None:
            # If it still runs, the database is not reachable, and it would retry for a long time.
            self._settle_thread.join(timeout=CLEAN_UP)
        if self._watch is not None:
            self._watch.close()
        if self._loop is not None and self._loop_thread is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join(timeout=2 * CLEAN_UP)

    # On the event loop.

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._changed:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop_thread = threading.Thread(target=self._run_loop, name="async-task-loop", daemon=True)
                self._settle_thread = threading.Thread(target=self._settle_all, name="async-task-settle", daemon=True)
                self._loop_thread.start()
                self._settle_thread.start()
                self._watch = LoopWatch(self._loop, self._loop_thread, lambda: self.slots.num_used, self._freed)
            return self._loop

    def _run_loop(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        try:
            while not self._is_over:
                # asyncio lets SystemExit in any task leave the loop, and any call can stop it: the others go on.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    self._loop.run_forever()
            run_to_end(self._loop.run_until_complete, self._shut_down())
        finally:
            self._loop.close()

    async def _shut_down(self) -> None:
        """Cancel the running calls, wait a while for them, and close the connections."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLEAN_UP)
        if self._lane is not None:
            await greenlet_spawn(self._lane.close)
        loop = asyncio.get_running_loop()
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()

    def _create_tasks(self, calls: Sequence[ClaimedCall]) -> None:
        assert self._loop is not None
        for claim, call in calls:
            task = self._loop.create_task(self._run(claim, call), name=f"attempt {claim.id} ({claim.target})")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, claim: Claim, call: PreparedCall) -> None:
        try:
            if call.session_class is not None or call.is_locked:
                self._end(claim, await greenlet_spawn(self._perform_alone, claim, call))
                return
            began = time.monotonic()
            answer = await run_coroutine(claim, call, self._runtime.performer.starts, self._runtime.hooks)
            self._add_finished(finish(claim, call, answer, time.monotonic() - began))
        except NotStarted:
            self._add_unstarted(claim)
        except BaseException as error:
            logger.error("attempt %s is not settled: %s", claim.id, describe(error).summary)
            if is_fault_of_ours(error):
                self._add_finished(finish(claim, call, Raised(broken_off_by(error)), 0.0))
            else:
                self._end(claim, None)  # the worker's next sweep releases its claim

    def _perform_alone(self, claim: Claim, call: PreparedCall) -> Outcome:
        self._lane = self._lane or LoopLane(self._runtime.source)
        context = replace(self._runtime.performer.context_on(self._lane), is_abandoned=lambda: self._is_abandoned)
        return perform_call(context, claim, call, self._runtime.heartbeat.tracking)

    def _add_finished(self, finished: FinishedCall) -> None:
        with self._changed:
            is_abandoned = self._is_abandoned
            if not is_abandoned:
                self._finished.append(finished)
                self._changed.notify_all()
        if is_abandoned:
            self._end(finished.claim, None)

    def _add_unstarted(self, claim: Claim) -> None:
        with self._changed:
            self._unstarted.append(claim)
            self._changed.notify_all()

    # On the thread that settles.

    def _settle_all(self) -> None:
        with open_lane(self._runtime.source, private=True) as lane:
            while any(group := self._next_group()):
                try:
                    lane.run(partial(self._settle, lane, *group))
                except BaseException as error:  # this thread settles for all calls, and must not end
                    lane.run(lane.drop_connection)
                    self._leave_unsettled(lane, group, error)

    def _next_group(self) -> tuple[list[FinishedCall], list[Claim]]:
        """Wait for a finished call, and then at most `settle_within` for others. Also the claims of calls that were not
        started. Empty after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._unstarted or self._is_over)
            self._changed.wait_for(
                lambda: self._is_over or len(self._finished) >= self.slots.num_used, timeout=self._settle_within
            )
            group = self._finished, self._unstarted
            self._finished, self._unstarted = [], []
            return group

    def _settle(self, lane: Lane, group: list[FinishedCall], unstarted: list[Claim]) -> None:
        context = self._runtime.performer.context_on(lane)
        hooked = [one for one in group if is_hooked(context, one)]
        others = [one for one in group if one not in hooked] if hooked else group
        is_written = write_group(context, others) if others else True
        settled = ((one, one.settlement) for one in others) if is_written else write_each(context, others)
        for one, settlement in chain(settled, write_hooked(context, hooked)):
            self._end(one.claim, None if settlement is None else self._follow_up(context, one, settlement))
        for claim in unstarted:
            self._end(claim, self._park(context, claim))

    def _leave_unsettled(self, lane: Lane, group: tuple[list[FinishedCall], list[Claim]], error: BaseException) -> None:
        """Free the slots of those that are not settled, and charge their tries, unless the database is to blame. The
        worker's next sweep releases the other claims."""
        finished, unstarted = group
        for claim in [one.claim for one in finished] + unstarted:
            if self._running.get(claim.id) is claim:
                logger.error("attempt %s is not settled: %s", claim.id, describe(error).summary)
                if claim not in unstarted:
                    self._runtime.performer.charge(lane, claim, error)
                self._end(claim, None)

    def _park(self, context: ExecutionContext, claim: Claim) -> Outcome | None:
        try:
            return park_lapsed(context, claim)
        except Exception as error:
            logger.error("attempt %s is not released: %s", claim.id, describe(error).summary)
            return None

    def _follow_up(self, context: ExecutionContext, one: FinishedCall, settlement: Settlement) -> Outcome | None:
        try:
            return follow_up(context, one.claim, settlement)
        except Exception as error:  # the others of the group go on
            logger.error("attempt %s: %s", one.claim.id, one.call.describe(error).summary)
            return None

    # On either thread.

    def _end(self, claim: Claim, outcome: Outcome | None) -> None:
        self._runtime.heartbeat.untrack((claim.id,))
        with self._changed:
            self._running.pop(claim.id, None)
        try:
            if outcome is not None:
                self._ended(claim, outcome)
        finally:
            self._free_slot()

    def _free_slot(self) -> None:
        after = self.slots.free()
        if after:
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._loop.call_later, after, self._offer_slots)
        elif after is not None:
            self._offer_slots()

    def _offer_slots(self) -> None:
        if self.slots.offer():
            self._freed()


def runs_on_loop(method: Method, source: Source) -> bool:
    """Whether a call runs here: a coroutine function without a session and a lock; on an AsyncEngine also one that
    takes an AsyncSession, or whose row is locked."""
    signature = method.signature
    if not signature.is_async:
        return False
    needs_database = signature.session_class is not None or (method.mode == "locked" and locks_rows(source.dialect))
    on_our_sessions = signature.session_class is None or signature.session_is_async
    return not needs_database or (source.is_async and on_our_sessions)
