"""A shift: one process at work for as long as one verb lasts, with its name, its beat, its lanes and its quarantine."""

import contextlib
import datetime as dt
import logging
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Table

from async_task.attempts.attempt import BaseAttempt
from async_task.database.clock import UnreadInstant
from async_task.database.dialects import locks_rows, probes_laterally
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.database.transactions import PATIENCE, retry_transient
from async_task.execution.adaptive import StartMarks
from async_task.execution.call import ExecutionContext, bounds_of, timeout_error
from async_task.execution.performer import perform_claim, settle_interrupted, tracked_elsewhere
from async_task.execution.release import park
from async_task.outcomes import Failed, Outcome, Parked, Superseded
from async_task.queue import fenced_writes, fetch, limits, sweep, workers
from async_task.queue.claim import Claim
from async_task.queue.workers import RunningBatch, worker_name
from async_task.schema.states import Status
from async_task.schema.tables import table_of
from async_task.targets.registry import limits as target_limits
from async_task.worker.heartbeat import Heartbeat
from async_task.worker.processes.parent import Calling, Children, Died, NotPerformed, TookTooLong
from async_task.worker.processes.pool import Isolation, Quarantine

logger = logging.getLogger("async_task")
Claimed = TypeVar("Claimed")
NO_CHILDREN = (
    "isolate=True needs a process of its own, and here none can be forked: the system has no fork, or this process has "
    "the SQLite database open already; `async-task run-batch` and `async-task worker` can"
)


