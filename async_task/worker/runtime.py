"""What one verb (a worker, a batch, the performing of one attempt) works with for as long as it lasts.

1. A name, under which it claims, and a heartbeat, which tells other processes that it lives.
2. What claims, and what performs one claim.
3. Lanes.
"""

import datetime as dt
import threading
import weakref
from functools import partial
from types import TracebackType
from typing import Self

from sqlalchemy import Table

from async_task.attempts.attempt import BaseAttempt
from async_task.database.dialects import locks_rows
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.database.transactions import retry_transient
from async_task.queue import workers
from async_task.queue.hooks import NO_HOOKS, Hooks
from async_task.queue.ledger import Ledger
from async_task.queue.retention import Keeping
from async_task.queue.running_batches import RunningBatch
from async_task.queue.workers import worker_name
from async_task.schema.tables import table_of
from async_task.worker.bounded import finish_within
from async_task.worker.claim_performer import ClaimPerformer, flush_telemetry
from async_task.worker.claimer import Claimer
from async_task.worker.heartbeat import Heartbeat
from async_task.worker.held_name import HeldName
from async_task.worker.outages import Outages
from async_task.worker.processes.forking import runs_exit_handlers
from async_task.worker.unknown_calls import UnknownCalls

RETRIED_FOR = 1.0
"""Seconds for which the deletion of its own row is repeated, when a database that is away may come back."""
LONGEST_FAREWELL = 3.0
"""Seconds in which child processes end and the row of this process is deleted; else others see that it is silent."""


KEEP_ALL = Keeping()


class Runtime:
    """Opens and forks nothing until it is used. `close` ends its heartbeat and its child processes; a call that runs in
    one of these is ended, and its claim released."""

    def __init__(
        self, source: Source, model: type[BaseAttempt], lease: dt.timedelta, keeping: Keeping = KEEP_ALL,
        name: str | None = None, *, has_sessions: bool = True, hooks: Hooks = NO_HOOKS,
    ) -> None:  # fmt: skip
        """`name`: given to this worker. `has_sessions`: as for `HeldName`. `hooks`: of the application."""
        self.source = source
        self.model = model
        self.table: Table = table_of(model)
        # A fresh name: claims that an earlier runtime of this process left behind count as lost although it lives.
        self.worker = worker_name(name)
        self.lease = lease
        self.keeping = keeping
        self.hooks = hooks
        self.outages = Outages(self.worker)
        # On a connection of its own: the user's pool may be busy with the very calls whose leases are to be extended.
        self.ledger = Ledger(self.worker)
        self.held_name = (
            None if name is None
            else HeldName(self.table, self.worker, lease, self.private_lane, has_sessions=has_sessions, hooks=hooks)
        )  # fmt: skip
        self.heartbeat = Heartbeat(
            self.table, self.worker, lease, self.private_lane, self.outages, self.ledger, self.held_name
        )
        self.unknown_calls = UnknownCalls(self.worker)
        self.claimer = Claimer(self.table, self.worker, lease, self.heartbeat, hooks)
        self.performer = ClaimPerformer(source, model, self.heartbeat, self.ledger, hooks)
        self._lanes: weakref.WeakSet[Lane] = weakref.WeakSet()
        self.has_left_claims = False
        """Whether a stop left claims that were not released. Nobody is to be charged for them."""

    def prepare_children(self) -> None:
        """Fork the zygote of child processes, where now is a better time than later: no threads run yet, or the
        database is SQLite, which must not be open then."""
        if threading.active_count() == 1 or not locks_rows(self.source.dialect):
            self.performer.prepare()

    def lane(self) -> Lane:
        """A lane on the user's own pool, where the database allows that."""
        lane = open_lane(self.source)
        self._lanes.add(lane)
        return lane

    def disconnect_calls(self) -> None:
        """Cut off the transactions of the calls that are performed by themselves on `lane`s, from another thread."""
        for lane in list(self._lanes):
            lane.disconnect_call()

    def private_lane(self) -> Lane:
        """A lane with connections that no other lane shares."""
        return open_lane(self.source, private=True)

    def begin_run(self, *, alone: bool) -> RunningBatch | None:
        """From now on this is a batch that other processes see. `alone`: unless another batch runs, which is returned
        then."""
        with self.lane() as lane:
            return retry_transient(lambda: self.heartbeat.begin_run(lane, alone=alone))

    def close(self) -> None:
        self.heartbeat.stop()
        finish_within(LONGEST_FAREWELL, "end-of-children", self.performer.abandon)
        if self.heartbeat.is_over or self.has_left_claims:
            finish_within(LONGEST_FAREWELL, "deregistration", self._deregister)
        if self.held_name is not None:
            finish_within(LONGEST_FAREWELL, "release of the name", self.held_name.close)
        if not runs_exit_handlers():
            flush_telemetry(self.hooks)

    def _deregister(self) -> None:
        with self.lane() as lane:  # a connection is there already, if calls were performed on the user's pool
            # Again after an error: a server that restarted has cut off the connections that idled in the pool.
            if self.has_left_claims:
                leave = partial(workers.leave_claims, lane.engine, self.table, self.worker, self.lease)
                lane.run(lambda: retry_transient(leave, RETRIED_FOR))
            else:
                leave = partial(workers.deregister, lane.engine, self.table, self.worker)
                lane.run(lambda: retry_transient(leave, RETRIED_FOR))
                self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
