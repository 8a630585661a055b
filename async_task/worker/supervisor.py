"""Several worker processes under a supervisor, as `outbox.worker(processes=2)` returns them.

The supervisor is a process of its own, forked when `run` begins, and each worker process is forked from it, now or
later. It never has threads or connections, whatever the process that called `run` does meanwhile: so its children
inherit no lock that nobody releases, and no connection that two processes use. Forked processes have the application as
it was built here; spawned ones would have to import it, which runs a script without a main guard once more.
"""

import base64
import contextlib
import gc
import logging
import os
import pickle
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator

from sqlalchemy import Table

from async_task import outcomes
from async_task.database.dialects import locks_rows
from async_task.database.engines import Source
from async_task.database.lanes import open_lane
from async_task.error_text import describe
from async_task.errors import AsyncTaskError, ConfigurationError
from async_task.outcomes import Outcome
from async_task.queue.hooks import NO_HOOKS, Hooks
from async_task.queue.processes import Process
from async_task.queue.sweep import recover_process
from async_task.worker.link import ABANDON, STOP, Link, wait_for_any
from async_task.worker.processes.forking import cause_of_death, disconnect_inherited, fork, has_open, socket_pair
from async_task.worker.signals import stopped_by_signals
from async_task.worker.supervised_worker import SupervisedWorker
from async_task.worker.supervisor_process import SupervisorProcess
from async_task.worker.worker import AttemptWorker, WorkerSettings

logger = logging.getLogger("async_task")
RECOVERY_INTERVAL = 1.0
"""Seconds between two tries to recover, while the database is away."""
KINDS = {kind.__name__: kind for kind in outcomes.KINDS}


