"""The process between a worker and the child in which its suspects are performed: it forks the child, hands requests
on, and tells how a child died."""

import contextlib
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TRIES, GRACE, TICK_MS = 3, 2.0, 1000
PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    pid: int
    link: socket.socket


class Zygote:
    """Lives until its parent closes `link`, or dies. `busy`: whether the child is in a call, in shared memory."""

    def __init__(
        self, link: socket.socket, busy: mmap.mmap, parent: int, live_as_child: Callable[[socket.socket], None]
    ) -> None:
        self._link = link
        self._busy = busy
        self._parent = parent
        self._live_as_child = live_as_child
        self._child: _Child | None = None
        self._wake = 0

    def live(self) -> None:
        """Hand requests on, and answers back, one at a time."""
        _forget_inherited(self._link.fileno())
        self._listen_to_signals()
        try:
            while (request := receive(self._link)) is not None:
                if (answer := self._answer(request)) is None:
                    break
                self._link.sendall(answer)
        finally:
            self._end_child()

    def _listen_to_signals(self) -> None:
        self._wake, awake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(awake, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(awake, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the end comes from the parent, by the socket

    def _answer(self, request: bytes) -> bytes | None:
        """The child's answer, or how the call killed it; None when the parent has gone."""
        how = ""
        for _ in range(TRIES):
            child = self._child = self._child or self._fork()
            self._busy[0] = 0  # a child that has answered may not have come to it
            with contextlib.suppress(OSError):  # it has just died, which is seen at once
                child.link.sendall(request)
            if not self._wait_for(child):
                return None
            if (answer := receive(child.link)) is not None:
                return answer
            how = self._bury(child)
            if self._busy[0]:
                return _line({"died": how})
        return _line({"problem": f"no child of the quarantine stays alive: {how}", "started": False})

    def _fork(self) -> _Child:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._link.close()
            self._become_child(theirs)
        theirs.close()
        # A group of its own, with whatever its calls start: a process they leave behind may hold the row's lock.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return _Child(pid, ours)

    def _become_child(self, link: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            _die_with_parent()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self._live_as_child(link)
            os._exit(0)
        finally:
            os._exit(1)

    def _wait_for(self, child: _Child) -> bool:
        """Until the child has answered or died: True; or until the parent has gone: False."""
        watch = select.poll()
        watch.register(self._wake, select.POLLIN)
        watch.register(child.link.fileno(), select.POLLIN)
        watch.register(self._link.fileno(), select.POLLHUP | getattr(select, "POLLRDHUP", 0))
        while True:
            seen = {descriptor for descriptor, _ in watch.poll(TICK_MS)}
            self._forget_wakes()
            if child.link.fileno() in seen:
                return True
            if _has_ended(child.pid):
                child.link.setblocking(False)  # what the call started may hold the other end open
                return True
            # The parent's end may be open in a process that it forked: then only its death can be seen.
            if self._link.fileno() in seen or os.getppid() != self._parent:
                return False

    def _end_child(self) -> None:
        """Let it close its connections if it is idle; else end it, with what its call started, at once."""
        child = self._child
        if child is None:
            return
        child.link.close()
        until = time.monotonic() + (0 if self._busy[0] else GRACE)
        while not _has_ended(child.pid) and (left := until - time.monotonic()) > 0:
            select.select([self._wake], [], [], left)
            self._forget_wakes()
        if not _has_ended(child.pid):
            _kill_group(child.pid)
        os.waitpid(child.pid, 0)

    def _forget_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 512)

    def _bury(self, child: _Child) -> str:
        """How it died. What its call has started ends too: it may hold the connection, and with it the row's lock."""
        self._child = None
        child.link.close()
        # It is waited for without being reaped: until then no other process can get its number.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        _kill_group(child.pid)
        return _how(os.waitpid(child.pid, 0)[1])


def receive(link: socket.socket) -> bytes | None:
    """The next line; None when the other side has gone."""
    received = bytearray()
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while part := link.recv(65536):
            received += part
            if part.endswith(b"\n"):
                return bytes(received)
    return None


def _die_with_parent() -> None:
    """Where the system can (Linux): be killed when the process that forked this one dies, however it dies."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        try:
            return f"its process was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"its process was killed by signal {-code}"
    return f"its process ended with exit code {code}"


def _forget_inherited(but: int) -> None:
    """Make every inherited socket point nowhere: a copy of the parent's connection would keep its row locks alive after
    the parent's death, and its finalizer here would end the parent's session."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for link in list(Path("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd").iterdir()):
        descriptor = int(link.name)
        if descriptor > 2 and descriptor != but:
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere, descriptor)


def _line(message: dict[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"
