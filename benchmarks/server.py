"""The PostgreSQL on which everything is measured: a private server that starts and ends with the run."""

import contextlib
import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier

SETTINGS = ("shared_buffers=512MB", "fsync=on", "max_connections=300")
STATEMENTS = "shared_preload_libraries=pg_stat_statements"
SHOWN = (
    "server_version", "shared_buffers", "fsync", "synchronous_commit", "full_page_writes", "max_wal_size",
    "max_connections", "autovacuum", "wal_level", "shared_preload_libraries",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server. `pids`: its postmaster, whose children are the backends. `folder`: that of its socket."""

    folder: str
    pids: tuple[int]
    tells_statements: bool

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(database), autocommit=True, prepare_threshold=None)

    def settings(self) -> dict[str, str]:
        """The settings that matter for speed, read from the server."""
        with self.connect() as connection:
            rows = connection.execute("SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", [
                [*SHOWN]
            ]).fetchall()  # fmt: skip
        told = dict(rows)
        return {name: told[name] for name in SHOWN if name in told}

    def create(self, database: str, template: str = "template0") -> None:
        with self.connect() as connection:
            connection.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(database), Identifier(template)))

    def drop(self, database: str) -> None:
        with self.connect() as connection:
            connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(database)))

    def settle(self, database: str) -> None:
        """Update the statistics and write everything out, so that every measure begins alike."""
        with self.connect(database) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

    def number(self, database: str, query: str) -> int:
        with self.connect(database) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row
        return int(row[0])

    def statements(self, database: str) -> int:
        """How many statements were sent to this database so far, or transactions if only those are counted."""
        with self.connect() as connection:
            if self.tells_statements:
                query = (
                    "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements(false) s "
                    "JOIN pg_database d ON d.oid = s.dbid WHERE datname = %s"
                )
            else:
                query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
            row = connection.execute(query, [database]).fetchone()
        assert row
        return int(row[0])


@contextlib.contextmanager
def private_server() -> Iterator[Server]:
    """Start it from the binaries of this machine. Raises RuntimeError if there are none."""
    launcher = _launcher()
    with contextlib.ExitStack() as until:
        try:
            running, told = until.enter_context(launcher.guarded_server((*SETTINGS, STATEMENTS))), True
        except launcher.NoServer as error:
            if not re.search("pg_stat_statements", str(error)):
                raise RuntimeError(str(error)) from error
            running, told = until.enter_context(launcher.guarded_server(SETTINGS)), False
        server = Server(running.home, (running.pid,), told)
        if told:
            with server.connect() as connection:
                connection.execute("CREATE EXTENSION pg_stat_statements")
        yield server


def _launcher() -> Any:
    """The launcher of the tests: it needs no rights and leaves nothing behind."""
    path = pathlib.Path(__file__).parent.parent / "tests" / "launch_postgres.py"
    spec = importlib.util.spec_from_file_location("launch_postgres", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
