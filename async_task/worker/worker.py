"""The worker: a process, or a part of one, that performs what is due for as long as it lives.

1. Lanes claim, perform and settle, each on a connection of its own; coroutines run on one event loop beside them.
2. A poller looks for what is due; notifications from this process and from the database tell of it sooner.
3. At the end running calls are finished, and claims of calls that were not started are released. A call that does not
   end in time is abandoned: its claim is released too, and another worker makes the call again.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from async_task.database.lanes import Lane
from async_task.execution.adaptive import PollInterval
from async_task.outcomes import Outcome
from async_task.polling.sweep import PollSweeper
from async_task.queue import backlog, fenced_writes, fetch
from async_task.queue.sweep import sweep
from async_task.targets.parameter_types import load_checks
from async_task.targets.registry import registered_targets
from async_task.version import __version__
from async_task.wakeup.in_process import Notifier, notifier_of
from async_task.wakeup.listener import Listener
from async_task.worker.background_task import BackgroundTask
from async_task.worker.bounded import finish_within
from async_task.worker.lane_pool import LONGEST_RELEASE, LanePool
from async_task.worker.poller import Poller
from async_task.worker.pruner import Pruner
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from async_task.worker.signals import stopped_by_signals
from async_task.worker.worker_workload import WorkerWorkload
from async_task.worker.workload import PerformClaim, Workload

logger = logging.getLogger("async_task")
MOST_NAMES = 1_000
"""How many names of targets a worker tells of at most; with more, it tells of none."""
LONGEST_END = 5.0
"""Seconds after the grace in which claims are released and connections are closed, whatever the database does."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker works. Times in seconds.

    `concurrency`: lanes, each a thread with a connection. `queues`: those that it serves, each with the maximum number
    of lanes (None: all of them); if empty, every queue. `own_queues`: those of them that are only there because they
    are the own queues of targets. `async_concurrency`: coroutines at once. `settle_within`: how
    long the outcome of a call may wait to be written with others; 0: each is written by itself. `poll`: between two
    polls of an idle worker. `grace`: how long calls may still take at the end. `listen`: whether to LISTEN, where the
    database can.
    """

    concurrency: int = 4
    queues: Mapping[str, int | None] = field(default_factory=dict)
    own_queues: Set[str] = frozenset()
    async_concurrency: int = 100
    settle_within: float = 0.005
    poll: float = 1.0
    grace: float = 30.0
    listen: bool = True


class AttemptWorker:
    """What `outbox.worker()` returns: `run` it, and `stop` it from another thread or a signal's handler. It runs once.

    `own_job`: what every claim is to be performed by, where that is a job of the user's own. `beside`: entered while it
    runs, once it is registered: a clock.
    """

    def __init__(
        self,
        open_runtime: Callable[[], Runtime],
        settings: WorkerSettings,
        *,
        own_job: Callable[[Runtime], PerformClaim | None] = lambda runtime: None,
        beside: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.settings = settings
        self._beside = beside
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

        In the main thread, SIGINT and SIGTERM call `stop`, unless the program handles them itself.
        Raises SchemaMismatch without tables, SQLAlchemy's OperationalError when the database is away at the start, and
        AlreadyRunning if another worker has its name, or has taken it over.
        """
        with stopped_by_signals(self.stop), self._open_runtime() as runtime:
            load_checks()  # the first calls would wait for it, and each child would do it again
            runtime.prepare_children()
            self._notifier = notifier_of(runtime.table, runtime.source.url)
            pruner = Pruner(runtime)
            with runtime.lane() as lane:
                about = self._about(pruner)
                if runtime.held_name is not None:
                    about = runtime.held_name.take(about)
                lane.run(lambda: runtime.heartbeat.begin_work(lane, about))
            began(runtime.worker)
            running = _RunningWorker(self, runtime, self._notifier, self._own_job(runtime), pruner)
            self._workload = running.workload
            with self._beside():
                running.run()
            if runtime.heartbeat.name_lost is not None:
                raise runtime.heartbeat.name_lost
        return self.tally

    def stop(self) -> None:
        """Finish running calls, and start nothing further. When called again: abandon running calls."""
        # Plain flags, and a notifier whose lock its own thread may take again: a signal may arrive at any moment.
        self._is_abandoning = self._is_stopping
        self._is_stopping = True
        if self._notifier is not None:
            self._notifier.wake()

    def begin_end(self) -> None:
        """Start nothing further: the worker ends, by `stop` or by an error."""
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

    def _about(self, pruner: Pruner) -> str:
        s = self.settings
        lanes = {name: number or s.concurrency for name, number in s.queues.items()}
        own = {"own_queues": len(s.own_queues)} if s.own_queues else {}
        about = {"queues": lanes, "concurrency": s.concurrency, "async_concurrency": s.async_concurrency} | own
        pruning = {"prunes": pruner.mark} if pruner.is_wanted else {}
        known = sorted(name for one in registered_targets() for name in one.names)
        names = {"target_names": known} if len(known) <= MOST_NAMES else {}
        return json.dumps(about | {"targets": len(registered_targets()), "version": __version__} | names | pruning)


