"""What the lanes of a worker have to do: everything that becomes due, until it is stopped."""

import logging
from collections.abc import Callable, Collection

from async_task.error_text import describe
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from async_task.worker.workload import PerformClaim, Workload

logger = logging.getLogger("async_task")


class WorkerWorkload(Workload):
    """`queues`: those that are served; if empty, all. What a thread raises is logged, and the thread goes on."""

    patience = 5.0
    """Seconds: then it is checked whether the worker was stopped meanwhile."""

    def __init__(
        self, runtime: Runtime, round_robin: RoundRobin, own_job: PerformClaim | None, concurrency: int, *,
        queues: Collection[str], is_stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        super().__init__(runtime, round_robin, own_job, concurrency)
        self._queues = queues
        self._is_stopping = is_stopping

    def is_over(self) -> bool:
        return self._is_stopping()

    def serves(self, queue: str) -> bool:
        return not self._queues or queue in self._queues

    @property
    def goes_on(self) -> bool:
        return not (self._is_stopping() or self.runtime.unknown_calls.left_out().parts)

    def note_failure(self, error: BaseException, queue: str | None = None) -> None:
        # A poll requests the queue again; a sweep releases what was claimed.
        if self.runtime.outages.belongs(error):
            return
        logger.error("worker %s: a thread failed and restarts: %s", self.runtime.worker, describe(error).summary)
