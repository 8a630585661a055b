"""What all processes that are forked here have in common: how they part from their parent, and how they end."""

import contextlib
import ctypes
import os
import signal
import socket
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Container
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
HANDLED = (signal.SIGINT, signal.SIGTERM, *([signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else []))
_blocked = threading.local()
OURS = ("async_task", "async_task_cli")
"""The packages whose handlers of signals are not for the children of calls."""


_runs_exit_handlers = True
"""False in a process that was forked here, and in those that are forked from it."""


def runs_exit_handlers() -> bool:
    """Whether this process runs the functions of `atexit` when it ends."""
    return _runs_exit_handlers


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
            _note_fork()
            live()
            status = 0
        finally:
            flush_streams()
            os._exit(status)
    return pid


def _note_fork() -> None:
    global _runs_exit_handlers  # noqa: PLW0603 - it is the process that it says something about
    _runs_exit_handlers = False


def _block_signals() -> None:
    """Until the child has its own handlers: a signal that reaches it before would run ours there, and be lost."""
    _blocked.before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _blocked.before)


def _forget_handlers() -> None:
    """In each process that is forked from one of ours, also by a call: no handlers of ours. With them a child of
    `multiprocessing` would take SIGTERM for a request to its worker, and `terminate` would wait for ever."""
    ours = [number for number in HANDLED if _is_ours(signal.getsignal(number))]
    for number in ours:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if ours:
        signal.set_wakeup_fd(-1)
    _unblock_signals()


def _is_ours(handler: object) -> bool:
    return callable(handler) and str(getattr(handler, "__module__", "")).partition(".")[0] in OURS


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_block_signals, after_in_parent=_unblock_signals, after_in_child=_forget_handlers)


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


def adopt_orphans() -> None:
    """Become the parent of whatever the children of this process leave behind, so that it can be reaped here: process 1
    of a container may be a program that reaps nothing. Linux only."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap_orphans(besides: Container[int]) -> None:
    """Reap adopted processes that have ended, without taking the exit codes of the children `besides`."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in besides:
                return  # it is reaped by whoever waits for it, and the others after it
            os.waitpid(ended.si_pid, 0)


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
