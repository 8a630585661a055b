"""The supervisor of several workers: it starts each in a process of its own, and keeps so many alive.

1. A child is the same command, started anew: nothing is forked that has threads or connections.
2. A child that dies unexpectedly is started again: at once, and later and later if it dies at once again and again.
3. What it had in hand is given back at once, because it is known to be dead; and the others are told to look.
4. At the first signal all are asked to finish, at the second to abandon; who does not end in time is killed.
"""

import contextlib
import json
import logging
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from async_task import SweepReport
from async_task.queue.workers import process_started
from async_task_cli.faults import CONFIGURATION, UNREACHABLE, USAGE, verdict
from async_task_cli.link import ABANDON, LOOK, STOP
from async_task_cli.signals import Leave

logger = logging.getLogger("async_task")
LASTING = 10.0
"""Seconds of life after which the death of a child has nothing to do with its start."""
LONGEST_PAUSE = 30.0
MARGIN = 10.0
"""Seconds after the grace in which a child may still give back what it abandons."""
AGAIN_AFTER = 1.0
HOPELESS = (USAGE, UNREACHABLE, CONFIGURATION)


@dataclass(eq=False)
class Child:
    """`started` tells its process from a later one with the same id. `tally`: what it has reported."""

    place: int
    process: "subprocess.Popen[bytes]"
    link: socket.socket
    started: str
    since: float
    heard: bytes = b""
    tally: Counter[str] = field(default_factory=Counter)


def program(words: Sequence[str]) -> list[str]:
    """How this command line is started once more, `words` being those behind the program's name: by the same
    interpreter, with its options, through the same script or module."""
    given = sys.orig_argv
    if words and given[-len(words) :] == list(words) and len(given) > len(words) + 1:
        return [sys.executable, *given[1:]]
    return [sys.executable, "-m", "async_task_cli", *words]


def pause_before(deaths: int) -> float:
    """Seconds until a child is started again that has died so many times in a row soon after its start."""
    return 0.0 if deaths < 2 else min(0.5 * 2 ** (deaths - 2), LONGEST_PAUSE)


