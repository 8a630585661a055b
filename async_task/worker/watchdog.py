"""The watchdog of a worker: a long call does not keep what waits behind it on its lane."""

import contextlib
import logging
import threading
import time

from async_task.database.lanes import Lane
from async_task.execution.batch_executor import BatchExecutor
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim
from async_task.worker.workload import Workload

logger = logging.getLogger("async_task")
TICK = 0.005
"""Seconds between two checks while anything is watched."""
LONGEST_END = 5.0
"""Seconds for which its thread's end is waited for: the database may not answer."""


class Watchdog:
    """One thread with a lane of its own, both started when they are needed."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._table = workload.runtime.table
        self._lane: Lane | None = None
        self._watched: set[BatchExecutor] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_over = False
        self.is_releasing = False
        """Whether it may be releasing claims that their lane no longer knows."""

    def watch(self, executor: BatchExecutor) -> None:
        with self._changed:
            self._watched.add(executor)
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="async-task-watchdog", daemon=True)
                self._thread.start()
            elif len(self._watched) == 1:
                self._changed.notify()

    def forget(self, executor: BatchExecutor) -> None:
        with self._changed:
            self._watched.discard(executor)

    def close(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=LONGEST_END)

    def release(self, claims: list[Claim]) -> None:
        """Release claims that were not started, on the connection of the watchdog."""
        is_fresh = self._lane is None
        try:
            lane = self._lane = self._lane or self._workload.runtime.private_lane()
            lane.run(lambda: fenced_writes.release_claims(lane.connection, self._table, claims))
        except Exception as error:
            self._drop_lane()
            if not is_fresh:  # the connection may have been lost while there was nothing to do
                self.release(claims)
                return
            # Their lane no longer knows them: they are lost claims, which the worker's next sweep releases.
            logger.warning("%d claims were not released at once: %s", len(claims), type(error).__name__)

    def _live(self) -> None:
        try:
            while self._wait():
                now = time.monotonic()
                for executor in [one for one in tuple(self._watched) if one.is_overdue(now)]:
                    self._detach(executor)
        finally:
            self._drop_lane()

    def _detach(self, executor: BatchExecutor) -> None:
        self.is_releasing = True
        try:
            if released := executor.detach_running(self.release):
                self._workload.note_released(released)
        finally:
            self.is_releasing = False

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._watched or self._is_over)
            self._changed.wait_for(lambda: self._is_over, timeout=TICK)
            return not self._is_over

    def _drop_lane(self) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            with contextlib.suppress(Exception):
                lane.run(lane.drop_connection)
                lane.close()
