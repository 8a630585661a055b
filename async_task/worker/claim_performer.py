"""Performing one claim from its row on: in this process, or in a child process.

1. A suspect is performed in the quarantine, a process of its own, so that it takes no other call along when it dies.
2. A call with `isolate=True` is performed in a child process of its own.
3. The zygote of these children is forked when the first child is needed, or before, by `prepare`.
"""

import contextlib
import datetime as dt
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from functools import partial

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.attempts.attempt import BaseAttempt
from async_task.database.dialects import locks_rows
from async_task.database.driver_errors import is_unavailable, transient_error
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.database.transactions import retry_transient
from async_task.error_text import quotes_nothing
from async_task.errors import AlreadyRunning, AsyncTaskError
from async_task.execution.follow_up import tell_of_child
from async_task.execution.parked_reasons import ParkedReasons
from async_task.execution.performer import perform_claim, settle_interrupted, tracked_elsewhere
from async_task.execution.prepared_call import ExecutionContext, bounds_of, timeout_error
from async_task.execution.release import park, park_lapsed
from async_task.execution.starts import NotStarted, Starts
from async_task.outcomes import Failed, Outcome, Parked, Retried, Superseded
from async_task.queue import fenced_writes, recovery
from async_task.queue.claim import Claim
from async_task.queue.final_failures import FinalFailure
from async_task.queue.hooks import Hooks
from async_task.queue.ledger import Ledger
from async_task.schema.states import Status
from async_task.schema.tables import table_of
from async_task.worker.bounded import finish_within
from async_task.worker.heartbeat import Heartbeat
from async_task.worker.processes.child_life import Calling
from async_task.worker.processes.parent import Children, Died, NotPerformed, TookTooLong
from async_task.worker.processes.pool import Isolation, Quarantine

logger = logging.getLogger("async_task")
NO_CHILDREN = (
    "isolate=True needs a process of its own, and here none can be forked: the system has no fork, or this process has "
    "the SQLite database open already; `async-task run-batch` and `async-task worker` can"
)


LONGEST_FLUSH = 2.0
"""Seconds that telemetry may take to write what it has buffered."""


def flush_telemetry(hooks: Hooks) -> None:
    """Write what telemetry has buffered, in a process that ends without exit handlers."""
    if hooks.observer is not None:
        finish_within(LONGEST_FLUSH, "telemetry", hooks.flush)


def is_fault_of_ours(error: BaseException) -> bool:
    """Whether neither the database nor a stop is to blame for what the performing of a call has raised."""
    is_other = not isinstance(error, Exception) or isinstance(error, (DBAPIError, PoolTimeout, AlreadyRunning))
    return not (is_other or is_unavailable(error) or transient_error(error) is not None)


def broken_off_by(error: BaseException) -> AsyncTaskError:
    """The error that a try is charged with, whose performing has raised `error`."""
    return quotes_nothing(AsyncTaskError(f"its performing was broken off by {type(error).__name__}"))


