"""The worker: a process, or a part of one, that performs what is due for as long as it lives.

1. Lanes claim, perform and settle, each on a connection of its own; coroutines run on one event loop beside them.
2. A poller looks for what is due; notifications from this process and from the database tell of it sooner.
3. At the end running calls are finished, and claims of calls that were not started are released. A call that does not
   end in time is abandoned: its claim is released too, and another worker makes the call again.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from async_task.database.lanes import Lane
from async_task.error_text import describe
from async_task.execution.adaptive import PollInterval
from async_task.outcomes import Outcome
from async_task.queue import backlog, fenced_writes, fetch
from async_task.queue.sweep import sweep
from async_task.targets.registry import registered_targets
from async_task.version import __version__
from async_task.wakeup.in_process import Notifier, notifier_of
from async_task.wakeup.listener import Listener
from async_task.worker.background_task import BackgroundTask
from async_task.worker.lane_pool import LanePool
from async_task.worker.poller import Poller
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from async_task.worker.workload import PerformClaim, Workload

logger = logging.getLogger("async_task")


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker works. Times in seconds.

    `concurrency`: lanes, each a thread with a connection. `queues`: those that it serves, each with the maximum number
    of lanes (None: all of them); if empty, every queue. `async_concurrency`: coroutines at once. `settle_within`: how
    long the outcome of a call may wait to be written with others; 0: each is written by itself. `poll`: between two
    polls of an idle worker. `grace`: how long calls may still take at the end. `listen`: whether to LISTEN, where the
    database can.
    """

    concurrency: int = 4
    queues: Mapping[str, int | None] = field(default_factory=dict)
    async_concurrency: int = 100
    settle_within: float = 0.005
    poll: float = 1.0
    grace: float = 30.0
    listen: bool = True


class AttemptWorker:
    """What `app.worker()` returns: `run` it, and `stop` it from another thread or a signal's handler. It runs once.

    `own_job`: what every claim is to be performed by, where that is a job of the user's own.
    """

    def __init__(
        self,
        open_runtime: Callable[[], Runtime],
        settings: WorkerSettings,
        *,
        own_job: Callable[[Runtime], PerformClaim | None] = lambda runtime: None,
    ) -> None:
        self.settings = settings
        self._open_runtime = open_runtime
        self._own_job = own_job
        self._workload: Workload | None = None
        self._notifier: Notifier | None = None
        self._is_stopping = False
        self._is_abandoning = False
        self._is_poll_requested = False

    def run(self, *, began: Callable[[str], object] = lambda name: None) -> Counter[type[Outcome]]:
        """Perform what is due until `stop`; returns how many attempts ended how. `began` is called with the name of
        this worker, once the database knows it, and before anything is claimed.

        Raises SchemaMismatch without tables, and SQLAlchemy's OperationalError when the database is away at the start.
        """
        with self._open_runtime() as runtime:
            runtime.prepare_children()
            self._notifier = notifier_of(runtime.table, runtime.source.url)
            with runtime.lane() as lane:
                lane.run(lambda: runtime.heartbeat.begin_work(lane, self._about()))
            began(runtime.worker)
            running = _RunningWorker(self, runtime, self._notifier, self._own_job(runtime))
            self._workload = running.workload
            running.run()
        return self.tally

    def stop(self) -> None:
        """Finish running calls, and start nothing further. When called again: abandon running calls."""
        # Plain flags, and a notifier whose lock its own thread may take again: a signal may arrive at any moment.
        self._is_abandoning = self._is_stopping
        self._is_stopping = True
        if self._notifier is not None:
            self._notifier.wake()

    def poll_now(self) -> None:
        """Poll at once: the caller knows of something that is due, and of which nobody is notified."""
        self._is_poll_requested = True
        if self._notifier is not None:
            self._notifier.wake()

    def take_poll_request(self) -> bool:
        """Whether `poll_now` was called since this was last asked."""
        requested, self._is_poll_requested = self._is_poll_requested, False
        return requested

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    @property
    def is_abandoning(self) -> bool:
        return self._is_abandoning

    @property
    def tally(self) -> Counter[type[Outcome]]:
        """How many attempts ended how, so far."""
        return Counter() if self._workload is None else self._workload.outcomes

    def _about(self) -> str:
        s = self.settings
        lanes = {name: number or s.concurrency for name, number in s.queues.items()}
        about = {"queues": lanes, "concurrency": s.concurrency, "async_concurrency": s.async_concurrency}
        return json.dumps(about | {"targets": len(registered_targets()), "version": __version__})