class _RunningWorker:
    """All threads of one worker, while it runs."""

    def __init__(
        self,
        worker: AttemptWorker,
        runtime: Runtime,
        notifier: Notifier,
        own_job: PerformClaim | None,
        pruner: Pruner,
    ) -> None:
        s = worker.settings
        self._worker = worker
        self._runtime = runtime
        self._queues = tuple(s.queues)
        limits = {name: number for name, number in s.queues.items() if number is not None}
        round_robin = RoundRobin(s.concurrency, limits, notifier)
        self.workload = WorkerWorkload(
            runtime, round_robin, own_job, s.concurrency, queues=s.queues, is_stopping=lambda: worker.is_stopping
        )
        self._lane_pool = LanePool(
            self.workload,
            concurrency=s.concurrency,
            async_concurrency=s.async_concurrency,
            settle_within=s.settle_within,
        )
        self._suspects = BackgroundTask("suspects", runtime, self._perform_suspects)
        self._sweep = BackgroundTask("sweep", runtime, self._sweep_up)
        self._pruner = pruner
        self._prune = BackgroundTask("prune", runtime, pruner.prune)
        self._poll_sweeper = PollSweeper(runtime.model)
        self._sweep_polls = BackgroundTask("sweep-polls", runtime, self._sweep_up_polls)
        can_listen = s.listen and Listener.is_possible(runtime.source)
        self._listener = Listener(runtime.source, runtime.table, notifier) if can_listen else None
        self._poller = Poller(
            runtime, round_robin, notifier, self._listener, PollInterval(s.poll), self._queues, worker,
            suspects=self._suspects, sweep=self._sweep, prune=self._prune if pruner.is_wanted else None,
            sweep_polls=self._sweep_polls if self._poll_sweeper.is_wanted else None,
            sweep_polls_every=self._poll_sweeper.every,
        )  # fmt: skip

    def run(self) -> None:
        """On the thread of the caller, which never waits for the database: so it hears each signal."""
        if self._listener is not None:
            self._listener.start()
        self._lane_pool.start()
        failures: list[BaseException] = []
        polling = threading.Thread(target=self._poll, args=(failures,), name="async-task-poller", daemon=True)
        polling.start()
        try:
            while polling.is_alive() and not self._worker.is_stopping and not self._runtime.heartbeat.name_lost:
                polling.join(timeout=1.0)
        finally:
            self._worker.begin_end()
            self._end(polling)
        for failure in failures:
            raise failure

    def _poll(self, failures: list[BaseException]) -> None:
        try:
            self._poller.live()
        except BaseException as error:
            failures.append(error)

    def _end(self, polling: threading.Thread) -> None:
        """Let running calls come to their end within the grace; then abandon them."""
        self._pruner.stop()
        until = time.monotonic() + self._worker.settings.grace

        def is_patient() -> bool:
            return not self._worker.is_abandoning and time.monotonic() < until

        is_finished = self._lane_pool.finish(is_patient) and self._suspects.finish(is_patient)
        last = (until if is_finished else time.monotonic()) + LONGEST_END
        if not is_finished:
            self._runtime.has_left_claims = True  # as far as is known: until all are released
            is_released = finish_within(last - time.monotonic(), "release", self._lane_pool.abandon)
            self._runtime.has_left_claims = not is_released or self._lane_pool.has_left_claims
        wait = max(0.0, until - time.monotonic()) if is_finished else 0.0
        finish_within(last - time.monotonic(), "end", partial(self._close, is_finished, wait))
        polling.join(timeout=max(0.0, last - time.monotonic()))

    def _close(self, is_finished: bool, seconds: float) -> None:
        if self._listener is not None:
            self._listener.close()
        self._lane_pool.close()
        self._suspects.close(0.0 if is_finished else LONGEST_RELEASE)
        self._sweep.close(seconds)
        self._prune.close(seconds)
        self._sweep_polls.close(seconds)

    # Background tasks.

    def _sweep_up(self, lane: Lane) -> None:
        runtime = self._runtime
        try:
            swept = lane.run(lambda: sweep(lane.engine, runtime.table, runtime.lease, hooks=runtime.hooks))
        finally:
            runtime.claimer.start_all_at_front()  # whatever it has released was due before
        lapsed = lane.run(lambda: fetch.lost_claims(lane.engine, runtime.table, runtime.worker))
        lost = [one for one in lapsed if not runtime.heartbeat.tracks(one.id)]
        if lost:
            released = lane.run(lambda: fenced_writes.release_abandoned(lane.engine, runtime.table, lost))
            self.workload.note_released(lost)
            if released:
                logger.warning("worker %s has released %d lost claims", runtime.worker, len(released))
        if swept.recovered:
            self._suspects.request()

    def _sweep_up_polls(self, lane: Lane) -> None:
        lane.run(lambda: self._poll_sweeper.sweep(lane.engine))

    def _perform_suspects(self, lane: Lane) -> None:
        def queues() -> list[str]:
            return lane.run(lambda: backlog.with_suspects(lane.engine, self._runtime.table, self._queues))

        while self.workload.perform_suspects(lane, queues):
            pass