class ClaimPerformer:
    """Performs claims of one process, any number at once."""

    def __init__(
        self, source: Source, model: type[BaseAttempt], heartbeat: Heartbeat, ledger: Ledger, hooks: Hooks
    ) -> None:
        self._source = source
        self._model = model
        self._table = table_of(model)
        self._heartbeat = heartbeat
        self._hooks = hooks
        self.starts = Starts(ledger, heartbeat.may_have_lost)
        # SQLite's locks do not survive a fork.
        self._children = Children(self._in_child, None if locks_rows(source.dialect) else source.database_file)
        self._quarantine = Quarantine(self._children)
        self._isolation = Isolation(self._children)
        self._parked_reasons = ParkedReasons()
        self._deaths: set[uuid.UUID] = set()
        self.released: Callable[[Set[str]], Set[str]] = lambda queues: queues
        """As in ExecutionContext."""

    @property
    def can_start_children(self) -> bool:
        """Whether suspects can be performed in processes of their own."""
        return self._children.can_be_started

    def has_died(self, claim: Claim) -> bool:
        """Whether the call of this claim has killed its process; asked once."""
        is_dead = claim.id in self._deaths
        self._deaths.discard(claim.id)
        return is_dead

    def prepare(self) -> None:
        """Fork the zygote now, if that is possible: best before this process has threads, and for SQLite before the
        database is open."""
        with contextlib.suppress(OSError):  # the system has no process left: most likely none is needed
            self._children.prepare()

    def context_on(self, lane: Lane) -> ExecutionContext:
        """What the steps of performing on this lane have in common."""
        return ExecutionContext(
            self._source,
            self._model,
            self._table,
            lane,
            starts=self.starts,
            parked_reasons=self._parked_reasons,
            hooks=self._hooks,
            released=self.released,
        )

    def needs_child(self, lane: Lane, claim: Claim) -> bool:
        """Whether a claim is to be performed in a child process."""
        return claim.is_suspect or bounds_of(self.context_on(lane), claim).is_isolated

    def perform_claim(self, lane: Lane, claim: Claim) -> Outcome:
        """Perform a claim to its outcome. If it cannot be brought to one, its try is broken off, and that raised."""
        try:
            context = self.context_on(lane)
            bounds = bounds_of(context, claim)
            # Where there can be no children, a suspect is performed here, while nothing else is.
            if claim.is_suspect and self._children.can_be_started:
                return self._bring_to_outcome(self._quarantine.perform_suspect, context, claim, bounds.limit)
            if not bounds.is_isolated:
                return perform_claim(context, claim, self._heartbeat.tracking)
            if not self._children.can_be_started:
                return lane.run(partial(park, context, claim, NO_CHILDREN, started=False))
            return self._bring_to_outcome(self._isolation.perform_isolated, context, claim, bounds.limit)
        except BaseException as error:
            self.break_off(lane, claim, error)
            raise

    def break_off(self, lane: Lane, claim: Claim, error: BaseException) -> None:
        """End the try of a claim whose performing raised `error`, if that is possible; if not, a sweep recovers it."""
        if not self.charge(lane, claim, error):
            self.release(lane, claim)

    def charge(self, lane: Lane, claim: Claim, error: BaseException) -> bool:
        """Charge the try of a claim whose performing raised `error`, unless the database or a stop is to blame:
        uncharged, a call whose outcome we cannot write would be made again for ever. Returns whether that is done."""
        if is_fault_of_ours(error):
            with contextlib.suppress(Exception):
                lane.run(lane.drop_connection)
                settle_interrupted(self.context_on(lane), claim, broken_off_by(error), dt.timedelta(0))
                return True
        return False

    def release(self, lane: Lane, claim: Claim) -> None:
        """Park a claim whose performing has failed, if that is possible; if not, a sweep recovers it."""
        reason, after = "its performing was broken off", dt.timedelta(seconds=1)
        with contextlib.suppress(Exception):
            lane.run(lambda: fenced_writes.park(lane.engine, self._table, claim, after, reason, started=True))

    def abandon(self) -> None:
        """End all child processes at once: the lanes that wait for their calls release the claims. From any thread."""
        for children in (self._quarantine, self._isolation, self._children):
            children.close()

    def _bring_to_outcome(
        self,
        perform_in_child: Callable[[Claim, float | None], Outcome],
        context: ExecutionContext,
        claim: Claim,
        limit: dt.timedelta | None,
    ) -> Outcome:
        """Perform it in a child process; where that could not write the outcome, write it here."""
        with self._heartbeat.tracking(claim.id):
            began = time.monotonic()
            try:
                context.starts.begin(claim)  # it may run there, if this process dies
                outcome = perform_in_child(claim, None if limit is None else limit.total_seconds())
                context.lane.run(partial(tell_of_child, context, claim))
                return outcome
            except Died as death:
                outcome = self._count_crash(context, claim, str(death))
                context.lane.run(partial(tell_of_child, context, claim))
                return outcome
            except TookTooLong:
                assert limit is not None
                late = timeout_error(limit, "its process was ended")
                return settle_interrupted(context, claim, late, dt.timedelta(seconds=time.monotonic() - began))
            except NotStarted:
                return context.lane.run(partial(park_lapsed, context, claim))
            except NotPerformed as unable:
                return context.lane.run(partial(park, context, claim, str(unable), started=unable.started))

    def _count_crash(self, context: ExecutionContext, claim: Claim, how: str) -> Outcome:
        logger.warning("%s, attempt %s: %s", claim.call, claim.id, how)
        if claim.is_suspect:
            self._deaths.add(claim.id)
        status = retry_transient(
            lambda: context.lane.run(lambda: recovery.recover_claim(context.engine, self._table, claim, how))
        )
        if status is None:
            return Superseded(claim.id)
        if status is Status.FAILED:
            failed = Failed(claim.id, recovery.crash_reason(claim.num_crashes + 1, how))
            final = FinalFailure.of_claim(claim, failed, failed.reason)
            final.log()
            self._hooks.crashed(claim, failed)
            self._hooks.ended(final)
            return failed
        self._hooks.crashed(claim, Retried(claim.id, dt.timedelta(0), how))
        return Parked(claim.id, dt.timedelta(0), how)

    @contextmanager
    def _in_child(self, calling: Calling) -> Iterator[Callable[[Claim], Outcome]]:
        """In a child process: what performs a claim there, on connections of its own."""
        with open_lane(self._source, private=True) as lane:
            context = ExecutionContext(self._source, self._model, self._table, lane, calling, hooks=self._hooks)

            def perform(claim: Claim) -> Outcome:
                try:
                    return perform_claim(context, claim, tracked_elsewhere)
                finally:
                    flush_telemetry(self._hooks)

            yield perform
