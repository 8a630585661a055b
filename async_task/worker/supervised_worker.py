"""A worker under a supervisor: it runs in a process of its own, obeys requests and reports what it has done."""

import base64
import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from async_task.database.driver_errors import is_unusable
from async_task.error_text import describe
from async_task.errors import AsyncTaskError
from async_task.outcomes import Outcome
from async_task.worker.link import ABANDON, POLL, STOP, Link, wait_for_any
from async_task.worker.processes.forking import signal_at_death_of
from async_task.worker.worker import AttemptWorker

logger = logging.getLogger("async_task")
REPORT_INTERVAL = 1.0
"""Seconds between two reports of what a worker has done."""
_one_at_a_time = threading.RLock()
"""Reentrant: the handler of a signal may interrupt itself."""


class SupervisedWorker:
    """`link`: to the supervisor, whose process id is `supervisor`."""

    def __init__(self, worker: AttemptWorker, link: Link, supervisor: int) -> None:
        self._worker = worker
        self._link = link
        self._supervisor = supervisor
        self._received, self._signaled = socket.socketpair()
        self._has_begun = False

    def run(self, began: Callable[[str], object]) -> None:
        """Until the supervisor requests the end, or has died. `began`: as for `AttemptWorker.run`. Raises SystemExit
        if the worker failed, after that was reported."""
        self._handle_signals()
        # Not SIGKILL: running calls finish, so that none is charged as a crash, and no row waits for its lease.
        signal_at_death_of(self._supervisor, signal.SIGTERM)

        def begin(name: str) -> None:
            began(name)
            self._has_begun = True
            self._link.report(begun=True)
            # Not before: the worker best forks its own child processes while there are no threads.
            threading.Thread(target=self._serve, name="async-task-link", daemon=True).start()

        try:
            self._report(self._worker.run(began=begin))
        except Exception as error:
            self._report_failure(error)
            raise SystemExit(1) from error
        finally:
            logging.shutdown()  # flushes what handlers have buffered

    # Requests.

    def _handle_signals(self) -> None:
        for end in (self._received, self._signaled):
            end.setblocking(False)
        signal.set_wakeup_fd(self._signaled.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle_signal)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        obey(self._worker, STOP)  # it is logged by the thread: a handler must not

    def _serve(self) -> None:
        reported_at = time.monotonic()
        while not self._link.is_over:
            wait_for_any((self._link, self._received), REPORT_INTERVAL)
            for request in self._link.read_requests():
                obey(self._worker, request)
            self._log_signals()
            if time.monotonic() - reported_at >= REPORT_INTERVAL:
                reported_at = time.monotonic()
                self._report(self._worker.tally)  # also if it is the same: the supervisor kills a silent process
        obey(self._worker, STOP)

    def _log_signals(self) -> None:
        try:
            numbers = self._received.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in (signal.SIGINT, signal.SIGTERM):
                name = signal.Signals(number).name
                logger.info("worker process %d received %s: it finishes its running calls", os.getpid(), name)

    # Reports.

    def _report(self, tally: Counter[type[Outcome]]) -> None:
        self._link.report(tally={kind.__name__: number for kind, number in tally.items()})

    def _report_failure(self, error: Exception) -> None:
        is_final = not self._has_begun and _is_final(error)
        self._link.report(failure=describe(error).summary, error=_pickled(error) if is_final else None)


def obey(worker: AttemptWorker, request: bytes) -> None:
    """Do what was requested, however often it was requested before: a signal may reach each process of a group, and
    also come through the link. Only the request to abandon abandons."""
    if request == POLL:
        worker.poll_now()
        return
    with _one_at_a_time:  # else two threads might each call `stop` for the first time, and so abandon
        if not worker.is_stopping:
            worker.stop()
        if request == ABANDON and not worker.is_abandoning:
            worker.stop()


def _is_final(error: Exception) -> bool:
    """Whether another process would most likely meet it too: settings, tables, rights, a database that cannot be
    used."""
    if isinstance(error, ProgrammingError):
        return True
    if isinstance(error, DBAPIError):
        return isinstance(error, (OperationalError, InterfaceError)) and is_unusable(error.orig)
    return isinstance(error, (AsyncTaskError, OSError))


def _pickled(error: Exception) -> str:
    """`error` for the process that started all this, which has the same classes."""
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # noqa: S301 - our own, a line above: not every exception can be made anew
    except Exception:
        pickled = pickle.dumps(AsyncTaskError(describe(error).summary))
    return base64.b64encode(pickled).decode()
