"""Something that a worker does now and then, beside its lanes."""

import contextlib
import logging
import threading
from collections.abc import Callable

from async_task.database.lanes import Lane
from async_task.error_text import describe
from async_task.worker.runtime import Runtime

logger = logging.getLogger("async_task")


class BackgroundTask:
    """Does `work` on a thread and a lane of its own, once for all who request it meanwhile.

    The lane is kept: a sweep waits for a lease before it trusts a connection that is younger than that.
    """

    def __init__(self, name: str, runtime: Runtime, work: Callable[[Lane], None]) -> None:
        self._runtime = runtime
        self._work = work
        self._lane: Lane | None = None
        self._requested = threading.Event()
        self._starting = threading.Lock()
        self._is_over = False
        self._thread = threading.Thread(target=self._live, name=f"async-task-{name}", daemon=True)

    def request(self) -> None:
        with self._starting:
            if self._thread.ident is None and not self._is_over:
                self._thread.start()
        self._requested.set()

    def finish(self, is_patient: Callable[[], bool]) -> bool:
        """Do nothing further, and wait for its thread as long as `is_patient`. Returns whether that has ended."""
        self._is_over = True
        self._requested.set()
        while self._thread.is_alive() and is_patient():
            self._thread.join(timeout=0.1)
        return not self._thread.is_alive()

    def close(self, seconds: float) -> None:
        """Do nothing further, and wait for what is being done, at most for `seconds`."""
        self._is_over = True
        self._requested.set()
        if self._thread.is_alive():
            self._thread.join(timeout=seconds)

    def _live(self) -> None:
        while self._requested.wait() and not self._is_over:
            self._requested.clear()
            try:
                self._lane = self._lane or self._runtime.private_lane()
                self._work(self._lane)
            except BaseException as error:  # a thread is started once: this one has to last
                logger.warning("%s: %s", self._thread.name, describe(error).summary)
                self._close_lane()
        self._close_lane()

    def _close_lane(self) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            with contextlib.suppress(Exception):
                lane.close()
