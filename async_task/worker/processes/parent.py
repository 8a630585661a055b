"""Child processes in which calls are performed, one call at a time each, so that a call can be ended, or die, and
take nothing along.

1. A zygote is forked from this process, best before it has threads or connections. It opens nothing.
2. It forks a child on request, which performs the claims that it reads from its socket, on connections of its own. A
   child that reads nothing for a minute ends by itself.
3. When a call kills its child, the zygote reports it at once. A child that dies between two calls charges neither: the
   next call is given another child.
4. A call that is past its limit is ended by SIGKILL with its whole process group: a loop that holds the GIL runs no
   handler of any other signal.
5. When this process dies, the zygote ends its children and itself.
"""

import contextlib
import gc
import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from async_task import outcomes
from async_task.arguments.decoding import decode
from async_task.arguments.types import argument_type
from async_task.outcomes import Outcome
from async_task.queue.claim import Claim
from async_task.schema.states import Status
from async_task.targets.parameter_types import ParameterTypes
from async_task.worker.processes.child_life import BEAT, Opened, line_of, live_as_child
from async_task.worker.processes.forking import fork, has_open, socket_pair
from async_task.worker.processes.zygote import PLACES, Board, Stage, Zygote, receive

# What goes over the socket is written as arguments are: as data, never as objects that run.
for _kind in (Claim, Status, *outcomes.KINDS):
    argument_type(_kind, name=f"async-task.{_kind.__name__}")

OPENING, SETTLING = 120.0, 660.0
"""Seconds for what is not the call: to connect, decrypt and lock; to write the outcome while the database is away."""
ENDING = 10.0
"""Seconds to wait for the end of a process that was killed."""


class Died(Exception):
    """The child died in the call; the message tells how."""


class TookTooLong(Exception):
    """The call was past its limit, and its process was ended."""


class NotPerformed(Exception):
    """Not the call's fault: there was no child (`started` False), or the database failed it, or all were ended."""

    def __init__(self, reason: str, *, started: bool) -> None:
        super().__init__(reason)
        self.started = started


class Gone(Exception):
    """The child died before it read the request; the message tells how."""


@dataclass(eq=False)
class _Generation:
    """One zygote and what belongs to it, kept apart from its successor's."""

    link: socket.socket
    pid: int
    board: Board
    free: list[int] = field(default_factory=lambda: list(range(PLACES)))
    is_over: bool = False


class Children:
    """The zygote, as its parent sees it. All methods may be called from several threads.

    `opened`: entered once in each child, it yields what performs a claim there, and enters what it is given for the
    time of the call itself. `database_file`: a file that this process must not have open when it forks (SQLite).
    """

    def __init__(self, opened: Opened, database_file: str | None = None) -> None:
        self._opened = opened
        self._database_file = database_file
        self._now: _Generation | None = None
        self._is_closed = False
        self._guard = threading.RLock()

    @property
    def can_be_started(self) -> bool:
        """Whether the zygote is running, or may be forked."""
        return self._now is not None or (hasattr(os, "fork") and not self._has_database_open())

    def prepare(self) -> None:
        """Fork the zygote, unless it is running, or must not be. Raises OSError when the system has no process left."""
        with self._guard:
            if self._now is None and self.can_be_started and not self._is_closed:
                self._now = self._begin()

    def start(self) -> "Child":
        """Start another child. Raises NotPerformed if that is not possible."""
        with self._guard:
            with contextlib.suppress(OSError):
                self.prepare()
            if (now := self._now) is None or not now.free:
                raise NotPerformed("no process could be started for its call", started=False)
            place, (ours, theirs) = now.free.pop(), socket_pair()
            now.board.write(place, Stage.IDLE)
            answer = self._ask(now, {"fork": place}, [theirs.fileno()])
            theirs.close()
            if answer is None or "problem" in answer:
                ours.close()
                now.free.append(place)
                why = "" if answer is None else f": {answer['problem']}"
                raise NotPerformed(f"no process could be started for its call{why}", started=False)
            return Child(self, now, place, ours)

    def close(self) -> None:
        """End the zygote and all children, also those in a call; there will be no others."""
        with self._guard:
            self._is_closed = True
            self._lose()

    def kill(self, child: "Child") -> None:
        """End it now, with all that its calls have started."""
        with self._guard:
            self._ask(child.generation, {"end": child.place})

    def forget(self, child: "Child") -> str:
        """Returns how it died; its place is free for another one."""
        with self._guard:
            answer = self._ask(child.generation, {"forget": child.place})
            if answer is None or answer["how"] is None:
                return "its process was lost"
            child.generation.free.append(child.place)
            return str(answer["how"])

    def _has_database_open(self) -> bool:
        """As far as the system tells; True if it does not."""
        if self._database_file is None:
            return False
        try:
            return has_open(self._database_file)
        except OSError:
            return True

    def _begin(self) -> _Generation:
        (ours, theirs), board = socket_pair(), Board()
        # Another thread may be importing the same just now: the zygote would wait for it, and there it does not exist.
        warm_up = _warm_up if threading.active_count() == 1 else None
        zygote = Zygote(theirs, board, os.getpid(), partial(live_as_child, self._opened, board), warm_up)
        try:
            pid = fork(zygote.live)
        except OSError:
            ours.close()
            theirs.close()
            raise
        theirs.close()
        return _Generation(ours, pid, board)

    def _ask(self, whom: _Generation, request: Mapping[str, int], give: list[int] | None = None) -> Any:
        """The zygote's answer; None when it has ended, and its children with it."""
        if whom is not self._now:
            return None
        try:
            socket.send_fds(whom.link, [line_of(request)], give or [])
            answer = receive(whom.link)
        except OSError:
            answer = None
        if answer is None:
            self._lose()
            return None
        return decode(answer.decode())

    def _lose(self) -> None:
        now, self._now = self._now, None
        if now is not None:
            now.is_over = self._is_closed  # first: whoever waits for a child shall know why it ended
            # Shut, and not only closed: a process that a target left behind may have this end open too.
            with contextlib.suppress(OSError):
                now.link.shutdown(socket.SHUT_RDWR)
            now.link.close()
            _await_end(now.pid)


