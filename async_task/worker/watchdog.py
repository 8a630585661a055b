"""The watchdog of a worker: it sees that no call keeps what waits behind it on its lane."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import Table

from async_task.database.lanes import Lane
from async_task.execution.batch_executor import BatchExecutor
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim

logger = logging.getLogger("async_task")
TICK = 0.005
"""Seconds between two looks while anything is watched."""
LONGEST_END = 5.0
"""Seconds for which its end is waited for: a database that does not answer holds up nobody's end."""


class Watchdog:
    """One thread, with a lane of its own, both started when needed. `ring`: told where something was given back."""

    def __init__(self, table: Table, lane: Callable[[], Lane], ring: Callable[[str], None]) -> None:
        self._table = table
        self._ring = ring
        self._open_lane = lane
        self._lane: Lane | None = None
        self._watched: set[BatchExecutor] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_over = False

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

    def _live(self) -> None:
        try:
            while self._wait():
                now = time.monotonic()
                for executor in [one for one in tuple(self._watched) if one.is_overdue(now)]:
                    for queue in {claim.queue for claim in executor.detach_running(self.give_back)}:
                        self._ring(queue)
        finally:
            self._drop_lane()

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._watched or self._is_over)
            self._changed.wait_for(lambda: self._is_over, timeout=TICK)
            return not self._is_over

    def give_back(self, claims: list[Claim]) -> None:
        """Give claims back that were not begun, on the connection of the watchdog."""
        is_fresh = self._lane is None
        try:
            lane = self._lane = self._lane or self._open_lane()
            lane.run(lambda: fenced_writes.release_claims(lane.connection, self._table, claims))
        except Exception as error:
            self._drop_lane()
            if not is_fresh:  # it may have been lost while there was nothing to do
                self.give_back(claims)
                return
            # Their lane no longer knows them: they are strays, which the worker's next sweep finds.
            logger.warning("%d claims were not given back at once: %s", len(claims), type(error).__name__)

    def _drop_lane(self) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            with contextlib.suppress(Exception):
                lane.run(lane.drop_connection)
                lane.close()
