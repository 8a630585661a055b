"""Listening: a thread that hears PostgreSQL's notices of new attempts, on a connection of its own, and rings the bell.

1. It says LISTEN, looks whether that holds, and waits.
2. About every 30 s it looks again. A server that does not answer in time is taken for gone, also where TCP still hopes.
3. When the connection is lost, it is replaced, after pauses that grow; meanwhile polling finds what is due.
"""

import asyncio
import contextlib
import logging
import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Table, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from async_task.database.dialects import notifies
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.wakeup.in_process import Notifier
from async_task.wakeup.notify import channel_of, read_payload

logger = logging.getLogger("async_task")
DRIVERS = ("psycopg", "psycopg_async", "asyncpg")
PROBE_EVERY = 30.0
PATIENCE = 10.0
"""Seconds that the server has to answer a probe."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0


class NotKept(Exception):
    """The server does not know of the LISTEN that was said on this connection."""

    def __init__(self) -> None:
        super().__init__("LISTEN does not last on this connection: behind a pooler in transaction mode, switch it off")


class Listener:
    """Rings `bell` for the new rows of `table` that other processes commit. `start` it, and `close` it.

    `probe_every`, `patience`: seconds between two looks at the connection, and for the answer to one.
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
        self._ear: _Ear | None = None
        self._num_failures = 0
        self._was_lost = False
        self._thread = threading.Thread(target=self._live, name="async-task-listener", daemon=True)

    @staticmethod
    def is_possible(source: Source) -> bool:
        """Whether this database and driver can listen; otherwise polling has to do."""
        return notifies(source.dialect) and source.dialect.driver in DRIVERS

    @property
    def is_listening(self) -> bool:
        """Whether what is committed from now on will ring, as far as is known."""
        return self._ear is not None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End it, and its connection; wait for that, but not for a server that does not answer."""
        self._closing.set()
        if (ear := self._ear) is not None:
            ear.interrupt()
        if self._thread.is_alive():
            self._thread.join(self._patience)

    def _live(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except Exception as error:
                self._lose(error)
                self._closing.wait(self._pause())

    def _listen(self) -> None:
        with open_lane(self._source, private=True) as lane, _opened(lane) as connection:
            ear = _ear_on(lane, connection, self._hear)
            try:
                with ear.bounded(self._patience):
                    lane.run(lambda: ear.listen(self._channel))
                    lane.run(lambda: self._probe(connection))
                self._ear = ear
                self._return()
                while not self._closing.is_set():
                    self._wait(lane, connection, ear)
            finally:
                self._ear = None
                ear.close()

    def _wait(self, lane: Lane, connection: Connection, ear: "_Ear") -> None:
        """Hear what comes until the next probe is made."""
        probe_at = time.monotonic() + self._probe_every * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
        while not self._closing.is_set() and (left := probe_at - time.monotonic()) > 0:
            ear.wait(left)
        if not self._closing.is_set():
            with ear.bounded(self._patience):
                lane.run(lambda: self._probe(connection))

    def _probe(self, connection: Connection) -> None:
        if self._channel not in connection.scalars(select(func.pg_listening_channels())).all():
            raise NotKept

    def _hear(self, text: str) -> None:
        for queue, number in read_payload(text).items():
            self._notifier.notify(queue, number)

    def _lose(self, error: Exception) -> None:
        self._num_failures += 1
        if not self._was_lost and not self._closing.is_set():
            self._was_lost = True
            logger.warning("not listening, new attempts are found by polling: %s", _first_line(error))

    def _return(self) -> None:
        self._num_failures = 0
        if self._was_lost:
            self._was_lost = False
            logger.warning("listening again")

    def _pause(self) -> float:
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._num_failures, 16))
        return longest * random.uniform(0.25, 1.0)  # noqa: S311 - no secret


def _first_line(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


@contextmanager
def _opened(lane: Lane) -> Iterator[Connection]:
    """A connection without transactions, which is not used again."""
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


# What the drivers do differently


class _Ear(Protocol):
    """A connection that hears. All but `interrupt` is for the listener's thread."""

    def listen(self, channel: str) -> None:
        """Say LISTEN. Inside of the lane's `run`."""

    def wait(self, seconds: float) -> None:
        """Until something came, or `interrupt`, or so long. Raises when the connection is lost."""

    def interrupt(self) -> None: ...

    def bounded(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """What is asked of the server meanwhile fails after so long."""
        ...

    def close(self) -> None: ...


def _ear_on(lane: Lane, connection: Connection, hear: Callable[[str], None]) -> _Ear:
    if connection.dialect.driver == "asyncpg":
        return lane.run(lambda: _AsyncpgEar(lane, connection, hear))
    return _PsycopgEar(connection, hear)


class _PsycopgEar:
    """On psycopg, of either kind: what waits is this thread, for libpq's socket, and no event loop."""

    def __init__(self, connection: Connection, hear: Callable[[str], None]) -> None:
        driver: Any = connection.connection.driver_connection
        self._connection = connection
        self._hear = hear
        self._libpq = driver.pgconn
        self._encoding = driver.info.encoding
        driver.add_notify_handler(lambda notice: hear(notice.payload))  # what comes beside an answer to a statement
        self._socket = _watched(self._libpq.socket)
        self._called, self._caller = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._libpq.socket, selectors.EVENT_READ)
        self._selector.register(self._called, selectors.EVENT_READ)

    def listen(self, channel: str) -> None:
        self._connection.exec_driver_sql(f"LISTEN {self._connection.dialect.identifier_preparer.quote(channel)}")

    def wait(self, seconds: float) -> None:
        self._selector.select(seconds)
        self._libpq.consume_input()
        while (notice := self._libpq.notifies()) is not None:
            self._hear(notice.extra.decode(self._encoding, "replace"))

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            self._caller.send(b"!")

    def bounded(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return _cut_off(self._socket, seconds)

    def close(self) -> None:
        self._selector.close()
        for one in (self._called, self._caller, self._socket):
            one.close()


class _AsyncpgEar:
    """On asyncpg, which hears while its event loop runs. Made inside of the lane's `run`."""

    def __init__(self, lane: Lane, connection: Connection, hear: Callable[[str], None]) -> None:
        self._lane = lane
        driver: Any = connection.connection.driver_connection
        self._driver = driver
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._called = asyncio.Event()
        driver.add_termination_listener(lambda _: self._called.set())
        self._socket = _watched(driver._transport.get_extra_info("socket").fileno())

    def listen(self, channel: str) -> None:
        await_only(self._driver.add_listener(channel, lambda _driver, _pid, _channel, text: self._hear(text)))

    def wait(self, seconds: float) -> None:
        self._lane.run(lambda: await_only(self._wait(seconds)))
        if self._driver.is_closed():
            raise ConnectionError("the server closed the connection")

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._called.wait(), seconds)

    def interrupt(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._called.set)

    def bounded(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return _cut_off(self._socket, seconds)

    def close(self) -> None:
        self._socket.close()


def _watched(descriptor: int) -> socket.socket:
    """The socket of a connection, which shall notice within half a minute that nobody is at its other end."""
    watched = socket.socket(fileno=os.dup(descriptor))
    if watched.family in (socket.AF_INET, socket.AF_INET6):
        watched.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wanted = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
        for name, value in wanted.items():
            if hasattr(socket, name):
                watched.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return watched


@contextmanager
def _cut_off(connected: socket.socket, seconds: float) -> Iterator[None]:
    """Unless the block ends before, shut the connection down, so that who waits for it is told."""

    def shut() -> None:
        with contextlib.suppress(OSError):
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
