"""The threads of one worker or batch that perform attempts: lanes, coroutines on an event loop, and a watchdog."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.execution.adaptive import OtherCalls
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim
from async_task.worker.coroutines import Coroutines
from async_task.worker.lane_loop import LaneLoop
from async_task.worker.watchdog import Watchdog
from async_task.worker.workload import Workload

logger = logging.getLogger("async_task")
LONGEST_RELEASE = 3.0
"""Seconds in which claims of abandoned calls are released; a row that is still locked then waits for its lease."""


class LanePool:
    """`concurrency`: lanes. `async_concurrency`: coroutines at once. `settle_within`: seconds for which the outcome of
    a call may wait to be written with others."""

    def __init__(
        self, workload: Workload, *, concurrency: int, async_concurrency: int = 100, settle_within: float = 0.005
    ) -> None:
        self._workload = workload
        self._runtime = runtime = workload.runtime
        self._round_robin = workload.round_robin
        self.has_left_claims = False
        """Whether claims were abandoned, and could not be released."""
        self._watchdog = Watchdog(workload)
        self.coroutines = Coroutines(
            runtime, async_concurrency, settle_within, ended=workload.count,
            freed=workload.request_coroutines, requested=self._round_robin.request,
        )  # fmt: skip
        others = OtherCalls()
        self._loops = [
            LaneLoop(workload, self.coroutines, others, self._watchdog, settle_within) for _ in range(concurrency)
        ]
        self._threads = [
            threading.Thread(target=one.live, name=f"async-task-lane-{number}", daemon=True)
            for number, one in enumerate(self._loops, 1)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self, is_patient: Callable[[], bool] = lambda: True) -> bool:
        """Start nothing further, and wait for what runs, as long as `is_patient`. Returns whether all has ended."""
        self._round_robin.end()
        for thread in self._threads:
            while thread.is_alive() and is_patient():
                thread.join(timeout=0.1)
        if any(thread.is_alive() for thread in self._threads):
            return False
        while is_patient():
            if self.coroutines.slots.wait(0.1):
                return True
        return self.coroutines.slots.wait(0)

    def abandon(self) -> None:
        """Release what is running, although the calls go on: their outcomes will not be written."""
        logger.warning("worker %s abandons its running calls", self._runtime.worker)
        suspects = self._workload.running_suspects
        self._runtime.performer.abandon()
        release = self._watchdog.release
        claims = [claim for one in self._loops for claim in one.abandon(release)] + self.coroutines.abandon()
        claims += suspects
        self._runtime.heartbeat.abandon([claim.id for claim in claims])
        try:
            self._release_abandoned(claims)
        except Exception as error:
            self.has_left_claims = True
            logger.warning("%d claims wait for their lease: %s", len(claims), describe(error).summary)

    @property
    def is_releasing(self) -> bool:
        """Whether claims may be being released that no lane knows any more."""
        return self._watchdog.is_releasing

    def close(self) -> None:
        """End the watchdog and the event loop. After `finish`."""
        self._watchdog.close()
        self.coroutines.close()

    def _release_abandoned(self, claims: list[Claim]) -> None:
        until = time.monotonic() + LONGEST_RELEASE
        with self._runtime.private_lane() as lane:
            while claims and time.monotonic() < until:
                # On MariaDB it may meet a deadlock with the lane whose call has just been ended.
                release = partial(fenced_writes.release_abandoned, lane.engine, self._runtime.table, claims)
                done = retry_transient(partial(lane.run, release), LONGEST_RELEASE)
                claims = [claim for claim in claims if claim.id not in done]
                time.sleep(0.02 if claims else 0)
        self.has_left_claims = bool(claims)
