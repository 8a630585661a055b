"""The beat of a process that holds claims: it says that the process lives, and extends the leases of its calls."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Table

from async_task import transactions
from async_task.lanes import Lane

logger = logging.getLogger("async_task")


class Heartbeat:
    """Beats every third of a lease while anything is held: one thread, with a lane of its own, started when needed."""

    def __init__(self, table: Table, worker: str, lease: Any, lane: Callable[[], Lane]) -> None:
        self._table = table
        self._worker = worker
        self._lease = lease
        self._open_lane = lane
        self._changed = threading.Condition()
        self._held: set[uuid.UUID] = set()
        self._thread: threading.Thread | None = None
        self._last: float | None = None
        self._stopped = False

    def before_claim(self, lane: Lane) -> None:
        """Beat now, on the claiming lane, unless this process did so lately: a claim is never older than a beat."""
        with self._changed:
            is_fresh = self._last is not None and time.monotonic() - self._last < self._pause
        if not is_fresh:
            self._beat(lane, [])

    @contextmanager
    def holding(self, attempt_id: uuid.UUID) -> Iterator[None]:
        """While a call is made: beat, and extend its lease; also that of a locked one, which counts when the lock is
        lost with its connection."""
        with self._changed:
            self._held.add(attempt_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._live, name="async-task-beat", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(attempt_id)
                self._changed.notify()

    def stop(self) -> None:
        """End, and wait for the end; but not while a call is still made, by a thread that was left behind."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread = None if self._held else self._thread
        if thread is not None:
            thread.join()

    @property
    def is_over(self) -> bool:
        """Whether it has beaten, and will not again."""
        return self._last is not None and self._stopped and not self._held

    @property
    def _pause(self) -> float:
        return float(self._lease.total_seconds() / 3)

    def _live(self) -> None:
        lane: Lane | None = None
        try:
            while self._wait():
                try:
                    lane = lane or self._open_lane()
                    self._beat(lane, list(self._held))
                except Exception as error:
                    # The lanes meet the same database and say so; what a beat can do is try again.
                    logger.warning("the beat of %s could not be written: %s", self._worker, type(error).__name__)
        finally:
            if lane is not None:
                lane.close()

    def _wait(self) -> bool:
        """Until a beat is wanted: True; or until the end: False."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped and not self._held, timeout=self._pause)
            self._changed.wait_for(lambda: self._stopped or self._held)
            return bool(self._held)

    def _beat(self, lane: Lane, held: list[uuid.UUID]) -> None:
        lane.run(lambda: transactions.beat(lane.engine, self._table, self._worker, self._lease, held))
        with self._changed:
            self._last = time.monotonic()