def _warm_up() -> None:
    """Import pydantic, which takes three times as long as all else that a child does before its first call."""
    ParameterTypes("warm_up", (), {}).fit_plainly({})
    gc.freeze()


def _await_end(zygote: int) -> None:
    """It ends its children within its GRACE; one that is frozen is left to itself."""
    until = time.monotonic() + ENDING
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(zygote, os.WNOHANG)[0] == 0 and time.monotonic() < until:
            time.sleep(0.005)


class Child:
    """One child, as its parent sees it: for one thread at a time."""

    def __init__(self, children: Children, generation: _Generation, place: int, link: socket.socket) -> None:
        self._children = children
        self._link = link
        self._how: str | None = None
        self.generation = generation
        self.place = place

    @property
    def is_over(self) -> bool:
        """Whether it is known to have ended."""
        return self._how is not None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request: only its end could be read from it then."""
        return not self.is_over and not self._is_readable(0)

    def request(self, claim: Claim, limit: float | None, longest_silence: float | None = None) -> Outcome:
        """Have a claim performed there; returns its outcome. `limit`: seconds that the call itself may take.
        `longest_silence`: seconds for which the call may hold the GIL; None: until its limit.

        Raises NotPerformed; and, when the child has ended, Gone, Died or TookTooLong.
        """
        self.generation.board.write(self.place, Stage.IDLE)  # one that has answered may not have come to it
        try:
            answer = self._ask(line_of({"claim": claim}), limit, longest_silence)
        except BaseException:
            self.end()
            raise
        if "problem" in answer:
            raise NotPerformed(str(answer["problem"]), started=bool(answer["started"]))
        outcome = answer["outcome"]
        assert isinstance(outcome, Outcome)
        return outcome

    def end(self) -> str:
        """Kill it if it lives, with all that its calls have started; returns how it died."""
        if self._how is None:
            self._children.kill(self)
            self._link.settimeout(ENDING)
            while receive(self._link) is not None:
                pass  # what it said last, and was too late
            self._link.close()
            self._how = self._children.forget(self)
        return self._how

    def leave(self) -> None:
        """Let it end by itself; only while it is idle."""
        self._link.close()

    def _ask(self, request: bytes, limit: float | None, longest_silence: float | None) -> Mapping[str, Any]:
        asked = time.monotonic()
        self._link.settimeout(OPENING)
        with contextlib.suppress(OSError):  # it has just died, which is seen at once
            self._link.sendall(request)
        overdue = self._wait(asked, limit, longest_silence)
        silence = self.generation.board.silence(self.place)
        if overdue is not None:
            self._children.kill(self)
            self._link.settimeout(ENDING)
        answer = receive(self._link)  # it may have answered in the moment in which it was killed
        if answer is None:
            if overdue is Stage.CALLING and longest_silence is not None and silence > 4 * BEAT:
                raise Died(f"its process was ended: the call had held the GIL for {silence:.0f} s")
            raise self._lost() if overdue is None else _too_long(overdue)
        return decode(answer.decode())

    def _wait(self, asked: float, limit: float | None, longest_silence: float | None) -> Stage | None:
        """Wait for something to read: None; or until one stage has taken too long: which one."""
        while True:
            stage, since = self.generation.board.read(self.place)
            left = _left(stage, asked if stage is Stage.IDLE else since, limit)
            if stage is Stage.CALLING and longest_silence is not None:
                left = min(left, longest_silence - self.generation.board.silence(self.place))
            if self._is_readable(min(left, limit or OPENING, longest_silence or OPENING)):
                return None
            if left <= 0:
                return stage

    def _lost(self) -> Exception:
        stage, _ = self.generation.board.read(self.place)
        how = self.end()
        if self.generation.is_over:
            return NotPerformed("its process was ended together with the worker's", started=stage >= Stage.CALLING)
        return Gone(how) if stage is Stage.IDLE else Died(how)

    def _is_readable(self, seconds: float) -> bool:
        watch = select.poll()
        watch.register(self._link.fileno(), select.POLLIN)
        return bool(watch.poll(max(0, seconds) * 1000))


def _left(stage: Stage, since: float, limit: float | None) -> float:
    """How many seconds a child may remain at its stage."""
    if stage is Stage.CALLING and limit is None:
        return OPENING  # no limit: it is checked again then
    limits = {Stage.CALLING: limit or 0, Stage.CALLED: SETTLING}
    return since + limits.get(stage, OPENING) - time.monotonic()


def _too_long(stage: Stage) -> Exception:
    if stage is Stage.CALLING:
        return TookTooLong()
    if stage is Stage.CALLED:
        return NotPerformed("the outcome of its call could not be written", started=True)
    return NotPerformed("its process did not come to its call", started=False)