class _WorkerWorkload(Workload):
    """Everything that becomes due, until the worker is stopped."""

    patience = 5.0
    """Seconds: then it is checked whether the worker was stopped meanwhile."""

    def __init__(
        self, worker: AttemptWorker, runtime: Runtime, round_robin: RoundRobin, own_job: PerformClaim | None
    ) -> None:
        super().__init__(runtime, round_robin, own_job)
        self._worker = worker

    def is_over(self) -> bool:
        return self._worker.is_stopping

    def note_failure(self, error: BaseException, queue: str | None = None) -> None:
        # A poll requests the queue again; a sweep releases what was claimed.
        logger.error("worker %s: a thread failed and restarts: %s", self.runtime.worker, describe(error).summary)


class _RunningWorker:
    """All threads of one worker, while it runs."""

    def __init__(
        self, worker: AttemptWorker, runtime: Runtime, notifier: Notifier, own_job: PerformClaim | None
    ) -> None:
        s = worker.settings
        self._worker = worker
        self._runtime = runtime
        self._queues = tuple(s.queues)
        limits = {name: number for name, number in s.queues.items() if number is not None}
        round_robin = RoundRobin(s.concurrency, limits, notifier)
        self.workload = _WorkerWorkload(worker, runtime, round_robin, own_job)
        self._lane_pool = LanePool(
            self.workload,
            concurrency=s.concurrency,
            async_concurrency=s.async_concurrency,
            settle_within=s.settle_within,
        )
        self._suspects = BackgroundTask("suspects", runtime, self._perform_suspects)
        self._sweep = BackgroundTask("sweep", runtime, self._sweep_up)
        can_listen = s.listen and Listener.is_possible(runtime.source)
        self._listener = Listener(runtime.source, runtime.table, notifier) if can_listen else None
        self._poller = Poller(
            runtime, round_robin, notifier, self._listener, PollInterval(s.poll), self._queues, worker,
            suspects=self._suspects, sweep=self._sweep,
        )  # fmt: skip

    def run(self) -> None:
        if self._listener is not None:
            self._listener.start()
        self._lane_pool.start()
        try:
            self._poller.live()
        finally:
            self._end()

    def _end(self) -> None:
        """Let running calls come to their end within the grace; then abandon them."""
        until = time.monotonic() + self._worker.settings.grace
        is_finished = self._lane_pool.finish(lambda: not self._worker.is_abandoning and time.monotonic() < until)
        if not is_finished:
            self._lane_pool.abandon()
        if self._listener is not None:
            self._listener.close()
        self._lane_pool.close()
        for task in (self._suspects, self._sweep):
            task.close(max(0.0, until - time.monotonic()) if is_finished else 0.0)

    # Background tasks.

    def _sweep_up(self, lane: Lane) -> None:
        runtime = self._runtime
        swept = lane.run(lambda: sweep(lane.engine, runtime.table, runtime.lease))
        lapsed = lane.run(lambda: fetch.lost_claims(lane.engine, runtime.table, runtime.worker))
        lost = [one for one in lapsed if not runtime.heartbeat.tracks(one.id)]
        if lost:
            logger.warning("worker %s releases %d lost claims", runtime.worker, len(lost))
            lane.run(lambda: fenced_writes.release_abandoned(lane.engine, runtime.table, lost))
        if swept.recovered:
            self._suspects.request()

    def _perform_suspects(self, lane: Lane) -> None:
        runtime = self._runtime
        for queue in lane.run(lambda: backlog.with_suspects(lane.engine, runtime.table, self._queues)):
            if queue not in self.workload.round_robin.paused:
                while self.workload.perform_suspect(lane, queue):
                    pass
