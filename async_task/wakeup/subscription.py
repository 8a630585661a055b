"""A connection that receives notifications: what the drivers do differently."""

import asyncio
import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sqlalchemy import Connection
from sqlalchemy.util import await_only

from async_task.database.dialects import uses_libpq
from async_task.database.lanes import Lane


class Subscription(Protocol):
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


def subscription_on(lane: Lane, connection: Connection, receive: Callable[[str], None]) -> Subscription:
    """That of this connection, which calls `receive` with the text of each notification."""
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
