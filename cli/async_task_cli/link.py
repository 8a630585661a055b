"""The link between a supervisor and a child of it: what the one asks for, what the other reports, and each other's end.

The supervisor sends single bytes; the child answers lines of JSON. When the supervisor has died, however that was, its
end is closed: the child finishes what it has in hand, and ends.
"""

import contextlib
import ctypes
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping

from async_task import AttemptWorker

STOP, ABANDON, LOOK = b"s", b"a", b"l"
REPORTS_EVERY = 1.0
PR_SET_PDEATHSIG = 1
_turns = threading.RLock()
"""Reentrant: the handler of a signal may interrupt itself."""


class Link:
    """The child's end. `tally`: what it has done so far, by the kind of the outcome."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        # Until somebody reads here: a supervisor that dies while this process starts takes it along.
        with contextlib.suppress(Exception):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))

    def serve(self, worker: AttemptWorker, tally: Callable[[], Mapping[str, int]]) -> None:
        """From now on, do what the supervisor says, on a thread of its own, and report."""
        self._say(ready=True)
        threading.Thread(target=self._live, args=(worker, tally), name="async-task-link", daemon=True).start()

    def report(self, tally: Mapping[str, int]) -> None:
        self._say(tally=dict(tally))

    def _live(self, worker: AttemptWorker, tally: Callable[[], Mapping[str, int]]) -> None:
        self._socket.settimeout(REPORTS_EVERY)
        before: Mapping[str, int] = {}
        reported_at = time.monotonic()
        while (asked := self._asked()) is not None:
            for one in asked:
                obey(worker, bytes([one]))
            if time.monotonic() - reported_at >= REPORTS_EVERY and (now := tally()) != before:
                before, reported_at = now, time.monotonic()
                self.report(now)
        obey(worker, STOP)

    def _asked(self) -> bytes | None:
        """Empty when nothing was said for a while; None when nobody is there."""
        try:
            return self._socket.recv(64) or None
        except TimeoutError:
            return b""
        except OSError:
            return None

    def _say(self, **what: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(what).encode() + b"\n")


def obey(worker: AttemptWorker, asked: bytes) -> None:
    """Whatever else was asked before: a signal may have come to all processes of a group, and by the link."""
    if asked == LOOK:
        worker.poll_now()
        return
    with _turns:  # else both might call a first time, and the second of them would abandon
        if not worker.is_stopping:
            worker.stop()
        if asked == ABANDON and not worker.is_abandoning:
            worker.stop()
