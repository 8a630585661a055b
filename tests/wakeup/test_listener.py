"""The listener: commits of other processes reach the notifier, and a lost connection is replaced, even a silent one."""

import contextlib
import logging
import pathlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import URL, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.orm import Session

from async_task import Attempt, target
from async_task.database.engines import Source
from async_task.queue import workers
from async_task.wakeup import notify
from async_task.wakeup.in_process import Notifier
from async_task.wakeup.listener import NOT_LISTENING, Listener, Losses
from databases import Database
from elsewhere import await_

TABLE: Table = Attempt.__table__  # type: ignore[assignment]
DRIVERS = ("psycopg", "psycopg_async", "asyncpg")
on_postgresql = pytest.mark.only_on("postgresql")


@target("listening.note")
def note() -> None: ...


@pytest.fixture(autouse=True)
def _fresh_notify_state() -> Iterator[None]:
    notify._known.clear()
    yield
    notify._known.clear()


def with_driver(url: str, driver: str) -> URL:
    return make_url(url).set(drivername=f"postgresql+{driver}")


@contextlib.contextmanager
def listening(source: Source, notifier: Notifier, **options: Any) -> Iterator[Listener]:
    listener = Listener(source, TABLE, notifier, **options)
    listener.start()
    try:
        await_(lambda: listener.is_listening, "it listens")
        yield listener
    finally:
        listener.close()
        assert not listener._thread.is_alive()


def commit_one(engine: Engine, queue: str = "default") -> None:
    with Session(engine) as session, session.begin():
        Attempt.create(target=note, session=session, queue=queue)


def backends(engine: Engine, function: str = "pid") -> list[Any]:
    """The process ids of the listeners' backends, or the results of another function of the server for them."""
    of_listeners = "query LIKE '%pg_listening_channels%' AND datname = current_database() AND pid <> pg_backend_pid()"
    with engine.begin() as connection:
        return list(connection.scalars(text(f"SELECT {function} FROM pg_stat_activity WHERE {of_listeners}")))


@on_postgresql
@pytest.mark.parametrize("driver", DRIVERS)
def test_commits_of_others_reach_the_notifier_and_a_terminated_listener_is_replaced(
    driver: str, database: Database, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "async_task")
    notifier = Notifier()  # only the listener knows it: what it gets came through the database
    workers.mark_asleep(engine, TABLE, "sleeper")
    with listening(Source(with_driver(database.sync_url, driver)), notifier) as listener:
        commit_one(engine, "mail")
        assert notifier.wait(30) == {"mail"}
        (pid,) = backends(engine)
        backends(engine, "pg_terminate_backend(pid)")
        await_(lambda: listener.is_listening and backends(engine) not in ([], [pid]), "another one listens")
        commit_one(engine, "ü print")
        assert notifier.wait(30) == {"ü print"}
    logged = [record.message for record in caplog.records if "listening" in record.message]
    assert ["again" in line for line in logged] == [False, True]
    await_(lambda: not backends(engine), "its connection is closed")


@on_postgresql
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_connection_that_died_silently_is_replaced(
    driver: str, database: Database, engine: Engine, proxy: "Proxy"
) -> None:
    notifier = Notifier()
    workers.mark_asleep(engine, TABLE, "sleeper")
    source = Source(proxy.forward_to(with_driver(database.sync_url, driver)))
    with listening(source, notifier, probe_every=0.1, patience=0.3) as listener:
        first = proxy.num_accepted
        proxy.freeze()
        await_(lambda: proxy.num_accepted > first and listener.is_listening, "another one listens")
        commit_one(engine, "mail")
        assert notifier.wait(30) == {"mail"}


@pytest.mark.long
@on_postgresql
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_listener_closes_although_the_server_does_not_answer(
    driver: str, database: Database, engine: Engine, proxy: "Proxy"
) -> None:
    source = Source(proxy.forward_to(with_driver(database.sync_url, driver)))
    with listening(source, Notifier()) as listener:
        proxy.freeze()
    assert not listener.is_listening


