"""Where the same worker runs besides PostgreSQL: MariaDB as the tests find it, and SQLite in the folder of the run."""

import contextlib
import os
import pathlib
import socket
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from benchmarks.system import Cannot

MYSQL_URL = "ASYNC_TASK_TEST_MYSQL_URL"
LOCAL_MYSQL = "mysql://root@127.0.0.1:3306/"
SHOWN = (
    "version", "innodb_buffer_pool_size", "innodb_flush_log_at_trx_commit", "innodb_flush_method", "log_bin",
    "sync_binlog",
)  # fmt: skip


class Place(Protocol):
    """What makes databases, and tells of itself."""

    @property
    def pids(self) -> Sequence[int]:
        """The processes that are the server; none where it has none, or does not tell."""
        ...

    def settings(self) -> dict[str, str]:
        """Its version, and what matters to speed."""
        ...

    def url(self, database: str) -> str: ...

    def create(self, database: str) -> None:
        """An empty one."""
        ...

    def drop(self, database: str) -> None: ...

    def settle(self, database: str) -> None:
        """Fresh statistics, where one keeps them, and nothing left to write: every measure begins alike."""
        ...

    def number(self, database: str, query: str) -> int:
        """The one number that a query answers."""
        ...

    def statements(self, database: str) -> int | None:
        """How many statements were sent so far; None where nobody counts them."""
        ...


class MariaDB:
    """One that answers, with the settings it has. Statements are those of the whole server. Raises Cannot."""

    def __init__(self, _folder: pathlib.Path) -> None:
        url = os.environ.get(MYSQL_URL)
        self._server = make_url(url or LOCAL_MYSQL).set(drivername="mysql+pymysql")
        # Connections that stay: what a new one says to the server would be counted.
        self._engine = create_engine(
            self._server.set(database=None), isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 5}
        )
        try:
            self.pids = self._told_pids()
        except DBAPIError as error:
            local = f"nothing answers root without a password on 127.0.0.1:3306, and {MYSQL_URL} is not set"
            raise Cannot(f"{MYSQL_URL} is set, but no server answers there" if url else local) from error

    def settings(self) -> dict[str, str]:
        return {name: str(self._row(f"SELECT @@{name}")[0]) for name in SHOWN}

    def url(self, database: str) -> str:
        return self._server.set(database=database).render_as_string(hide_password=False)

    def create(self, database: str) -> None:
        self._execute(f"CREATE DATABASE {database} CHARACTER SET utf8mb4")

    def drop(self, database: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {database}")

    def settle(self, database: str) -> None:
        self._execute(f"ANALYZE TABLE {database}.async_task_attempts")

    def number(self, database: str, query: str) -> int:
        return _number(self.url(database), query)

    def statements(self, _database: str) -> int:
        return int(self._row("SHOW GLOBAL STATUS LIKE 'Questions'")[1])

    def _told_pids(self) -> tuple[int, ...]:
        host, file = self._row("SELECT @@hostname, @@pid_file")
        with contextlib.suppress(OSError, ValueError):
            if host == socket.gethostname():
                return (int(pathlib.Path(file).read_text()),)
        return ()

    def _row(self, query: str) -> Any:
        with self._engine.connect() as connection:
            return connection.execute(text(query)).one()

    def _execute(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement))


class SQLite:
    """Files in a folder."""

    pids = ()

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def settings(self) -> dict[str, str]:
        """`synchronous` is the library's own default: 2 is FULL."""
        return {"version": sqlite3.sqlite_version, "synchronous": str(_number("sqlite://", "PRAGMA synchronous"))}

    def url(self, database: str) -> str:
        return f"sqlite:///{self._folder / database}.sqlite"

    def create(self, database: str) -> None:
        """The first to connect makes the file."""

    def drop(self, database: str) -> None:
        for path in self._folder.glob(f"{database}.sqlite*"):
            path.unlink()

    def settle(self, database: str) -> None:
        self.number(database, "PRAGMA wal_checkpoint(TRUNCATE)")

    def number(self, database: str, query: str) -> int:
        return _number(self.url(database), query)

    def statements(self, database: str) -> None:
        """There is no server to count them."""


HOME = "PostgreSQL"
"""The server of the run."""
ELSEWHERE: dict[str, Callable[[pathlib.Path], Place]] = {"MariaDB": MariaDB, "SQLite": SQLite}
PLACES = (HOME, *ELSEWHERE)


def _number(url: str, query: str) -> int:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return int(connection.scalar(text(query)) or 0)
