"""Where suspects are performed: a child process that does nothing else, so that a poison call takes no neighbour along.

1. A zygote is forked from this process, best before it has threads or connections. It opens nothing.
2. At the first suspect it forks a child, which performs suspects one after the other with connections of its own.
3. When a call kills the child, the zygote says so at once, and forks another for the next suspect. A child that dies
   between two calls is nobody's fault: the call that comes gets another one.
4. When this process dies, the zygote ends its child and itself.
"""

import contextlib
import mmap
import os
import socket
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from async_task import outcomes
from async_task.argument_types import argument_type
from async_task.claims import Claim
from async_task.decoding import decode
from async_task.encoding import encode
from async_task.failures import describe
from async_task.outcomes import Outcome
from async_task.status import Status
from async_task.zygote import Zygote, receive

# What goes over the socket is written as arguments are: as data, never as objects that run.
for _kind in (Claim, Status, *outcomes.KINDS):
    argument_type(_kind, name=f"async-task.{_kind.__name__}")

Opened = Callable[[], AbstractContextManager[Callable[[Claim], Outcome]]]


class Died(Exception):
    """The child died in the call; the message says how."""


class NotPerformed(Exception):
    """Not the call's fault: no child could be had (`started` False), or the database failed it."""

    def __init__(self, reason: str, *, started: bool) -> None:
        super().__init__(reason)
        self.started = started


class Quarantine:
    """`perform` in a child: what it makes of a claim is answered over a socket, as data.

    `opened`: entered once in each child, it yields what performs a claim there.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._socket: socket.socket | None = None
        self._pid = 0
        # Shared with the child: whether it is in a call now.
        self._busy = mmap.mmap(-1, 1)

    @property
    def is_ready(self) -> bool:
        """Whether the zygote was forked."""
        return self._socket is not None

    def prepare(self) -> None:
        """Fork the zygote, unless it is there. Raises OSError when the system has no process left."""
        if self._socket is not None:
            return
        ours, theirs = socket.socketpair()
        _flush()  # else the child would write what waits in this process's buffers once more
        try:
            with warnings.catch_warnings():
                # Of threads: the zygote has none, and starts with all sockets unusable.
                warnings.simplefilter("ignore", DeprecationWarning)
                parent, pid = os.getpid(), os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            _exit_after(lambda: Zygote(theirs, self._busy, parent, self._live_as_child).live())
        theirs.close()
        self._socket, self._pid = ours, pid

    def perform(self, claim: Claim) -> Outcome:
        """The outcome of a suspect. Raises Died when its call killed the child, else NotPerformed."""
        answer = self._ask({"claim": claim})
        if "died" in answer:
            raise Died(str(answer["died"]))
        if "problem" in answer:
            raise NotPerformed(str(answer["problem"]), started=bool(answer["started"]))
        outcome = answer["outcome"]
        assert isinstance(outcome, Outcome)
        return outcome

    def close(self) -> None:
        """End the zygote and its child."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)

    def _ask(self, request: Mapping[str, object]) -> Mapping[str, object]:
        try:
            self.prepare()
            assert self._socket is not None
            self._socket.sendall(_line(request))
            answer = receive(self._socket)
        except OSError:
            answer = None
        if answer is not None:
            return decode(answer.decode())
        was_busy = bool(self._busy[0])
        self.close()
        self._busy[0] = 0
        if was_busy:
            return {"died": "its process was lost"}
        return {"problem": "no process could be had for the quarantine", "started": False}

    def _live_as_child(self, link: socket.socket) -> None:
        with self._opened() as perform:
            while (request := receive(link)) is not None:
                claim = decode(request.decode())["claim"]
                assert isinstance(claim, Claim)
                self._busy[0] = 1
                answer = _answer(perform, claim)
                _flush()  # this process ends without
                link.sendall(_line(answer))
                self._busy[0] = 0


def _answer(perform: Callable[[Claim], Outcome], claim: Claim) -> Mapping[str, object]:
    try:
        return {"outcome": perform(claim)}
    except MemoryError:
        raise  # what the call has taken is not given back but by the end of this process
    except Exception as error:
        return {"problem": describe(error).summary, "started": True}


def _exit_after(live: Callable[[], None]) -> None:
    """Do it, and end this process without running anything of the parent's: no atexit, no destructors, no buffers."""
    status = 1
    try:
        live()
        status = 0
    finally:
        os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, closed, or a full disk behind it
            stream.flush()


def _line(message: Mapping[str, object]) -> bytes:
    return encode(message).encode() + b"\n"
