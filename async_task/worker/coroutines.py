"""Calls of coroutine functions: many at a time, on one event loop in a thread of its own.

1. What lanes have claimed is begun as soon as a slot is free.
2. What has answered is written by a lane of its own, many in one commit, at the latest `settle_within` after the first.
3. A coroutine that takes an AsyncSession, or wants its row locked, is brought to its outcome by itself, on the loop.
"""

import asyncio
import datetime as dt
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy.util import greenlet_spawn

from async_task.database.lanes import Lane, LoopLane, open_lane
from async_task.error_text import describe
from async_task.execution.call import CLEAN_UP, ExecutionContext, PreparedCall, make_coroutine
from async_task.execution.performer import followed, perform_prepared
from async_task.execution.settle import Called, decided, failure_of, settle_alone, settled
from async_task.outcomes import SUCCESS, Outcome
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import OutcomeWrite
from async_task.worker.runtime import Runtime

logger = logging.getLogger("async_task")


class Coroutines:
    """`number`: how many run at once. `ended`: told of each outcome, after its commit; `freed`: called when a slot is
    free again where none was. Both are called on threads of this."""

    def __init__(
        self,
        runtime: Runtime,
        number: int,
        settle_within: float,
        *,
        ended: Callable[[Outcome], None],
        freed: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._number = number
        self._settle_within = settle_within
        self._ended = ended
        self._freed = freed
        self._changed = threading.Condition()
        self._num_running = 0
        self._running: dict[uuid.UUID, Claim] = {}
        self._is_abandoned = False
        self._answered: list[Called] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lane: LoopLane | None = None
        self._writer: threading.Thread | None = None
        self._runner: threading.Thread | None = None
        self._is_over = False

    def reserve(self, number: int) -> int:
        """Take up to so many slots: how many were free; at the end none is. For `start`, or `free`."""
        with self._changed:
            is_open = not (self._is_over or self._is_abandoned)
            granted = min(number, self._number - self._num_running) if is_open else 0
            self._num_running += granted
            return granted

    @property
    def is_full(self) -> bool:
        with self._changed:
            return self._num_running >= self._number

    @property
    def num_running(self) -> int:
        with self._changed:
            return self._num_running

    def start(self, calls: Sequence[tuple[Claim, PreparedCall]]) -> None:
        """Begin these calls, for which slots were reserved."""
        if calls:
            self._runtime.heartbeat.track([claim.id for claim, _ in calls])
            with self._changed:
                self._running.update((claim.id, claim) for claim, _ in calls)
            self._begun().call_soon_threadsafe(self._begin, calls)

    def wait(self, seconds: float) -> bool:
        """Until all have ended and are written, but not longer: whether it is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_running, timeout=seconds)

    def abandon(self) -> list[Claim]:
        """Cancel what still runs, and forget it: the claims that are to be given back."""
        with self._changed:
            self._is_abandoned = True
            running = list(self._running.values())
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tuple(self._tasks)])
        return running

    def close(self) -> None:
        """End both threads. What still runs is left to whoever finds its claim."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if self._writer is not None:
            # When it is at work still, the database is away, and it would insist for long.
            self._writer.join(timeout=CLEAN_UP)
        if self._loop is not None and self._runner is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._runner.join(timeout=2 * CLEAN_UP)

    # On the loop.

    def _begun(self) -> asyncio.AbstractEventLoop:
        with self._changed:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._runner = threading.Thread(target=self._run_loop, name="async-task-loop", daemon=True)
                self._writer = threading.Thread(target=self._write_answers, name="async-task-settle", daemon=True)
                self._runner.start()
                self._writer.start()
            return self._loop

    def _run_loop(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._leave())
        finally:
            self._loop.close()

    async def _leave(self) -> None:
        """Cancel what still runs, but do not wait for ever for what does not mind; then end the connections."""
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

    def _begin(self, calls: Sequence[tuple[Claim, PreparedCall]]) -> None:
        assert self._loop is not None
        for claim, call in calls:
            task = self._loop.create_task(self._perform(claim, call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _perform(self, claim: Claim, call: PreparedCall) -> None:
        try:
            if call.session_class is not None or call.is_locked:
                self._end(claim, await greenlet_spawn(self._perform_alone, claim, call))
                return
            began = time.monotonic()
            answer = await make_coroutine(claim, call)
            elapsed = dt.timedelta(seconds=time.monotonic() - began)
            self._note(Called(claim, call, decided(claim, call, answer, elapsed)))
        except BaseException as error:
            # Its claim is a stray from now on, which the worker's next sweep gives back.
            logger.error("attempt %s was not brought to an outcome: %s", claim.id, describe(error).summary)
            self._end(claim, None)

    def _perform_alone(self, claim: Claim, call: PreparedCall) -> Outcome:
        self._lane = self._lane or LoopLane(self._runtime.source)
        return perform_prepared(self._runtime.context_on(self._lane), claim, call, self._runtime.heartbeat.tracking)

    def _note(self, answered: Called) -> None:
        with self._changed:
            is_wanted = not self._is_abandoned
            if is_wanted:
                self._answered.append(answered)
                self._changed.notify_all()
        if not is_wanted:
            self._end(answered.claim, None)

    # On the thread that writes.

    def _write_answers(self) -> None:
        with open_lane(self._runtime.source, private=True) as lane:
            while answered := self._next():
                lane.run(lambda: self._settle(lane, answered))

    def _next(self) -> list[Called]:
        """What has answered, as soon as there is something, and what answers shortly after. Empty: that is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._answered or self._is_over)
            self._changed.wait_for(
                lambda: self._is_over or len(self._answered) >= self._num_running, timeout=self._settle_within
            )
            answered, self._answered = self._answered, []
            return answered

    def _settle(self, lane: Lane, answered: list[Called]) -> None:
        context = self._runtime.context_on(lane)
        try:
            is_written = self._write(context, answered)
        except Exception as problem:
            logger.warning("%d outcomes were not written at once: %s", len(answered), describe(problem).summary)
            is_written = False
        if not is_written:
            lane.drop_connection()
        for one in answered:
            self._tell(context, one, is_written=is_written)

    def _write(self, context: ExecutionContext, answered: list[Called]) -> bool:
        by_claim: defaultdict[uuid.UUID, list[Claim]] = defaultdict(list)
        others = []
        for claim, call, decision in answered:
            if decision is SUCCESS:
                by_claim[claim.claim_id].append(claim)
            else:
                others.append(OutcomeWrite(claim, decision, failure_of(decision, call)))
        connection = context.lane.connection
        with connection.begin() as transaction:
            write = partial(fenced_writes.write_outcomes, connection, context.table)
            if write([], others) and all(write(succeeded) for succeeded in by_claim.values()):
                return True
            transaction.rollback()
            return False

    def _tell(self, context: ExecutionContext, one: Called, *, is_written: bool) -> None:
        outcome = None
        try:
            result = settled(*one) if is_written else settle_alone(context, *one)
            outcome = followed(context, one.claim, one.call, result)
        except Exception as error:
            # This thread writes for all: it goes on. What is not written is a stray, as one without an answer is.
            logger.error("attempt %s: %s", one.claim.id, describe(error, one.call.secrets).summary)
        self._end(one.claim, outcome)

    def _end(self, claim: Claim, outcome: Outcome | None) -> None:
        self._runtime.heartbeat.untrack((claim.id,))
        with self._changed:
            self._running.pop(claim.id, None)
        if outcome is not None:
            self._ended(outcome)
        self.free(1)

    def free(self, number: int) -> None:
        """So many slots are free again."""
        with self._changed:
            was_full = self._num_running >= self._number
            self._num_running -= number
            self._changed.notify_all()
        if was_full and number:
            self._freed()


def runs_on_loop(call: PreparedCall, *, is_async: bool) -> bool:
    """Whether a call belongs to the coroutines; on an AsyncEngine (`is_async`) also one that uses the database."""
    needs_database = call.session_class is not None or call.is_locked
    on_our_sessions = call.session_class is None or call.method.signature.session_is_async
    return call.method.signature.is_async and (not needs_database or (is_async and on_our_sessions))
