"""Private connections: the server, the kernel and the driver end what would wait for ever."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from async_task.database import connections
from async_task.database.connections import SERVER_LIMITS, limit_waits
from async_task.database.disconnection import descriptor_of
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from databases import Database

SLEEP = {"postgresql": "SELECT pg_sleep(:seconds)", "mysql": "SELECT sleep(:seconds)"}


@pytest.fixture
def lane(database: Database) -> Iterator[Lane]:
    engine = create_engine(database.sync_url)
    with open_lane(Source(engine), private=True) as lane:
        yield lane
    engine.dispose()


def sleeping(connection: Connection, seconds: float) -> None:
    statement = SLEEP["postgresql" if connection.dialect.name == "postgresql" else "mysql"]
    connection.execute(text(statement), {"seconds": seconds})


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_wait_for_a_silent_server_ends_and_the_connection_is_replaced(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAITING", 0.3)
    monkeypatch.setattr(connections, "WAITING_FOR_MYSQL", 0.3)
    with lane.engine.connect() as connection:
        limit_waits(connection)
        with pytest.raises(DBAPIError) as raised:
            sleeping(connection, 5)
        assert raised.value.connection_invalidated
    with lane.engine.connect() as connection:
        sleeping(connection, 0)


@pytest.mark.only_on("postgresql")
def test_on_an_async_engine_a_wait_for_a_silent_server_ends_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAITING", 0.3)
    with open_lane(Source(create_async_engine(database.sync_url))) as lane:

        def fail() -> None:
            with lane.engine.connect() as connection, pytest.raises(DBAPIError) as raised:
                sleeping(connection, 5)
            assert raised.value.connection_invalidated

        lane.run(fail)


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_statement_of_a_call_may_keep_the_server_silent_for_longer(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAITING", 0.3)
    monkeypatch.setattr(connections, "WAITING_FOR_MYSQL", 0.3)
    with lane.engine.connect() as connection:
        limit_waits(connection, 5)
        sleeping(connection, 0.8)
        limit_waits(connection)
        with pytest.raises(DBAPIError):
            sleeping(connection, 5)


def opening(url: URL) -> None:
    with open_lane(Source(create_async_engine(url))):
        pass


@pytest.mark.only_on("postgresql")
def test_what_asyncpg_raises_while_it_connects_is_an_error_of_sqlalchemy(database: Database) -> None:
    """As with all other drivers; else nobody would wait until the database is back."""
    url = make_url(database.sync_url).set(drivername="postgresql+asyncpg")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(OperationalError, match="Connect call failed"):
            opening(URL.create("postgresql+asyncpg", "postgres", host="127.0.0.1", port=bound.getsockname()[1]))
    with pytest.raises(DBAPIError, match="does not exist") as raised:
        opening(url.set(database="async_task_nowhere"))
    assert getattr(raised.value.orig, "sqlstate", None) == "3D000"


def limits_of(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {name: connection.scalar(text(f"SHOW {name}")) or "" for name in (*SERVER_LIMITS, "application_name")}


def in_seconds(limit: str) -> float:
    return float(limit.removesuffix("ms")) / 1000 if limit.endswith("ms") else _SECONDS[limit]


_SECONDS = {"15s": 15.0, "1min": 60.0, "60s": 60.0, "7s": 7.0}


@pytest.mark.only_on("postgresql")
def test_the_server_limits_private_connections_and_leaves_those_of_the_user_alone(
    lane: Lane, database: Database
) -> None:
    found = limits_of(lane.engine)
    assert found.pop("application_name") == "async-task"
    assert {name: in_seconds(one) for name, one in found.items()} == {
        name: in_seconds(one) for name, one in SERVER_LIMITS.items()
    }
    engine = create_engine(database.sync_url)
    Source(engine)
    assert set(limits_of(engine).values()) == {"0", ""}
    engine.dispose()


@pytest.mark.only_on("postgresql")
def test_a_limit_that_the_user_has_set_stays(database: Database) -> None:
    options: dict[str, Any] = {"options": "-c statement_timeout=7s", "application_name": "shop"}
    engine = create_engine(database.sync_url, connect_args=options)
    with open_lane(Source(engine), private=True) as lane:
        found = limits_of(lane.engine)
    engine.dispose()
    assert (found["statement_timeout"], found["application_name"]) == ("7s", "shop")


@pytest.mark.only_on("mysql")
def test_the_kernel_ends_a_connection_whose_peer_is_gone(lane: Lane) -> None:
    with lane.engine.connect() as connection:
        end = socket.socket(fileno=descriptor_of(connection.connection.driver_connection))
        try:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == connections.UNACKNOWLEDGED
        finally:
            end.detach()
