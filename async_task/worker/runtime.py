"""What one verb (a worker, a batch, the performing of one attempt) works with for as long as it lasts.

1. A name, under which it claims, and a heartbeat, which tells other processes that it lives.
2. What claims, and what performs one claim.
3. Lanes.
"""

import contextlib
import datetime as dt
import threading
from types import TracebackType
from typing import Self

from sqlalchemy import Table

from async_task.attempts.attempt import BaseAttempt
from async_task.database.dialects import locks_rows
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.database.transactions import retry_transient
from async_task.execution.call import ExecutionContext
from async_task.queue import workers
from async_task.queue.workers import RunningBatch, worker_name
from async_task.schema.tables import table_of
from async_task.worker.claim_performer import ClaimPerformer
from async_task.worker.claimer import Claimer
from async_task.worker.heartbeat import Heartbeat


class Runtime:
    """Opens and forks nothing until it is used. `close` ends its heartbeat and its child processes; a call that runs in
    one of these is ended, and its claim released."""

    def __init__(self, source: Source, model: type[BaseAttempt], lease: dt.timedelta) -> None:
        self.source = source
        self.model = model
        self.table: Table = table_of(model)
        # A fresh name: claims that an earlier runtime of this process left behind count as lost although it lives.
        self.worker = worker_name()
        self.lease = lease
        # On a connection of its own: the user's pool may be busy with the very calls whose leases are to be extended.
        self.heartbeat = Heartbeat(self.table, self.worker, lease, self.private_lane)
        self.claimer = Claimer(self.table, self.worker, lease, self.heartbeat)
        self.performer = ClaimPerformer(source, model, self.heartbeat)

    def prepare_children(self) -> None:
        """Fork the zygote of child processes, where now is a better time than later: no threads run yet, or the
        database is SQLite, which must not be open then."""
        if threading.active_count() == 1 or not locks_rows(self.source.dialect):
            self.performer.prepare()

    def lane(self) -> Lane:
        """A lane on the user's own pool, where the database allows that."""
        return open_lane(self.source)

    def private_lane(self) -> Lane:
        """A lane with connections that no other lane shares."""
        return open_lane(self.source, private=True)

    def context_on(self, lane: Lane) -> ExecutionContext:
        """What the steps of performing on this lane have in common."""
        return self.performer.context_on(lane)

    def begin_run(self, *, alone: bool) -> RunningBatch | None:
        """From now on this is a batch that other processes see. `alone`: unless another batch runs, which is returned
        then."""
        with self.lane() as lane:
            return retry_transient(lambda: self.heartbeat.begin_run(lane, alone=alone))

    def close(self) -> None:
        self.heartbeat.stop()
        self.performer.abandon()
        if self.heartbeat.is_over:
            with contextlib.suppress(Exception), self.lane() as lane:
                lane.run(lambda: workers.deregister(lane.engine, self.table, self.worker))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
