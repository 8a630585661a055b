"""The other databases of the same worker: MariaDB as the tests find it, and SQLite in the folder of the run."""

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
    """A server, or a folder, in which databases are made."""

    @property
    def pids(self) -> Sequence[int]:
        """The processes of the server; none if it has none or they cannot be found."""
        ...

    def settings(self) -> dict[str, str]:
        """Its version, and the settings that matter for speed."""
        ...

    def url(self, database: str) -> str: ...

    def create(self, database: str) -> None:
        """Make an empty database."""
        ...

    def drop(self, database: str) -> None: ...

    def settle(self, database: str) -> None:
        """Update the statistics and write everything out, so that every measure begins alike."""
        ...

    def number(self, database: str, query: str) -> int:
        """The one number that a query returns."""
        ...

    def statements(self, database: str) -> int | None:
        """How many statements were sent so far; None if the database does not count them."""
        ...


class MariaDB:
    """A running server with its own settings. Statements are those of the whole server. Raises Cannot."""

    def __init__(self, _folder: pathlib.Path) -> None:
        url = os.environ.get(MYSQL_URL)
        self._server = make_url(url or LOCAL_MYSQL).set(drivername="mysql+pymysql")
        # Keep the connections: the statements of a new one would be counted.
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
    """SQLite files in a folder."""

    pids = ()

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def settings(self) -> dict[str, str]:
        """`synchronous` is the default of the SQLite library: 2 is FULL."""
        return {"version": sqlite3.sqlite_version, "synchronous": str(_number("sqlite://", "PRAGMA synchronous"))}

    def url(self, database: str) -> str:
        return f"sqlite:///{self._folder / database}.sqlite"

    def create(self, database: str) -> None:
        """Nothing to do: the first connection makes the file."""

    def drop(self, database: str) -> None:
        for path in self._folder.glob(f"{database}.sqlite*"):
            path.unlink()

    def settle(self, database: str) -> None:
        self.number(database, "PRAGMA wal_checkpoint(TRUNCATE)")

    def number(self, database: str, query: str) -> int:
        return _number(self.url(database), query)

    def statements(self, database: str) -> None:
        """None: there is no server that counts them."""


HOME = "PostgreSQL"
"""The PostgreSQL server of the run."""
ELSEWHERE: dict[str, Callable[[pathlib.Path], Place]] = {"MariaDB": MariaDB, "SQLite": SQLite}
PLACES = (HOME, *ELSEWHERE)


def _number(url: str, query: str) -> int:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return int(connection.scalar(text(query)) or 0)
