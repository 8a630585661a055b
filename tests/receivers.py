"""Who is notified on PostgreSQL: what a sleeping worker would receive."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, Table, make_url

from async_task import Attempt
from async_task.queue import workers
from async_task.wakeup import notify
from async_task.wakeup.notify import channel_of
from databases import Database

TABLE: Table = Attempt.__table__  # type: ignore[assignment]


class Receiver:
    """A connection that listens on the channel."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(f'LISTEN "{channel_of(TABLE)}"')

    def received(self) -> list[str]:
        """The payloads since the last time; a mark of our own shows that none is still on its way."""
        with psycopg.connect(self._url, autocommit=True) as other:
            other.execute("SELECT pg_notify(%s, 'mark')", [channel_of(TABLE)])
        received: list[str] = []
        for notification in self._connection.notifies(timeout=30):
            if notification.payload == "mark":
                return received
            received.append(notification.payload.replace("\n", ", "))
        raise AssertionError("not even our own mark was received")

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def receiver(database: Database, engine: Engine) -> Iterator[Receiver]:
    receiver = Receiver(make_url(database.sync_url).set(drivername="postgresql").render_as_string(hide_password=False))
    yield receiver
    receiver.close()


@pytest.fixture
def sleeper(engine: Engine) -> Iterator[None]:
    """A worker sleeps, and this process has not just found that none does."""
    notify._known.clear()
    workers.mark_asleep(engine, TABLE, "sleeper")
    yield
    notify._known.clear()
