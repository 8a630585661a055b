"""The listener: a thread that receives PostgreSQL's notifications of new attempts, and calls the notifier.

1. It opens a connection of its own, executes LISTEN, checks that the server knows of it, and waits.
2. About every 30 s it probes the connection. A server that does not answer in time counts as gone.
3. A lost connection is replaced, with backoff; until then polling finds what is due.
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

from async_task.database.dialects import receives_notifications, uses_libpq
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.wakeup.in_process import Notifier
from async_task.wakeup.notify import channel_of, read_payload

logger = logging.getLogger("async_task")
PROBE_EVERY = 30.0
PATIENCE = 10.0
"""Seconds in which the server must answer a probe."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0


class ListenForgotten(Exception):
    """The server does not know of the LISTEN that was executed on this connection."""

    def __init__(self) -> None:
        super().__init__("LISTEN does not last on this connection: behind a pooler in transaction mode, switch it off")


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
        self._subscription: _Subscription | None = None
        self._num_failures = 0
        self._was_lost = False
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
            subscription = _subscription_on(lane, connection, self._receive)
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

    def _wait(self, lane: Lane, connection: Connection, subscription: "_Subscription") -> None:
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
        if not self._was_lost and not self._closing.is_set():
            self._was_lost = True
            logger.warning("not listening, new attempts are found by polling: %s", _first_line(error))

    def _log_back(self) -> None:
        self._num_failures = 0
        if self._was_lost:
            self._was_lost = False
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


# What the drivers do differently


class _Subscription(Protocol):
    """A connection that receives notifications. All but `interrupt` is for the listener's thread."""

    def listen(self, channel: str) -> None:
        """Execute LISTEN. Inside of the lane's `run`."""

    def wait(self, seconds: float) -> None:
        """Wait for a notification, `interrupt`, or the end of the time. Raises when the connection is lost."""

    def interrupt(self) -> None:
        """End a `wait`, from another thread."""

    def limited(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Inside of this, statements fail after this time."""
        ...

    def close(self) -> None: ...


def _subscription_on(lane: Lane, connection: Connection, receive: Callable[[str], None]) -> _Subscription:
    if uses_libpq(connection.dialect):
        return _PsycopgSubscription(connection, receive)
    return lane.run(lambda: _AsyncpgSubscription(lane, connection, receive))


class _PsycopgSubscription:
    """On psycopg, sync or async: the thread itself waits for libpq's socket, without an event loop."""

    def __init__(self, connection: Connection, receive: Callable[[str], None]) -> None:
        driver: Any = connection.connection.driver_connection
        self._connection = connection
        self._receive = receive
        self._libpq = driver.pgconn
        self._encoding = driver.info.encoding
        driver.add_notify_handler(lambda notify: receive(notify.payload))  # those that arrive with a statement's answer
        self._socket = _with_keepalive(self._libpq.socket)
        self._interrupted, self._interrupter = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._libpq.socket, selectors.EVENT_READ)
        self._selector.register(self._interrupted, selectors.EVENT_READ)

    def listen(self, channel: str) -> None:
        self._connection.exec_driver_sql(f"LISTEN {self._connection.dialect.identifier_preparer.quote(channel)}")

    def wait(self, seconds: float) -> None:
        self._selector.select(seconds)
        self._libpq.consume_input()
        while (notification := self._libpq.notifies()) is not None:
            self._receive(notification.extra.decode(self._encoding, "replace"))

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            self._interrupter.send(b"!")

    def limited(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return _shut_down_after(self._socket, seconds)

    def close(self) -> None:
        self._selector.close()
        for one in (self._interrupted, self._interrupter, self._socket):
            one.close()


class _AsyncpgSubscription:
    """On asyncpg, which receives while its event loop runs. Make it inside of the lane's `run`."""

    def __init__(self, lane: Lane, connection: Connection, receive: Callable[[str], None]) -> None:
        self._lane = lane
        driver: Any = connection.connection.driver_connection
        self._driver = driver
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._interrupted = asyncio.Event()
        driver.add_termination_listener(lambda _: self._interrupted.set())
        self._socket = _with_keepalive(driver._transport.get_extra_info("socket").fileno())

    def listen(self, channel: str) -> None:
        await_only(self._driver.add_listener(channel, lambda _driver, _pid, _channel, text: self._receive(text)))

    def wait(self, seconds: float) -> None:
        self._lane.run(lambda: await_only(self._wait(seconds)))
        if self._driver.is_closed():
            raise ConnectionError("the server closed the connection")

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._interrupted.wait(), seconds)

    def interrupt(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._interrupted.set)

    def limited(self, seconds: float) -> contextlib.AbstractContextManager[None]:
        return _shut_down_after(self._socket, seconds)

    def close(self) -> None:
        self._socket.close()


def _with_keepalive(descriptor: int) -> socket.socket:
    """The socket of a connection, with keepalives: it notices a dead peer within half a minute."""
    connected = socket.socket(fileno=os.dup(descriptor))
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wanted = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
        for name, value in wanted.items():
            if hasattr(socket, name):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connected


@contextmanager
def _shut_down_after(connected: socket.socket, seconds: float) -> Iterator[None]:
    """If the block lasts longer, shut the socket down, so that whatever waits for the connection fails."""

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