@on_postgresql
def test_a_listener_reaches_a_server_that_starts_later(
    database: Database, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = with_driver(database.sync_url, "psycopg")
    password = server.password or "secret"
    source, notifier = Source(server.set(host="127.0.0.1", port=port, query={}, password=password)), Notifier()
    listener = Listener(source, TABLE, notifier)
    listener.start()
    try:
        await_(lambda: listener._num_failures > 1, "it tries")
        assert not listener.is_listening
        assert len(caplog.records) == 1
        assert password not in caplog.text
        with Proxy(port) as proxy:
            proxy.forward_to(server)
            await_(lambda: listener.is_listening, "it listens")
    finally:
        listener.close()


@on_postgresql
def test_a_pooler_that_forgets_listen_is_noticed_and_named(
    database: Database, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    forgetful = create_engine(database.sync_url)

    @event.listens_for(forgetful, "before_cursor_execute", retval=True)
    def _(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> Any:
        return "SELECT 1" if statement.startswith("LISTEN") else statement, parameters

    listener = Listener(Source(forgetful), TABLE, Notifier())
    listener.start()
    await_(lambda: listener._num_failures > 1, "it tries again")
    listener.close()
    assert not listener.is_listening
    assert [("pooler" in record.message) for record in caplog.records] == [True]
    forgetful.dispose()


@on_postgresql
def test_a_listener_takes_no_connection_from_the_users_pool(database: Database, engine: Engine) -> None:
    small = create_engine(database.sync_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with small.connect(), listening(Source(small), Notifier()):
        assert small.pool.checkedout() == 1  # type: ignore[attr-defined]
    small.dispose()


@on_postgresql
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_listeners_connection_has_keepalives(driver: str, database: Database, engine: Engine, proxy: "Proxy") -> None:
    source = Source(proxy.forward_to(with_driver(database.sync_url, driver)))
    with listening(source, Notifier()) as listener:
        subscription: Any = listener._subscription
        assert subscription._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert subscription._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
        assert subscription._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


def test_listening_is_possible_on_postgresql_only(database: Database, async_engine_url: str) -> None:
    is_postgresql = database.name == "postgresql"
    for url in (database.sync_url, async_engine_url):
        assert Listener.is_possible(Source(url)) is is_postgresql
    if is_postgresql:
        assert Listener.is_possible(Source(with_driver(database.sync_url, "asyncpg")))


class Proxy:
    """A TCP proxy on loopback. Frozen, it keeps its connections open, and forwards nothing more."""

    def __init__(self, port: int = 0) -> None:
        self.num_accepted = 0
        self._server = socket.create_server(("127.0.0.1", port))
        self._stop, self._stopper = socket.socketpair()
        self._ends: dict[socket.socket, socket.socket] = {}
        self._frozen: list[socket.socket] = []
        self._lock = threading.Lock()
        self._open: Callable[[], socket.socket] | None = None
        self._thread = threading.Thread(target=self._forward)
        self._thread.start()

    def forward_to(self, url: URL) -> URL:
        """Forward to the server of this URL; returns the URL by which that is reached through the proxy."""
        folder = url.query.get("host")
        host, port = url.host or "127.0.0.1", url.port or 5432
        if url.host is None and (isinstance(folder, str) or pathlib.Path("/var/run/postgresql").is_dir()):
            self._open = lambda: _unix(f"{folder or '/var/run/postgresql'}/.s.PGSQL.{port}")
        else:
            self._open = lambda: socket.create_connection((host, port))
        rest = {name: value for name, value in url.query.items() if name != "host"}
        return url.set(host="127.0.0.1", port=self._server.getsockname()[1], query=rest)

    def freeze(self) -> None:
        """Forward nothing more on the connections that are open now; new ones still work."""
        with self._lock:
            self._frozen += self._ends
            self._ends.clear()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopper.send(b"!")
        self._thread.join()
        for one in (*self._ends, *self._frozen, self._server, self._stop, self._stopper):
            one.close()

    def _forward(self) -> None:
        while True:
            with self._lock:
                ends = dict(self._ends)
            ready, _, _ = select.select([self._stop, self._server, *ends], [], [], 0.05)
            if self._stop in ready:
                return
            for one in ready:
                if one is self._server:
                    self._accept()
                else:
                    self._forward_data(one)

    def _accept(self) -> None:
        caller, _ = self._server.accept()
        if self._open is None:
            caller.close()
            return
        server = self._open()
        with self._lock:
            self._ends |= {caller: server, server: caller}
        self.num_accepted += 1

    def _forward_data(self, one: socket.socket) -> None:
        with self._lock:
            other = self._ends.get(one)
            if other is None:
                return
            data = b""
            with contextlib.suppress(OSError):
                data = one.recv(65536)
            if data:
                other.sendall(data)
                return
            del self._ends[one], self._ends[other]
        one.close()
        other.close()


def _unix(path: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(path)
    return connected


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


def test_a_connection_that_is_cut_again_and_again_is_logged_once_in_ten_minutes() -> None:
    losses, said = Losses(), []
    for now in range(0, 630, 30):
        said.append((losses.lost(float(now)), losses.back()))
    first, second = NOT_LISTENING, f"{NOT_LISTENING} (again; not logged for 10 min if it passes at once)"
    assert said[:2] == [(first, True), (second, False)]
    assert said[2:20] == [(None, False)] * 18
    assert said[20] == (first, True)


def test_an_outage_that_lasts_is_logged_whatever_was_before() -> None:
    losses = Losses()
    assert (losses.lost(0), losses.back(), losses.lost(30), losses.back()) == (NOT_LISTENING, True, mock.ANY, False)
    assert [losses.lost(60 + 5 * number) for number in range(5)] == [None, None, NOT_LISTENING, None, None]
    assert losses.back()
