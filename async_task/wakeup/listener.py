"""The listener: a thread that receives PostgreSQL's notifications of new attempts, and calls the notifier.

1. It opens a connection of its own, executes LISTEN, checks that the server knows of it, and waits.
2. About every 30 s it probes the connection. A server that does not answer in time counts as gone.
3. A lost connection is replaced, with backoff; until then polling finds what is due.
"""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, Table, func, select
from sqlalchemy.exc import DBAPIError

from async_task.database.dialects import receives_notifications
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.wakeup.in_process import Notifier
from async_task.wakeup.notify import channel_of, read_payload
from async_task.wakeup.subscription import Subscription, subscription_on

logger = logging.getLogger("async_task")
PROBE_EVERY = 30.0
PATIENCE = 10.0
"""Seconds in which the server must answer a probe."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
QUIET = 600.0
"""Seconds after a loss that was logged, in which others are not that pass at once."""
LASTING = 3
"""So many failures to connect are no loss that passes at once."""
NOT_LISTENING = "not listening, new attempts are found by polling: %s"


class ListenForgotten(Exception):
    """The server does not know of the LISTEN that was executed on this connection."""

    def __init__(self) -> None:
        super().__init__("LISTEN does not last on this connection: behind a pooler in transaction mode, switch it off")


class Losses:
    """Which losses of the connection are logged: the first one, and then, for QUIET, only one that lasts. A network may
    cut each idle connection."""

    def __init__(self) -> None:
        self._logged_at = -QUIET
        self._is_logged = self._is_often = False
        self._num_failures = 0

    def lost(self, now: float) -> str | None:
        """The connection is lost, or could not be replaced, at `now`. Returns what to log, which takes the error."""
        self._num_failures += 1
        if self._is_logged:
            return None
        if now - self._logged_at < QUIET and self._num_failures < LASTING:
            was_often, self._is_often = self._is_often, True
            return None if was_often else f"{NOT_LISTENING} (again; not logged for 10 min if it passes at once)"
        self._logged_at, self._is_logged, self._is_often = now, True, False
        return NOT_LISTENING

    def back(self) -> bool:
        """There is a connection. Returns whether that is to be logged."""
        was_logged, self._is_logged, self._num_failures = self._is_logged, False, 0
        return was_logged


class Listener:
    """Notifies `notifier` of the new rows of `table` that other processes commit. `start` it, and `close` it.

    `probe_every`: seconds between two probes of the connection. `patience`: seconds in which one must be answered.
    """

    def __init__(
        self,
        source: Source,
        table: Table,
        notifier: Notifier,
        *,
        probe_every: float = PROBE_EVERY,
        patience: float = PATIENCE,
    ) -> None:
        self._source = source
        self._channel = channel_of(table)
        self._notifier = notifier
        self._probe_every = probe_every
        self._patience = patience
        self._closing = threading.Event()
        self._subscription: Subscription | None = None
        self._num_failures = 0
        self._losses = Losses()
        self._thread = threading.Thread(target=self._run, name="async-task-listener", daemon=True)

    @staticmethod
    def is_possible(source: Source) -> bool:
        """Whether this database and driver can listen; otherwise workers only poll."""
        return receives_notifications(source.dialect)

    @property
    def is_listening(self) -> bool:
        """Whether commits from now on are received, as far as is known."""
        return self._subscription is not None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop, close the connection, and wait for both; for a server that does not answer, only `patience` seconds."""
        self._closing.set()
        if (subscription := self._subscription) is not None:
            subscription.interrupt()
        if self._thread.is_alive():
            self._thread.join(self._patience)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except Exception as error:
                self._log_lost(error)
                self._closing.wait(self._backoff())

    def _listen(self) -> None:
        with open_lane(self._source, private=True) as lane, _opened(lane) as connection:
            subscription = subscription_on(lane, connection, self._receive)
            try:
                with subscription.limited(self._patience):
                    lane.run(lambda: subscription.listen(self._channel))
                    lane.run(lambda: self._probe(connection))
                self._subscription = subscription
                self._log_back()
                while not self._closing.is_set():
                    self._wait(lane, connection, subscription)
            finally:
                self._subscription = None
                subscription.close()

    def _wait(self, lane: Lane, connection: Connection, subscription: Subscription) -> None:
        """Receive notifications until the next probe, and make that."""
        probe_at = time.monotonic() + self._probe_every * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
        while not self._closing.is_set() and (left := probe_at - time.monotonic()) > 0:
            subscription.wait(left)
        if not self._closing.is_set():
            with subscription.limited(self._patience):
                lane.run(lambda: self._probe(connection))

    def _probe(self, connection: Connection) -> None:
        # Not SELECT 1, which a pooler answers although it has forgotten the LISTEN.
        if self._channel not in connection.scalars(select(func.pg_listening_channels())).all():
            raise ListenForgotten

    def _receive(self, text: str) -> None:
        for queue, number in read_payload(text).items():
            self._notifier.notify(queue, number)

    def _log_lost(self, error: Exception) -> None:
        self._num_failures += 1
        if not self._closing.is_set() and (text := self._losses.lost(time.monotonic())) is not None:
            logger.warning(text, _first_line(error))

    def _log_back(self) -> None:
        self._num_failures = 0
        if self._losses.back():
            logger.warning("listening again")

    def _backoff(self) -> float:
        """Seconds to wait before the next connection, with jitter."""
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._num_failures, 16))
        return longest * random.uniform(0.25, 1.0)  # noqa: S311 - no secret


def _first_line(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


@contextmanager
def _opened(lane: Lane) -> Iterator[Connection]:
    """A connection in AUTOCOMMIT, which is never used again afterwards."""
    connection = lane.run(lambda: _connect(lane.engine))
    try:
        yield connection
    finally:
        with contextlib.suppress(Exception):
            lane.run(connection.invalidate)
        with contextlib.suppress(Exception):
            lane.run(connection.close)


def _connect(engine: Engine) -> Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")
