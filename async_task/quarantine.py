"""Where suspects are performed: a child process that does nothing else, so that a poison call takes no neighbour along.

1. A zygote is forked from this process, best before it has threads or connections. It opens nothing.
2. At the first suspect it forks a child, which performs suspects one after the other with connections of its own.
3. When a call kills the child, the zygote says so at once, and forks another at the next suspect.
4. When this process dies, the zygote ends its child and itself.
"""

import contextlib
import mmap
import os
import select
import signal
import socket
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from async_task import outcomes
from async_task.argument_types import argument_type
from async_task.arguments import decode, encode
from async_task.claims import Claim
from async_task.outcomes import Outcome
from async_task.status import Status

# What goes over the socket is written as arguments are: as data, never as objects that run.
for _kind in (Claim, Status, *outcomes.KINDS):
    argument_type(_kind, name=f"async-task.{_kind.__name__}")


class Died(Exception):
    """The child died in the call; the message says how."""


class Quarantine:
    """`perform` in a child: what it makes of a claim is answered over a socket, as data."""

    def __init__(self, perform: Callable[[Claim], Outcome]) -> None:
        self._perform = perform
        self._socket: socket.socket | None = None
        self._pid = 0
        self._number = 0

    @property
    def is_ready(self) -> bool:
        """Whether the zygote lives."""
        return self._socket is not None

    def prepare(self) -> None:
        """Fork the zygote, unless it is there."""
        if self._socket is not None:
            return
        ours, theirs = socket.socketpair()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # of threads: the zygote starts with sockets unusable, and none
            pid = os.fork()
        if pid == 0:
            _exit_after(lambda: _Zygote(theirs, self._perform).live())
        theirs.close()
        self._socket, self._pid = ours, pid

    def perform(self, claim: Claim) -> Outcome:
        """The outcome of a suspect. Raises Died when its call killed the child."""
        self.prepare()
        assert self._socket is not None
        self._number += 1
        _send(self._socket, {"number": self._number, "claim": claim})
        answer: Mapping[str, object] | None = {}
        while answer is not None and answer.get("number") != self._number:
            answer = _receive(self._socket)
        if answer is None:
            self.close()
            raise Died("its process was lost")
        if "died" in answer:
            raise Died(str(answer["died"]))
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


class _Zygote:
    """The process between: forks children that perform, and tells how they died."""

    def __init__(self, link: socket.socket, perform: Callable[[Claim], Outcome]) -> None:
        self._link = link
        self._perform = perform
        # Shared with the child: which request it is at, 0 for none. A death between two requests is nobody's fault.
        self._at = mmap.mmap(-1, 8)

    def live(self) -> None:
        _forget_inherited(self._link.fileno())
        wake, awake = os.pipe()
        os.set_blocking(awake, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(awake, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the end comes from the parent, by the socket
        while self._has_work():
            if died := self._run_child(wake):
                _send(self._link, {"number": _number_in(self._at), "died": died})

    def _has_work(self) -> bool:
        return bool(self._link.recv(1, socket.MSG_PEEK))

    def _run_child(self, wake: int) -> str | None:
        """Fork a child, and stay with it until it ends. How it died; None when it ended because the parent left."""
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            _exit_after(lambda: _serve(self._link, self._at, self._perform))
        watch = select.poll()
        watch.register(wake, select.POLLIN)
        watch.register(self._link.fileno(), select.POLLHUP | getattr(select, "POLLRDHUP", 0))
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return _how(status)
            for descriptor, _ in watch.poll():
                if descriptor == wake:
                    os.read(wake, 512)
                else:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    return None


def _serve(link: socket.socket, at: mmap.mmap, perform: Callable[[Claim], Outcome]) -> None:
    while (request := _receive(link)) is not None:
        number, claim = request["number"], request["claim"]
        assert isinstance(number, int) and isinstance(claim, Claim)
        at[:] = number.to_bytes(8, "big")
        outcome = perform(claim)
        at[:] = bytes(8)
        _send(link, {"number": number, "outcome": outcome})


def _number_in(at: mmap.mmap) -> int:
    return int.from_bytes(at[:], "big")


def _exit_after(live: Callable[[], None]) -> None:
    """Do it, and end this process without running anything of the parent's: no atexit, no destructors, no buffers."""
    status = 1
    try:
        live()
        status = 0
    finally:
        os._exit(status)


def _forget_inherited(but: int) -> None:
    """Make every inherited socket point nowhere: a copy of the parent's connection would keep its row locks alive after
    the parent's death, and its finalizer here would end the parent's session."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != but:
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere, descriptor)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        try:
            return f"its process was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"its process was killed by signal {-code}"
    return f"its process ended with exit code {code}"


def _send(link: socket.socket, message: Mapping[str, object]) -> None:
    link.sendall(encode(message).encode() + b"\n")


def _receive(link: socket.socket) -> Mapping[str, object] | None:
    """The next message; None when the other side has gone."""
    received = bytearray()
    while not received.endswith(b"\n"):
        part = link.recv(65536)
        if not part:
            return None
        received += part
    return decode(received.decode())
