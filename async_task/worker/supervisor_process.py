"""The supervisor process: it forks worker processes, and keeps that number of them running.

1. It has one thread and no connection, so that it may fork at any time.
2. It replaces a worker process that has died: at once, or after growing pauses if one dies again soon after its start.
3. What the dead process had claimed is recovered at once, in a process forked for that; then the others poll.
4. It passes on the requests to stop and to abandon, and kills what does not end in time.
5. A worker process reports every second. One that is silent for long is killed: a call holds the interpreter's lock, or
   the process is frozen, and what its other threads have claimed waits with it.
6. It reaps what worker processes leave behind.
"""

import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from async_task.queue.processes import process_started
from async_task.worker.link import ABANDON, POLL, STOP, Link, wait_for_any
from async_task.worker.processes.forking import (
    adopt_orphans,
    cause_of_death,
    fork,
    reap_orphans,
    signal_at_death_of,
    socket_pair,
)

logger = logging.getLogger("async_task")
EARLY = 10.0
"""Seconds after its start in which the death of a process has to do with its start."""
LONGEST_PAUSE = 30.0
LONGEST_SILENCE = 8.0
"""Seconds without a report after which a worker process is killed."""
MARGIN = 10.0
"""Seconds after the grace in which a process may still release the claims of abandoned calls."""


@dataclass(eq=False)
class WorkerProcess:
    """`started` tells it from a later process with the same id. `place`: its number among those that run."""

    place: int
    pid: int
    link: Link
    started: str
    since: float
    has_begun: bool = False
    reported_at: float = 0.0
    tally: Counter[str] = field(default_factory=Counter)
    failure: str | None = None
    error: str | None = None
    exit_code: int | None = None

    def has_ended(self) -> bool:
        if self.exit_code is None:
            self.exit_code = _exit_code(self.pid)
        return self.exit_code is not None

    def how_it_ended(self) -> str:
        return f"failed: {self.failure}" if self.failure else cause_of_death(self.exit_code or 0)


def pause_before(deaths: int) -> float:
    """Seconds until a process is replaced that is the nth in a row to die soon after its start."""
    return 0.0 if deaths < 2 else min(0.5 * 2 ** (deaths - 2), LONGEST_PAUSE)


