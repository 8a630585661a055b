"""The pruner of a worker: now and then it deletes what targets and the application no longer keep."""

import hashlib
import logging
import threading

from async_task.database.lanes import Lane
from async_task.queue.retention import prune
from async_task.queue.workers import WORKER, first_with_mark
from async_task.worker.runtime import Runtime

logger = logging.getLogger("async_task")
PRUNES_EVERY = 300.0
"""Seconds from one prune to the next."""


class Pruner:
    """Of the workers that prune by the same rules, only the one that began first does it. (Two that prune at once would
    do no harm: each skips what the other has locked.)"""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._retention = runtime.keeping.retention()
        self._stop = threading.Event()

    @property
    def is_wanted(self) -> bool:
        """Whether anything is to be pruned: not until somebody has said for how long it is kept."""
        return bool(self._retention.rules)

    @property
    def mark(self) -> str:
        """The same for workers with the same rules."""
        return hashlib.sha256(repr(self._retention).encode()).hexdigest()[:16]

    def prune(self, lane: Lane) -> None:
        runtime = self._runtime
        first = lane.run(lambda: first_with_mark(lane.engine, runtime.table, runtime.lease, WORKER, self.mark))
        if first not in (None, runtime.worker):
            return
        done = lane.run(lambda: prune(lane.engine, runtime.model, self._retention, stop=self._stop))
        if done.deleted or done.emptied:
            logger.info("pruned: %d attempts deleted, %d emptied, %d events", done.deleted, done.emptied, done.events)

    def stop(self) -> None:
        """After the current page."""
        self._stop.set()