class Supervisor:
    """Keeps `number` children alive that run `command`. `bury(pid, started)`: gives back what a dead one had in hand.
    `grace`: seconds for which a child may finish what it has in hand."""

    def __init__(
        self, command: Sequence[str], number: int, *, bury: Callable[[int, str], SweepReport], grace: float
    ) -> None:
        self._command = list(command)
        self._number = number
        self._grace = grace
        self._children: list[Child] = []
        self._deaths: Counter[int] = Counter()
        self._due: dict[int, float] = {}
        """When which place is to be filled again."""
        self._has_begun = False
        self._exit_code: int | None = None
        self._signals = 0
        self._asked: bytes | None = None
        self._kills_at: float | None = None
        self._woken, self._wake = socket.socketpair()
        self._undertaker = Undertaker(bury, self._buried)
        self._has_news = False
        self.tally: Counter[str] = Counter()
        """What children that are gone have done, by the kind of the outcome; at the end, all."""

    def run(self) -> int:
        """Until a signal, or until no child can start; answers the exit code."""
        with self._listening():
            self._due = dict.fromkeys(range(self._number), 0.0)
            while not self._is_over():
                self._start_those_due()
                self._wait()
                for child in self._children:
                    self._hear(child)
                for child in [one for one in self._children if one.process.poll() is not None]:
                    self._lose(child)
                self._pass_on()
        self._undertaker.close()
        return self._exit_code or 0

    # Signals.

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        for one in (self._woken, self._wake):
            one.setblocking(False)
        before = {one: signal.signal(one, self._take) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
        waker = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals += 1
            self._exit_code = self._exit_code or 128 + number

    # Life.

    def _is_over(self) -> bool:
        return self._exit_code is not None and not self._children

    def _start_those_due(self) -> None:
        now = time.monotonic()
        for place in [place for place, at in self._due.items() if at <= now and self._exit_code is None]:
            del self._due[place]
            self._children.append(self._start(place))

    def _start(self, place: int) -> Child:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            # A group of its own: what a terminal sends to all of a group comes to it through us.
            process = subprocess.Popen(
                [*self._command, "--link", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0,
            )  # fmt: skip
        return Child(place, process, ours, process_started(process.pid) or "", time.monotonic())

    def _wait(self) -> None:
        """Until something has happened, or is to be done."""
        restarts = self._due.values() if self._exit_code is None else ()
        times = [*restarts, *([self._kills_at] if self._kills_at else ())]
        left = max(0.0, min(times) - time.monotonic()) if times else None
        select.select([self._woken, *(one.link for one in self._children)], [], [], left)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _hear(self, child: Child) -> None:
        with contextlib.suppress(OSError):
            while part := child.link.recv(65536):
                child.heard += part
        *lines, child.heard = child.heard.split(b"\n")
        for said in map(json.loads, lines):
            self._has_begun = self._has_begun or "ready" in said
            child.tally = Counter(said.get("tally", child.tally))

    def _lose(self, child: Child) -> None:
        """It is dead: what it had in hand is given back, and its place is to be filled again unless this is the end."""
        self._children.remove(child)
        self._hear(child)  # its last words
        child.link.close()
        self.tally += child.tally
        code = child.process.returncode
        if code not in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
            self._undertaker.bury(child.process.pid, child.started)
        if self._exit_code is not None:
            return
        if code in HOPELESS and not self._has_begun:
            self._exit_code = code  # it has said why
            return
        is_early = time.monotonic() - child.since < LASTING
        self._deaths[child.place] = self._deaths[child.place] + 1 if is_early else 1
        pause = pause_before(self._deaths[child.place])
        self._due[child.place] = time.monotonic() + pause
        when = f"in {pause:g} s" if pause else "at once"
        logger.warning("worker process %d %s: another one is started %s", child.process.pid, _how(code), when)

    def _pass_on(self) -> None:
        """Ask the children for what is to be asked now."""
        if self._has_news:
            self._has_news = False
            self._tell(LOOK)
        asked = None if self._exit_code is None else ABANDON if self._signals > 1 else STOP
        if asked != self._asked and asked is not None:
            self._asked = asked
            logger.info(Leave.WORDS[asked == ABANDON])
            self._kills_at = time.monotonic() + MARGIN + (self._grace if asked == STOP else 0)
            self._tell(asked)
        if self._kills_at is not None and time.monotonic() >= self._kills_at:
            self._kills_at = None
            for child in self._children:
                logger.warning("worker process %d does not end: it is killed", child.process.pid)
                child.process.kill()

    def _tell(self, asked: bytes) -> None:
        for child in self._children:
            with contextlib.suppress(OSError):
                child.link.send(asked)

    def _buried(self) -> None:
        """Called by the undertaker: what a child had in hand is due again."""
        self._has_news = True
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")


class Undertaker:
    """Gives back what dead children had in hand, one after the other, on a thread of its own; however long the database
    is away. `buried`: called when something has become due again."""

    def __init__(self, bury: Callable[[int, str], SweepReport], buried: Callable[[], object]) -> None:
        self._bury = bury
        self._buried = buried
        self._dead: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="async-task-undertaker", daemon=True)

    def bury(self, pid: int, started: str) -> None:
        if not self._thread.is_alive():
            self._thread.start()
        self._dead.put((pid, started))

    def close(self) -> None:
        """When all are buried; but wait no longer than that for a database that is away."""
        self._is_over.set()
        self._dead.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=2 * MARGIN)

    def _live(self) -> None:
        while (dead := self._dead.get()) is not None:
            while (report := self._tried(*dead)) is None and not self._is_over.wait(AGAIN_AFTER):
                pass
            if report is not None and report.recovered + report.crashed:
                logger.info("what process %d had in hand is given back: %d", dead[0], report.recovered)
                self._buried()

    def _tried(self, pid: int, started: str) -> SweepReport | None:
        try:
            return self._bury(pid, started)
        except Exception as error:
            logger.warning("what process %d had in hand is not given back yet: %s", pid, verdict(error)[1])
            return None


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