class SupervisorProcess:
    """`caller`: the link to the process that forked this one. `number`: of worker processes. `grace`: seconds that
    their calls may take after a request to stop.

    `work(link, place)`: what a worker process does. `recover(pid, started)`: recovers what a dead one had claimed.
    """

    def __init__(
        self, caller: Link, number: int, grace: float,
        *, work: Callable[[Link, int], object], recover: Callable[[int, str], object],
    ) -> None:  # fmt: skip
        self._caller = caller
        self._grace = grace
        self._work = work
        self._recover = recover
        self._processes: list[WorkerProcess] = []
        self._recoveries: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._due = dict.fromkeys(range(number), 0.0)
        """When a process is to be started, by its place."""
        self._has_begun = False
        self._request: bytes | None = None
        self._kill_at: float | None = None
        self._looked_at = time.monotonic()
        self._received, self._signaled = socket.socketpair()
        self._ended: Counter[str] = Counter()
        """What processes that have ended had done, by the name of the outcome's class."""
        self._reported: Counter[str] = Counter()

    def run(self) -> None:
        """Until the caller requests the end, or has died, and all has ended here."""
        gc.freeze()  # what all processes share stays shared: no garbage collector writes to it
        self._watch_children()
        adopt_orphans()
        while not self._is_over():
            self._start_due()
            self._wait()
            self._read_requests()
            for process in self._processes:
                self._read_reports(process)
            for process in [one for one in self._processes if one.has_ended()]:
                self._handle_end(process)
            self._reap_recoveries()
            reap_orphans(besides={*(one.pid for one in self._processes), *self._recoveries})
            self._kill_silent()
            self._kill_late()
            self._report()

    def _is_over(self) -> bool:
        return self._request is not None and not self._processes and not self._recoveries

    def _watch_children(self) -> None:
        """Be woken when one ends."""
        for end in (self._received, self._signaled):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._signaled.fileno(), warn_on_full_buffer=False)

    def _wait(self) -> None:
        """Until something has happened, or is due."""
        times = [*(self._due.values() if self._request is None else ()), *([self._kill_at] if self._kill_at else ())]
        links = [process.link for process in self._processes]
        if any(process.has_begun for process in self._processes):
            times.append(time.monotonic() + LONGEST_SILENCE / 4)
        wait_for_any((self._received, self._caller, *links), min(times) - time.monotonic() if times else None)
        with contextlib.suppress(BlockingIOError):
            self._received.recv(4096)

    # Worker processes.

    def _start_due(self) -> None:
        now = time.monotonic()
        for place in [place for place, at in self._due.items() if at <= now and self._request is None]:
            del self._due[place]
            try:
                self._start(place)
            except OSError as error:
                logger.warning("no worker process could be started: %s", error)
                self._start_later(place, is_early=True)

    def _start(self, place: int) -> None:
        ours, theirs = socket_pair()
        link = Link(ours)

        def live() -> None:
            link.close()
            os.setpgid(0, 0)  # a group of its own: what a terminal sends to a group comes through the caller
            self._work(Link(theirs), place)

        try:
            pid = self._fork(live)
        except OSError:
            link.close()
            raise
        finally:
            theirs.close()
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        # Its start time is read while it lives: after its death the id may be another process's.
        self._processes.append(WorkerProcess(place, pid, link, process_started(pid) or "", time.monotonic()))

    def _start_later(self, place: int, *, is_early: bool) -> float:
        """Start another process in this place; returns after how many seconds."""
        self._deaths[place] = self._deaths[place] + 1 if is_early else 1
        pause = pause_before(self._deaths[place])
        self._due[place] = time.monotonic() + pause
        return pause

    def _fork(self, live: Callable[[], object]) -> int:
        def live_apart() -> None:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # The ends of others, which would seem to live on with this process.
            for link in (self._caller, *(one.link for one in self._processes)):
                link.close()
            self._received.close()
            self._signaled.close()
            live()

        return fork(live_apart)

    def _read_reports(self, process: WorkerProcess) -> None:
        for report in process.link.read_reports():
            process.reported_at = time.monotonic()
            if "begun" in report:
                self._has_begun = process.has_begun = True
            if "tally" in report:
                process.tally = Counter(report["tally"])
            if "failure" in report:
                process.failure, process.error = report["failure"], report["error"]

    def _handle_end(self, process: WorkerProcess) -> None:
        self._processes.remove(process)
        self._read_reports(process)  # the last ones
        process.link.close()
        self._ended += process.tally
        if process.has_begun and process.exit_code != 0:
            self._start_recovery(process)
        if self._request is not None:
            return
        if process.error is not None and not self._has_begun:
            self._caller.report(error=process.error)
            self._pass_on(STOP)
            return
        pause = self._start_later(process.place, is_early=time.monotonic() - process.since < EARLY)
        when = f"in {pause:g} s" if pause else "at once"
        logger.warning("worker process %d %s: another is started %s", process.pid, process.how_it_ended(), when)

    # Recovery.

    def _start_recovery(self, process: WorkerProcess) -> None:
        """In a process of its own: it needs a connection, and waits for a database that is away."""
        supervisor = os.getpid()

        def live() -> None:
            signal_at_death_of(supervisor, signal.SIGKILL)
            self._recover(process.pid, process.started)

        try:
            self._recoveries.add(self._fork(live))
        except OSError as error:
            logger.warning("the claims of process %d wait for a sweep: %s", process.pid, error)

    def _reap_recoveries(self) -> None:
        ended = {pid for pid in self._recoveries if _exit_code(pid) is not None}
        self._recoveries -= ended
        if ended:
            self._request_all(POLL)

    # The end.

    def _read_requests(self) -> None:
        requests = [] if self._caller.is_over else self._caller.read_requests()
        for request in [*requests, *([STOP] if self._caller.is_over else [])]:
            if self._request not in (ABANDON, request):
                self._pass_on(request)

    def _pass_on(self, request: bytes) -> None:
        self._request = request
        self._kill_at = time.monotonic() + MARGIN + (self._grace if request == STOP else 0)
        self._request_all(request)

    def _request_all(self, request: bytes) -> None:
        for process in self._processes:
            process.link.request(request)

    def _kill_silent(self) -> None:
        """Not while this process itself was frozen: then no report could be read."""
        now, before = time.monotonic(), self._looked_at
        self._looked_at = now
        for process in self._processes:
            if now - before > LONGEST_SILENCE / 2:
                process.reported_at = now
            if process.has_begun and now - process.reported_at > LONGEST_SILENCE:
                logger.warning(
                    "worker process %d has not reported for %g s: it is killed", process.pid, LONGEST_SILENCE
                )
                process.reported_at = now
                os.kill(process.pid, signal.SIGKILL)

    def _kill_late(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._kill_at = time.monotonic() + 2 * MARGIN  # for the recovery of what is killed now
        for process in self._processes:
            logger.warning("worker process %d does not end: it is killed", process.pid)
            os.kill(process.pid, signal.SIGKILL)
        if not self._processes:
            for pid in self._recoveries:
                os.kill(pid, signal.SIGKILL)

    def _report(self) -> None:
        tally = sum((process.tally for process in self._processes), self._ended)
        if tally != self._reported:
            self._reported = tally
            self._caller.report(tally=tally)


def _exit_code(pid: int) -> int | None:
    """Of a child of this process; None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None