class Supervisor:
    """Several worker processes, which `outbox.worker(processes=2)` returns: `run` them, and `stop` them from another
    thread or a signal's handler. It runs once. All `settings` are for each process.

    A process that dies is replaced, and what it had claimed is recovered at once, counted as a crash. If this process
    dies, the others finish their running calls, and end.
    """

    def __init__(
        self, open_worker: Callable[[int], AttemptWorker], settings: WorkerSettings, processes: int,
        source: Source, table: Table, *, check: Callable[[], object], hooks: Hooks = NO_HOOKS,
    ) -> None:  # fmt: skip
        """`open_worker`: called in each worker process, with its number from 1. `check`: raises what would make each of
        them fail. `hooks`: hear of the tries that died with a process."""
        self.settings = settings
        self.processes = processes
        self._open_worker = open_worker
        self._source = source
        self._table = table
        self._check = check
        self._hooks = hooks
        self._tally: Counter[type[Outcome]] = Counter()
        self._error: Exception | None = None
        self._is_stopping = False
        self._is_abandoning = False
        self._wake: socket.socket | None = None

    def run(self, *, began: Callable[[str], object] = lambda name: None) -> Counter[type[Outcome]]:
        """Perform what is due until `stop`; returns how many attempts ended how, in all processes. `began`: called in
        each worker process with the name of its worker, before it claims anything.

        In the main thread, SIGINT and SIGTERM call `stop`, unless the program handles them itself. The processes are
        forked from this one, best before it starts threads, and end without exit handlers (`atexit`). Idle connections
        of the application's engine are closed before.

        Raises SchemaMismatch without tables, SQLAlchemy's OperationalError if the database is away at the start,
        ConfigurationError if this process has an SQLite database open, OSError if the system has no process left, and
        AsyncTaskError if the supervisor process was killed.
        """
        self._check()
        if self._is_stopping:
            return self.tally
        self._source.close_idle()
        self._refuse_open_file()
        with stopped_by_signals(self.stop), self._wakeable() as woken:
            link, pid = self._fork(began)
            try:
                self._attend(link, woken)
            finally:
                link.close()
                code = _await_end(pid)
        if self._error is not None:
            raise self._error
        if code:
            raise AsyncTaskError(
                f"the supervisor process {cause_of_death(code)}: its worker processes finish their calls, and end"
            )
        return self.tally

    def stop(self) -> None:
        """Finish the running calls, and start nothing further. When it is called again: abandon the running calls."""
        # No locks: the handler of a signal may come at any moment.
        self._is_abandoning = self._is_stopping
        self._is_stopping = True
        wake = self._wake
        if wake is not None:
            with contextlib.suppress(OSError):
                wake.send(b"\0")

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    @property
    def is_abandoning(self) -> bool:
        return self._is_abandoning

    @property
    def tally(self) -> Counter[type[Outcome]]:
        """How many attempts ended how, as far as the processes have reported it: once a second, and at their end."""
        return self._tally.copy()

    def _refuse_open_file(self) -> None:
        """A forked process would believe that it has the locks of this one, which SQLite's files do not give it."""
        if locks_rows(self._source.dialect):
            return
        with contextlib.suppress(OSError):  # the system does not tell: idle connections are closed, at least
            if has_open(self._source.database_file):
                raise ConfigurationError(
                    f"this process has {self._source.database_file} open, and SQLite must not be open in a process "
                    "that forks: close sessions and connections before outbox.worker(processes=...).run()"
                )

    @contextlib.contextmanager
    def _wakeable(self) -> Iterator[socket.socket]:
        """What can be read when `stop` was called."""
        woken, wake = socket.socketpair()
        with woken, wake:
            for end in (woken, wake):
                end.setblocking(False)
            self._wake = wake
            yield woken
            self._wake = None

    # In this process.

    def _attend(self, link: Link, woken: socket.socket) -> None:
        """Pass requests on and read reports, until the supervisor process has ended."""
        passed_on = None
        while not link.is_over:
            request = ABANDON if self._is_abandoning else STOP if self._is_stopping else None
            if request not in (None, passed_on):
                link.request(request or STOP)
                passed_on = request
            wait_for_any((link, woken), None)
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            for report in link.read_reports():
                if "tally" in report:
                    self._tally = Counter({KINDS[name]: number for name, number in report["tally"].items()})
                if "error" in report:
                    self._error = pickle.loads(base64.b64decode(report["error"]))  # noqa: S301 - from our own process

    def _fork(self, began: Callable[[str], object]) -> tuple[Link, int]:
        gc.collect()  # here: finalizers that run in the others would run twice
        ours, theirs = socket_pair()
        try:
            pid = fork(lambda: self._supervise(Link(theirs), began))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return Link(ours), pid

    # In the supervisor process, and in those that it forks.

    def _supervise(self, caller: Link, began: Callable[[str], object]) -> None:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all; the caller passes them on
            disconnect_inherited(caller.fileno())
            self._source.leave_to_parent()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            supervisor = os.getpid()

            def work(link: Link, place: int) -> None:
                SupervisedWorker(self._open_worker(place + 1), link, supervisor).run(began)

            SupervisorProcess(
                caller, self.processes, self.settings.grace, work=work, recover=self._recover_process
            ).run()
        except Exception:
            logger.exception("the supervisor process failed")
            raise
        finally:
            logging.shutdown()

    def _recover_process(self, pid: int, started: str) -> None:
        """However long the database is away."""
        dead = Process(socket.gethostname(), pid, started)
        while True:
            try:
                with open_lane(self._source, private=True) as lane:
                    report = lane.run(lambda: recover_process(lane.engine, self._table, dead, hooks=self._hooks))
            except Exception as error:
                logger.warning("the attempts of process %d are not recovered yet: %s", pid, describe(error).summary)
                time.sleep(RECOVERY_INTERVAL)
            else:
                if report.recovered:
                    logger.info("attempts recovered from process %d: %d", pid, report.recovered)
                return


def _await_end(pid: int) -> int:
    """Until this child has ended: its exit code."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # the program ignores SIGCHLD, or waits for all children itself
        return 0
