"""The scout of a worker: it looks for what is due, and sends lanes there.

1. It waits for the bell, which says where; and looks by itself at a pace that slows down while nothing is found.
2. A look is one statement. What else it finds (suspects, orphans, what is past its time) is left to errands.
3. When all is quiet it says that this process is asleep: who makes attempts due then sends a notice; and looks again.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from async_task.database.lanes import Lane, open_lane
from async_task.error_text import describe
from async_task.execution.adaptive import PollInterval, QueryCost
from async_task.queue import workers
from async_task.queue.backlog import PollResult, SeenQueues, poll
from async_task.queue.ordering import PAGE, release_arrived
from async_task.wakeup.in_process import Notifier
from async_task.worker.heartbeat import WORKER
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime

logger = logging.getLogger("async_task")
BUSY_FOR = 0.2
"""Seconds of work without a pause after which a process is no sleeper any more."""
AFTER_A_RING = 0.05
"""Seconds after a ring until a look: who writes on a Core connection rings a moment before the row is there."""
KEYS_FOR = 60.0
"""Seconds for which attempts with order keys are expected to go on arriving: a look must come before their claim."""
SWEEPS_EVERY = 600.0
"""Seconds after which it is swept although nothing is to be seen: rows of workers that have gone are forgotten then."""
COMPLAINS_EVERY = 60.0


class BackgroundTask:
    """Something that is done now and then, on a thread and a lane of its own, once for all who ask for it meanwhile.

    The lane is kept: a sweep waits for a lease before it trusts a connection that is younger than that.
    """

    def __init__(self, name: str, open_lane: Callable[[], Lane], work: Callable[[Lane], None]) -> None:
        self._open_lane = open_lane
        self._work = work
        self._lane: Lane | None = None
        self._asked = threading.Event()
        self._starting = threading.Lock()
        self._is_over = False
        self._thread = threading.Thread(target=self._live, name=f"async-task-{name}", daemon=True)

    def ask(self) -> None:
        with self._starting:
            if self._thread.ident is None and not self._is_over:
                self._thread.start()
        self._asked.set()

    def close(self, seconds: float) -> None:
        """End it, when what is in hand is done, but wait no longer than that."""
        self._is_over = True
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join(timeout=seconds)

    def _live(self) -> None:
        while self._asked.wait() and not self._is_over:
            self._asked.clear()
            try:
                self._lane = self._lane or self._open_lane()
                self._work(self._lane)
            except BaseException as error:  # a thread is started once: this one has to last
                logger.warning("%s: %s", self._thread.name, describe(error).summary)
                self._leave_lane()
        self._leave_lane()

    def _leave_lane(self) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            with contextlib.suppress(Exception):
                lane.close()


class Poller:
    """`queues`: those to be served; none: all. `suspects`, `sweep`: asked when there is something for them.
    `may_sleep`: whether notices can reach this process now. `is_called`: whether somebody has asked for a look, since
    it was last asked."""

    def __init__(
        self,
        runtime: Runtime,
        round_robin: RoundRobin,
        notifier: Notifier,
        pace: PollInterval,
        queues: Sequence[str],
        *,
        suspects: BackgroundTask,
        sweep: BackgroundTask,
        may_sleep: Callable[[], bool],
        is_over: Callable[[], bool],
        is_called: Callable[[], bool],
    ) -> None:
        self._runtime = runtime
        self._round_robin = round_robin
        self._notifier = notifier
        self._pace = pace
        self._queues = queues
        self._names = SeenQueues()
        self._suspects = suspects
        self._sweep = sweep
        self._may_sleep = may_sleep
        self._is_over = is_over
        self._is_called = is_called
        self._is_asleep = False
        self._busy_since: float | None = None
        self._num_claimed = 0
        self._sweeps_at = 0.0
        self._spares_until = 0.0
        self._cost = QueryCost()
        self._keys_seen_at = -KEYS_FOR
        self._complained_at = -COMPLAINS_EVERY

    def live(self) -> None:
        """Until it is over."""
        with open_lane(self._runtime.source, private=True) as lane:
            while not self._is_over():
                self._look_round(lane)
                self._wait()
            if self._is_asleep:
                with contextlib.suppress(Exception):
                    lane.run(lambda: self._say(lane, asleep=False))

    def _look_round(self, lane: Lane) -> None:
        """Look, and tell who has to know; a database that does not answer is asked again at the pace of an idle one."""
        try:
            found = lane.run(lambda: self._look(lane))
            lane.run(lambda: self._fall_asleep_or_wake(lane, found))
        except Exception as error:
            lane.run(lane.drop_connection)
            self._is_asleep = False
            self._complain(error)

    def _look(self, lane: Lane) -> PollResult:
        began = time.monotonic()
        found = self._look_once(lane)
        now = time.monotonic()
        # It is dear while somebody holds an old snapshot.
        self._spares_until = now + self._cost.note(now - began, now=now)
        if found.has_arrivals:
            found = self._look_again(lane)
        self._round_robin.paused, self._round_robin.limited = found.paused, found.limited
        for queue in found.queues:
            self._round_robin.ring(queue)
        if found.has_suspects:
            self._suspects.ask()
        if found.has_orphans or found.has_overdue or time.monotonic() >= self._sweeps_at:
            self._sweeps_at = time.monotonic() + SWEEPS_EVERY
            self._sweep.ask()
        if self._has_progressed():
            self._pace.notified()
        return found

    def _look_again(self, lane: Lane) -> PollResult:
        """After those of the arrivals were released whose turn it is."""
        self._keys_seen_at = time.monotonic()
        while release_arrived(lane.engine, self._runtime.table) >= PAGE:
            pass
        return self._look_once(lane)

    def _look_once(self, lane: Lane) -> PollResult:
        runtime = self._runtime
        return poll(lane.autocommit, runtime.table, runtime.worker, runtime.lease, self._queues, self._names)

    def _fall_asleep_or_wake(self, lane: Lane, found: PollResult) -> None:
        now = time.monotonic()
        is_quiet = not found.queues and self._round_robin.is_quiet
        self._busy_since = None if is_quiet else self._busy_since or now
        may_sleep = self._may_sleep()
        if is_quiet and may_sleep and not self._is_asleep:
            self._say(lane, asleep=True)
            self._pace.found()  # look again at once: what was committed before that was not told
        elif self._is_asleep and (not may_sleep or now - (self._busy_since or now) > BUSY_FOR):
            self._say(lane, asleep=False)

    def _wait(self) -> None:
        """Until it is time to look. What the bell says meanwhile is passed on at once."""
        until = max(time.monotonic() + self._pace.next(), self._spares_until)
        while not self._is_over():
            later = self._round_robin.ring_what_is_late()
            now = time.monotonic()
            if now >= until:
                return
            rung = self._notifier.wait(max(0.0, min(until, later or until) - now), self._queues or None)
            for queue in rung:
                self._round_robin.ring(queue)
            if rung:
                uses_keys = time.monotonic() - self._keys_seen_at < KEYS_FOR
                soon = time.monotonic() + (0 if uses_keys else AFTER_A_RING)
                until = min(until, max(soon, self._spares_until))
            elif self._is_called() or (not self._is_asleep and self._has_progressed()):
                # Or all lanes have come to rest: nobody else will say what is there now.
                until = min(until, max(time.monotonic(), self._spares_until))

    def _say(self, lane: Lane, *, asleep: bool) -> None:
        say = workers.mark_asleep if asleep else workers.mark_awake
        say(lane.autocommit, self._runtime.table, self._runtime.worker, kind=WORKER)
        self._is_asleep = asleep

    def _has_progressed(self) -> bool:
        """Whether anything was claimed since this was last asked."""
        before, self._num_claimed = self._num_claimed, self._round_robin.num_claimed
        return self._num_claimed != before

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINS_EVERY:
            self._complained_at = now
            logger.warning("worker %s cannot look for work: %s", self._runtime.worker, describe(error).summary)
