"""The name that was given to a worker, for as long as the worker has it.

Where the database has locks that end with a connection, the worker holds one on a connection of its own. The server
frees it within milliseconds when the process is killed, on whatever machine: so the next worker of the name need not
wait for heartbeats to be missing. Elsewhere, and behind a pooler, only heartbeats tell.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy import Table

from async_task.database.lanes import Lane
from async_task.database.server_sessions import try_session_lock
from async_task.database.transactions import retry_transient
from async_task.errors import AlreadyRunning
from async_task.queue.hooks import NO_HOOKS, Hooks
from async_task.queue.sweep import recover_workers
from async_task.queue.worker_names import Taking, about_with, lock_of, try_to_take
from async_task.queue.workers import given_name

logger = logging.getLogger("async_task")
PAUSE = 0.2
"""Seconds between two looks at a worker of which it is not certain whether it lives."""


class HeldName:
    """Of `worker`. `open_lane`: opens a lane that nobody shares. `has_sessions`: whether a connection is a session of
    the server for as long as it is open; not behind a pooler in transaction mode."""

    def __init__(
        self, table: Table, worker: str, lease: dt.timedelta, open_lane: Callable[[], Lane], *, has_sessions: bool,
        hooks: Hooks = NO_HOOKS,
    ) -> None:  # fmt: skip
        self._table = table
        self._worker = worker
        self._name = given_name(worker)
        self._lease = lease
        self._open_lane = open_lane
        self._has_sessions = has_sessions
        self._hooks = hooks
        self._lane: Lane | None = None
        self._first_lock: bytes | None = None

    def take(self, about: str) -> str:
        """Take the name, and recover what the workers before have left. Returns what the worker is to tell `about`
        itself from now on. Waits for one lease at most, while nothing tells whether a worker of the name lives. Raises
        AlreadyRunning if one does."""
        lane = self._lane = self._open_lane()
        try:
            taking = lane.run(lambda: self._take(lane, about))
            if taking.dead:
                recovered = lane.run(lambda: recover_workers(lane.engine, self._table, taking.dead, hooks=self._hooks))
                logger.info(
                    "worker %s takes over the name %s: attempts recovered: %d", self._worker, self._name, recovered
                )
            return about_with(about, self._first_lock)
        except BaseException:
            self.close()
            raise

    def keep(self) -> None:
        """Hold the lock, also after its connection was lost. On one thread."""
        lane = self._lane
        if lane is None:
            return
        try:
            lane.run(lambda: self._lock(lane))
        except Exception:
            lane.run(lane.drop_connection)
            raise

    def close(self) -> None:
        """Give up the lock."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()

    def _take(self, lane: Lane, about: str) -> Taking:
        first_seen: dict[str, dt.datetime] = {}
        while True:
            taking = retry_transient(partial(self._try_to_take, lane, about, first_seen))
            if taking.living is not None:
                raise AlreadyRunning(
                    f"another worker has the name {self._name}: {taking.living}; stop it, or choose another name"
                )
            if taking.taken:
                return taking
            first_seen = taking.beats | first_seen
            time.sleep(PAUSE)

    def _try_to_take(self, lane: Lane, about: str, first_seen: dict[str, dt.datetime]) -> Taking:
        self._first_lock = self._lock(lane)
        return try_to_take(
            lane.engine, self._table, self._worker, self._lease, about, first_seen=first_seen, lock=self._first_lock
        )

    def _lock(self, lane: Lane) -> bytes | None:
        """The lock of the name, if this process has it."""
        if not self._has_sessions:
            return None
        lock = lock_of(self._table, lane.engine.url.database or "", self._name)
        return lock if try_session_lock(lane.autocommit, lock) else None