class Runtime:
    """What claims and performs attempts of one model. Close it, to end its beat and its children; a call that is in one
    is broken off and given back."""

    def __init__(self, source: Source, model: type[BaseAttempt], lease: dt.timedelta) -> None:
        self.source = source
        self.model = model
        self.table: Table = table_of(model)
        # A name of its own: what a shift leaves behind is no longer held, though its process lives on.
        self.worker = worker_name()
        self.lease = lease
        # On a connection of its own: the user's pool may be busy with the very calls whose leases are to be extended.
        self.heartbeat = Heartbeat(self.table, self.worker, lease, lambda: open_lane(source, private=True))
        self._marks: defaultdict[str, StartMarks] = defaultdict(StartMarks)
        # SQLite must not be carried over a fork.
        self._children = Children(self._in_child, may_fork=lambda: not self._has_database_open())
        self._quarantine = Quarantine(self._children)
        self._isolation = Isolation(self._children)
        # Best before there are threads; for SQLite it is now or never.
        is_early = threading.active_count() == 1 or not locks_rows(source.dialect)
        if is_early:
            with contextlib.suppress(OSError):  # no process is left: most likely none is needed
                self._children.prepare()

    def lane(self) -> Lane:
        return open_lane(self.source)

    def begin_run(self, *, alone: bool) -> RunningBatch | None:
        """Be a run from now on, that others see; `alone`: unless another one is at work, which is then answered."""
        with self.lane() as lane:
            return retry_transient(lambda: self.heartbeat.begin_run(lane, alone=alone))

    def claim_one(self, lane: Lane, attempt_id: uuid.UUID) -> Claim | Outcome:
        """Take this attempt, or say why not."""
        claim = partial(fetch.claim_one, lane.engine, self.table, self.worker, self.lease, attempt_id)
        return self._claimed(lane, claim, lambda found: found[0])

    def claim_due(
        self,
        lane: Lane,
        queue: str,
        *,
        began: dt.datetime | None = None,
        suspects: bool,
        targets: Sequence[str] = (),
    ) -> Claim | None:
        """Take the most urgent due attempt of this queue, and of these targets where some are named: only what is
        started at once is claimed."""
        claim = partial(
            fetch.claim_due,
            lane.engine,
            self.table,
            self.worker,
            self.lease,
            queue,
            1,
            began=began,
            suspects=suspects,
            targets=targets,
        )
        claims = self._claimed(lane, claim, lambda found: found)
        return claims[0] if claims else None

    def claim_many(
        self, lane: Lane, queue: str, number: int, *, besides: Sequence[tuple[str, str]], patience: float
    ) -> tuple[list[Claim], dt.timedelta | None]:
        """Take the most urgent due attempts of this queue, suspects not among them, on the lane's own connection; and
        when to come again, where it was not looked for all. `besides`: calls left out, each a target and its method.
        Inside of `lane.run`."""
        # What is left out must not be passed by.
        marks = self._marks[queue] if probes_laterally(lane.engine.dialect) and not besides else None

        def claim(claim_id: uuid.UUID) -> tuple[list[Claim], dt.timedelta | None]:
            given = (self.table, self.worker, self.lease, queue, number)
            began = time.monotonic()
            at = [] if marks is None else marks.at(began)
            try:
                claims = fetch.claim_due(lane.connection, *given, claim_id=claim_id, besides=besides, marks=at)
            except BaseException:
                lane.drop_connection()
                raise
            if marks is None:
                return claims, None
            now = time.monotonic()
            latest = {one.priority: one.due_at for one in claims}
            marks.note(
                {priority: UnreadInstant.read(due_at) for priority, due_at in latest.items()},
                now=now, front_took=None if at else now - began,
            )  # fmt: skip
            is_all = not at or len(claims) >= number
            return claims, None if is_all else dt.timedelta(seconds=marks.until_front(now))

        return self._claimed(lane, claim, lambda found: (found, None), patience, is_inside=True)

    def begin_at_front(self, queue: str) -> None:
        """The next claim: something in this queue can be claimed now that was passed by."""
        self._marks.pop(queue, None)

    def claim_limited(
        self, lane: Lane, queue: str, *, began: dt.datetime, suspects: bool, targets: Sequence[str] = ()
    ) -> tuple[Claim | None, dt.timedelta | None]:
        """The same of a queue with a limit; and where that holds something back, when to come again."""
        own = target_limits().get(queue)
        where = (lane.engine, self.table, self.worker, self.lease, queue, 1, own)
        claim = partial(limits.claim_limited, *where, began=began, suspects=suspects, targets=targets)
        claims, after = self._claimed(lane, claim, lambda found: (found, None))
        return (claims[0] if claims else None), after

    def claim_many_limited(
        self, lane: Lane, queue: str, number: int, *, besides: Sequence[tuple[str, str]], patience: float
    ) -> tuple[list[Claim], dt.timedelta | None]:
        """As `claim_many`, of a queue with a limit; and where that holds something back, when to come again."""
        where = (lane.engine, self.table, self.worker, self.lease, queue, number, target_limits().get(queue))
        claim = partial(limits.claim_limited, *where, besides=besides)
        return self._claimed(lane, claim, lambda found: (found, None), patience, is_inside=True)

    def perform(self, lane: Lane, claim: Claim) -> Outcome:
        """Perform a claimed attempt on this lane; a suspect in the quarantine, one at a time; one that asks for it in a
        process of its own."""
        try:
            context = self.context_on(lane)
            bounds = bounds_of(context, claim)
            # Where there are no children, a suspect is performed here, while nothing else is.
            if claim.is_suspect and self._children.can_be_had:
                return self._perform_in(self._quarantine, context, claim, bounds.limit)
            if not bounds.is_isolated:
                return perform_claim(context, claim, self.heartbeat.tracking)
            if not self._children.can_be_had:
                return lane.run(partial(park, context, claim, NO_CHILDREN, started=False))
            return self._perform_in(self._isolation, context, claim, bounds.limit)
        except BaseException:
            self._give_back(lane, claim)
            raise

    def abandon(self) -> None:
        """End the calls that are made in children, at once: their attempts are given back, by the lanes that wait for
        them. May be called from any thread."""
        for children in (self._quarantine, self._isolation, self._children):
            children.close()

    def close(self) -> None:
        self.heartbeat.stop()
        self.abandon()
        if self.heartbeat.is_over:
            with contextlib.suppress(Exception), self.lane() as lane:
                lane.run(lambda: workers.deregister(lane.engine, self.table, self.worker))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _give_back(self, lane: Lane, claim: Claim) -> None:
        """What could not be brought to an outcome is given back if that is possible, else left to a sweep."""
        reason, after = "its performing was broken off", dt.timedelta(seconds=1)
        give = partial(fenced_writes.park, lane.engine, self.table, claim, after, reason, started=True)
        with contextlib.suppress(Exception):
            lane.run(give)

    def context_on(self, lane: Lane) -> ExecutionContext:
        """Where attempts are performed on this lane."""
        return ExecutionContext(self.source, self.model, self.table, lane)

    def _claimed(
        self, lane: Lane, claim: Callable[..., Claimed], found: Callable[[list[Claim]], Claimed],
        patience: float = PATIENCE, *, is_inside: bool = False,
    ) -> Claimed:  # fmt: skip
        """Claim under a fresh id, by which a claim is known that was committed although its connection was lost."""
        claim_id, is_first = uuid.uuid4(), True

        def take() -> Claimed:
            nonlocal is_first
            was_first, is_first = is_first, False
            if not was_first and (claims := fetch.claims_under(lane.engine, self.table, claim_id)):
                return found(claims)
            return claim(claim_id=claim_id)

        run: Callable[[Callable[[], Any]], Any] = (lambda work: work()) if is_inside else lane.run
        retry_transient(lambda: run(lambda: self.heartbeat.before_claim(lane)), patience)
        claimed: Claimed = retry_transient(lambda: run(take), patience)
        return claimed

    def _perform_in(
        self, children: Quarantine | Isolation, context: ExecutionContext, claim: Claim, limit: dt.timedelta | None
    ) -> Outcome:
        """Perform it in a child, and bring it to its outcome where the child could not."""
        with self.heartbeat.tracking(claim.id):
            began = time.monotonic()
            try:
                return children.perform(claim, None if limit is None else limit.total_seconds())
            except Died as death:
                return self._lose(context, claim, str(death))
            except TookTooLong:
                assert limit is not None
                late = timeout_error(limit, "its process was ended")
                return settle_interrupted(context, claim, late, dt.timedelta(seconds=time.monotonic() - began))
            except NotPerformed as unable:
                return context.lane.run(partial(park, context, claim, str(unable), started=unable.started))

    def _lose(self, context: ExecutionContext, claim: Claim, how: str) -> Outcome:
        logger.warning("attempt %s: %s", claim.id, how)
        status = retry_transient(
            lambda: context.lane.run(lambda: sweep.count_crash(context.engine, self.table, claim, how))
        )
        if status is None:
            return Superseded(claim.id)
        if status is Status.FAILED:
            return Failed(claim.id, sweep.crashed_reason(claim.num_crashes + 1, how))
        return Parked(claim.id, dt.timedelta(0), how)

    @contextmanager
    def _in_child(self, calling: Calling) -> Iterator[Callable[[Claim], Outcome]]:
        """In a child: what performs a claim there, with connections of its own."""
        with open_lane(self.source, private=True) as lane:
            context = replace(self.context_on(lane), calling=calling)
            yield lambda claim: perform_claim(context, claim, tracked_elsewhere)

    def _has_database_open(self) -> bool:
        """Whether this process has an SQLite database open, as far as the system tells; never for a server."""
        if locks_rows(self.source.dialect):
            return False
        try:
            opened = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        except OSError:
            return True
        name = os.path.realpath(self.source.database_file)
        return any(one.startswith(name) for one in opened)
