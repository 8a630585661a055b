"""The worker: a process, or a part of one, that performs what is due for as long as it lives.

1. Lanes claim, perform and settle, each on a connection of its own; coroutines run on one event loop beside them.
2. A scout looks for work while nobody tells of it; a bell in this process and a listener on the database do tell.
3. At the end what is in hand is finished, and what was not begun is given back. What does not end in time is abandoned:
   its claim is given back too, for somebody else to make the call again.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import async_task
from async_task.database.lanes import Lane, open_lane
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.execution.adaptive import PollInterval
from async_task.outcomes import Outcome
from async_task.queue import backlog, fenced_writes, fetch
from async_task.queue.claim import Claim
from async_task.queue.sweep import sweep
from async_task.targets.registry import registered_targets
from async_task.wakeup.in_process import Notifier, notifier_of
from async_task.wakeup.listener import Listener
from async_task.worker.coroutines import Coroutines
from async_task.worker.lane_loop import LaneLoop, Tally
from async_task.worker.poller import BackgroundTask, Poller
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from async_task.worker.watchdog import Watchdog

logger = logging.getLogger("async_task")
LONGEST_FAREWELL = 3.0
"""Seconds in which claims of abandoned calls are given back; a row that is still locked then waits for its lease."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker works. Times in seconds.

    `concurrency`: lanes, each a thread with a connection. `queues`: those that it serves, and how many lanes at most
    (None: all of them); empty: every queue. `async_concurrency`: coroutines at once. `settle_within`: how long the
    outcome of a call may wait to be written with others; 0: each is written by itself. `poll`: between two looks of an
    idle worker. `grace`: how long calls may still take at the end. `listen`: whether to LISTEN, where the database can.
    """

    concurrency: int = 4
    queues: Mapping[str, int | None] = field(default_factory=dict)
    async_concurrency: int = 100
    settle_within: float = 0.005
    poll: float = 1.0
    grace: float = 30.0
    listen: bool = True


class AttemptWorker:
    """What `app.worker()` answers: `run` it, and `stop` it from another thread or a signal's handler. It runs once.

    `single`: performs one claim from its row on, where all are to go through a job of the user's own.
    """

    def __init__(
        self,
        open_runtime: Callable[[], Runtime],
        settings: WorkerSettings,
        *,
        single: Callable[[Runtime], Callable[[Lane, Claim], Outcome] | None] = lambda runtime: None,
    ) -> None:
        self.settings = settings
        self._open_runtime = open_runtime
        self.single = single
        self._tally = Tally()
        self._notifier: Notifier | None = None
        self._is_stopping = False
        self._is_abandoning = False
        self._wants_look = False

    def run(self, *, began: Callable[[str], object] = lambda name: None) -> Counter[type[Outcome]]:
        """Perform what is due until `stop`; answers how many attempts ended how. `began`: told the name of this worker,
        once the database knows it, and before anything is claimed.

        Raises SchemaMismatch without tables, and SQLAlchemy's OperationalError when the database is away at the start.
        """
        with self._open_runtime() as runtime:
            self._notifier = notifier_of(runtime.table, runtime.source.url)
            with runtime.lane() as lane:
                lane.run(lambda: runtime.heartbeat.begin_work(lane, self._about()))
            began(runtime.worker)
            _Crew(self, runtime, self._notifier, self._tally).work()
        return self._tally.read()

    def stop(self) -> None:
        """Finish what is in hand, and begin nothing further. When it is asked for again: abandon what is in hand."""
        # Plain flags, and a bell whose lock its own thread may take again: a signal's handler may come at any moment.
        self._is_abandoning = self._is_stopping
        self._is_stopping = True
        if self._notifier is not None:
            self._notifier.wake()

    def poll_now(self) -> None:
        """Poll at once for due attempts, of which no notifier tells."""
        self._wants_look = True
        if self._notifier is not None:
            self._notifier.wake()

    def is_called(self) -> bool:
        """Whether `poll_now` was called since this was last asked."""
        called, self._wants_look = self._wants_look, False
        return called

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    @property
    def is_abandoning(self) -> bool:
        return self._is_abandoning

    @property
    def tally(self) -> Counter[type[Outcome]]:
        """How many attempts ended how, so far."""
        return self._tally.read()

    def _about(self) -> str:
        s = self.settings
        lanes = {name: number or s.concurrency for name, number in s.queues.items()}
        said = {"queues": lanes, "concurrency": s.concurrency, "async_concurrency": s.async_concurrency}
        return json.dumps(said | {"targets": len(registered_targets()), "version": async_task.__version__})


class _Crew:
    """All that works in one worker, while it runs."""

    def __init__(self, worker: AttemptWorker, runtime: Runtime, notifier: Notifier, tally: Tally) -> None:
        s = worker.settings
        self._worker = worker
        self._runtime = runtime
        self._tally = tally
        limits = {name: number for name, number in s.queues.items() if number is not None}
        self._round_robin = RoundRobin(s.concurrency, limits, rested=notifier.wake)
        self._watchdog = Watchdog(runtime.table, self._private_lane, self._ring_at_front)
        self._coroutines = Coroutines(
            runtime, s.async_concurrency, s.settle_within, ended=tally.count, freed=self._ring_for_coroutines
        )
        self._suspects = BackgroundTask("suspects", self._private_lane, self._perform_suspects)
        self._sweep = BackgroundTask("sweep", self._private_lane, self._sweep_up)
        can_listen = s.listen and Listener.is_possible(runtime.source)
        self._listener = Listener(runtime.source, runtime.table, notifier) if can_listen else None
        self._poller = Poller(
            runtime, self._round_robin, notifier, PollInterval(s.poll), tuple(s.queues),
            suspects=self._suspects, sweep=self._sweep, may_sleep=self._may_sleep,
 is_over=lambda: worker.is_stopping, is_called=worker.is_called,
        )  # fmt: skip
        self._lane_loops = [self._lane_loop() for _ in range(s.concurrency)]
        self._lanes = [
            threading.Thread(target=one.live, name=f"async-task-lane-{number}", daemon=True)
            for number, one in enumerate(self._lane_loops, 1)
        ]

    def work(self) -> None:
        if self._listener is not None:
            self._listener.start()
        for lane in self._lanes:
            lane.start()
        try:
            self._poller.live()
        finally:
            self._end()

    def _lane_loop(self) -> LaneLoop:
        worker = self._worker
        return LaneLoop(
            self._runtime, self._round_robin, self._coroutines, self._watchdog, self._tally,
            worker.settings.settle_within, single=worker.single(self._runtime), is_over=lambda: worker.is_stopping,
        )  # fmt: skip

    def _may_sleep(self) -> bool:
        return self._listener is not None and self._listener.is_listening

    def _ring_for_coroutines(self) -> None:
        # Copied at one go: the lanes add to them meanwhile.
        for queue in {queue for one in self._lane_loops for queue in tuple(one.queues_of_coroutines)}:
            self._ring_at_front(queue)

    def _ring_at_front(self, queue: str) -> None:
        """Something was given back there, or left."""
        self._runtime.begin_at_front(queue)
        self._round_robin.ring(queue)

    # Errands.

    def _sweep_up(self, lane: Lane) -> None:
        runtime = self._runtime
        swept = lane.run(lambda: sweep(lane.engine, runtime.table, runtime.lease))
        strays = lane.run(lambda: fetch.lost_claims(lane.engine, runtime.table, runtime.worker))
        lost = [one for one in strays if not runtime.heartbeat.tracks(one.id)]
        if lost:
            logger.warning("%d claims of %s were lost sight of: they are given back", len(lost), runtime.worker)
            lane.run(lambda: fenced_writes.release_abandoned(lane.engine, runtime.table, lost))
        if swept.recovered:
            self._suspects.ask()

    def _perform_suspects(self, lane: Lane) -> None:
        runtime, wanted = self._runtime, tuple(self._worker.settings.queues)
        names = lane.run(lambda: backlog.with_suspects(lane.engine, runtime.table, wanted))
        for name in names:
            while not self._worker.is_stopping:
                claim = runtime.claim_due(lane, name, suspects=True)
                if claim is None:
                    break
                self._tally.count(runtime.perform(lane, claim))

    # The end.

    def _end(self) -> None:
        """Let what is in hand come to its end, within the grace; then abandon it."""
        until = time.monotonic() + self._worker.settings.grace
        self._round_robin.end()
        is_over = self._wait_for_lanes(until) and self._wait_for_coroutines(until)
        if not is_over:
            self._abandon()
        if self._listener is not None:
            self._listener.close()
        self._watchdog.close()
        self._coroutines.close()
        for errand in (self._suspects, self._sweep):
            errand.close(0.0 if not is_over else max(0.0, until - time.monotonic()))

    def _wait_for_lanes(self, until: float) -> bool:
        for lane in self._lanes:
            while lane.is_alive() and not self._is_out_of_patience(until):
                lane.join(timeout=0.1)
        return not any(lane.is_alive() for lane in self._lanes)

    def _wait_for_coroutines(self, until: float) -> bool:
        while not self._is_out_of_patience(until):
            if self._coroutines.wait(0.1):
                return True
        return self._coroutines.wait(0)

    def _is_out_of_patience(self, until: float) -> bool:
        return self._worker.is_abandoning or time.monotonic() >= until

    def _abandon(self) -> None:
        """Give back what is in hand, although it goes on: its outcome will not be written."""
        logger.warning("worker %s abandons what it has in hand", self._runtime.worker)
        self._runtime.abandon()
        aside = self._watchdog.give_back
        claims = [claim for one in self._lane_loops for claim in one.abandon(aside)] + self._coroutines.abandon()
        self._runtime.heartbeat.untrack([claim.id for claim in claims])
        try:
            self._surrender(claims)
        except Exception as error:
            logger.warning("%d claims wait for their lease: %s", len(claims), describe(error).summary)

    def _surrender(self, claims: list[Claim]) -> None:
        until = time.monotonic() + LONGEST_FAREWELL
        with self._private_lane() as lane:
            while claims and time.monotonic() < until:
                # On MariaDB it may meet a deadlock with the lane whose call has just been ended.
                surrender = partial(fenced_writes.release_abandoned, lane.engine, self._runtime.table, claims)
                given = retry_transient(partial(lane.run, surrender), LONGEST_FAREWELL)
                claims = [claim for claim in claims if claim.id not in given]
                time.sleep(0.02 if claims else 0)

    def _private_lane(self) -> Lane:
        return open_lane(self._runtime.source, private=True)
