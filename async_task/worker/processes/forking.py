"""What all processes that are forked here have in common: how they part from their parent, and how they end."""

import contextlib
import ctypes
import os
import signal
import socket
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1


def fork(live: Callable[[], object]) -> int:
    """Fork a process that calls `live` and ends; returns its id. Raises OSError if the system has no process left.

    The child ends without running anything of its parent: no exit handlers, no finalizers, no buffers.
    """
    flush_streams()  # else the child would write what is in the buffers of this process once more
    with warnings.catch_warnings():
        # Of other threads: a child that must not depend on them is forked before there are any.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            live()
            status = 0
        finally:
            flush_streams()
            os._exit(status)
    return pid


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that block, whatever `socket.setdefaulttimeout` was set to."""
    pair = socket.socketpair()
    for one in pair:
        one.settimeout(None)
    return pair


def flush_streams() -> None:
    """Write what standard output and standard error have buffered."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, closed, or a full disk behind it
            stream.flush()


def disconnect_inherited(besides: int) -> None:
    """Point every inherited stream socket at nothing, but the one with the descriptor `besides`.

    A copy of the parent's connection would keep its row locks after the parent's death, and its finalizer here would
    end the parent's session. Datagram sockets, as of loggers and metrics, may be shared.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    folder = Path("/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd")
    for descriptor in [int(one.name) for one in folder.iterdir()]:
        if descriptor > 2 and descriptor != besides:
            with contextlib.suppress(OSError):
                if _is_stream(descriptor):
                    os.dup2(nothing, descriptor)
    os.close(nothing)


def _is_stream(descriptor: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    one = socket.socket(fileno=descriptor)
    kind = one.type
    one.detach()
    return kind != socket.SOCK_DGRAM


def signal_at_death_of(parent: int, number: signal.Signals) -> None:
    """Be sent this signal when the process that forked this one dies, however it dies. Linux only; elsewhere a child
    sees it by the end of a socket."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)  # it died before this was set


def cause_of_death(code: int) -> str:
    """How a process ended, by the exit code that `os.waitstatus_to_exitcode` gives: "was killed by SIGKILL"."""
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def has_open(file: str) -> bool:
    """Whether this process has this file open, or one whose name begins with it. Raises OSError where the system does
    not tell."""
    opened = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    name = os.path.realpath(file)
    return any(one.startswith(name) for one in opened)
