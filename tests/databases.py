"""The real databases that the tests run on. They are found or started, never imitated."""

import contextlib
import dataclasses
import functools
import gc
import importlib
import itertools
import os
import pathlib
import secrets
import shutil
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    MetaData,
    NullPool,
    Select,
    Table,
    create_engine,
    exists,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError

from async_task.worker.processes.forking import has_open
from elsewhere import await_
from launch_postgres import NoServer, guarded_server

POSTGRESQL_URL = "ASYNC_TASK_TEST_DATABASE_URL"
MYSQL_URL = "ASYNC_TASK_TEST_MYSQL_URL"
LOCAL_MYSQL = "mysql://root@127.0.0.1:3306/"
POSTGRESQL_IMAGE = "postgres:17"

Name = Literal["postgresql", "mysql", "sqlite"]
NAMES: tuple[Name, ...] = ("postgresql", "mysql", "sqlite")
ALL_STATEMENTS = 5_000
"""The `query_cache_size` of an engine for thousands of tests. With a smaller one the statements of one test drive out
those of the next, which are then compiled again."""


class NoDatabase(Exception):
    """A database that the tests need, or that a variable names, does not answer; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Database:
    """A server (as found) or a database on it (as `own` makes them). The URLs hold the password."""

    name: Name
    description: str
    sync_url: str
    async_url: str


@dataclasses.dataclass(frozen=True)
class Available:
    databases: tuple[Database, ...]
    absent: dict[Name, str]

    def named(self, name: Name) -> Database:
        return next(database for database in self.databases if database.name == name)

    def lines(self) -> list[str]:
        ran = [f"database: {database.description}" for database in self.databases]
        return ran + [f"database: {name} DID NOT RUN: {why}" for name, why in self.absent.items()]

    def to_plain(self) -> dict[str, Any]:
        """As plain values, which pytest-xdist can send to a worker."""
        return {"databases": [dataclasses.asdict(database) for database in self.databases], "absent": dict(self.absent)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        return cls(tuple(Database(**database) for database in plain["databases"]), plain["absent"])


def available(until: contextlib.ExitStack) -> Available:
    """Every database that answers; a started one ends with `until`. Raises NoDatabase without a PostgreSQL."""
    found, absent = [_postgresql(until)], dict[Name, str]()
    if url := os.environ.get(MYSQL_URL):
        found.append(_asked_for(MYSQL_URL, _mysql, url))
    else:
        try:
            found.append(_mysql(LOCAL_MYSQL))
        except DBAPIError:
            absent["mysql"] = f"nothing answers root without a password on 127.0.0.1:3306, and {MYSQL_URL} is not set"
    return Available((*found, _sqlite()), absent)


@contextlib.contextmanager
def own(server: Database) -> Iterator[Database]:
    """A database of this process alone. It is dropped at the end, also with open connections to it."""
    name = f"async_task_test_{os.getpid()}_{secrets.token_hex(4)}"
    if server.name == "sqlite":
        with tempfile.TemporaryDirectory(prefix="async-task-sqlite-", dir=_where_files_are_quick()) as folder:
            yield _inside(server, str(pathlib.Path(folder, f"{name}.sqlite")))
        return
    _execute(server, f"CREATE DATABASE {name}" + (" CHARACTER SET utf8mb4" if server.name == "mysql" else ""))
    try:
        yield _inside(server, name)
    finally:
        _drop(server, name)


def _where_files_are_quick() -> str | None:
    """A folder in memory if there is enough: no test cuts the power, and waiting for the disk at each commit is most of
    what SQLite costs."""
    memory = pathlib.Path("/dev/shm")  # noqa: S108 (the folder in it belongs to this user alone)
    is_plenty = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    return str(memory) if is_plenty else None


def delete_rows(connection: Connection, *several: MetaData) -> None:
    """Empty every table but that of the version."""
    for table in filled(connection, *several):
        connection.execute(table.delete())


def filled(connection: Connection, *several: MetaData) -> list[Table]:
    """The tables that hold rows, children first, without the version of the tables. Most hold none, and one statement
    finds those that do."""
    tables = _children_first(several)
    return list(itertools.compress(tables, connection.execute(_are_filled(tables)).one()))


@functools.cache
def _children_first(several: tuple[MetaData, ...]) -> tuple[Table, ...]:
    tables = (table for metadata in several for table in reversed(metadata.sorted_tables))
    return tuple(table for table in tables if table.name != "async_task_schema")


@functools.cache
def _are_filled(tables: tuple[Table, ...]) -> Select[Any]:
    return select(*(exists(table.select()).label(table.name) for table in tables))


def somebody_waits(engine: Engine) -> bool:
    """Whether a session of this server waits for a row lock of another session."""
    asked = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()",
        "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
    }
    time.sleep(0.15)  # if asked more often, MariaDB repeats its last answer
    with engine.connect() as connection:
        return bool(connection.scalar(text(asked[engine.dialect.name])))


def close_file(engine: Engine) -> None:
    """Close what this process has open of an SQLite file, so that it may fork. A cycle of objects that an earlier test
    left may have it open still."""
    engine.dispose()
    if engine.dialect.name == "sqlite" and has_open(str(engine.url.database)):
        gc.collect()


def drop_own(engine: Engine, metadata: MetaData) -> None:
    """Drop its tables without those that async-task has in every metadata, because other tests use them."""
    from async_task import metadata as shared

    metadata.drop_all(engine, tables=[table for name, table in metadata.tables.items() if name not in shared.tables])


def impatient_engine(database: Database, *, seconds: int = 5) -> Engine:
    """An engine that does not wait for ever behind a transaction that a test left open."""
    patience: dict[Name, dict[str, Any]] = {
        "postgresql": {"options": f"-c lock_timeout={seconds}s"},
        "mysql": {"init_command": f"SET innodb_lock_wait_timeout = {seconds}"},
        "sqlite": {"timeout": seconds},
    }
    # A test may kill every connection.
    return create_engine(database.sync_url, pool_size=1, pool_pre_ping=True, connect_args=patience[database.name])


def warm_engine(url: URL, **options: Any) -> Engine:
    """As `create_engine`, with a pool of its own, and with what earlier engines at this URL learned about the server
    and compiled."""
    first = _first_engine(url, tuple(options.items()), pathlib.Path.cwd())
    engine: Any = Engine(first.pool.recreate(), first.dialect, first.url, hide_parameters=first.hide_parameters)
    engine._compiled_cache = first._compiled_cache
    return engine


@functools.cache
def _first_engine(url: URL, options: tuple[tuple[str, Any], ...], folder: pathlib.Path) -> Any:
    # The folder is part of the key, because a relative path to an SQLite file is resolved once for each engine.
    return create_engine(url, query_cache_size=ALL_STATEMENTS, **dict(options))


def _postgresql(until: contextlib.ExitStack) -> Database:
    # Never without one: a suite that is green because PostgreSQL was missing proves the wrong thing. A container comes
    # before the machine's own binaries, because it has the version that we say we support.
    if url := os.environ.get(POSTGRESQL_URL):
        return _asked_for(POSTGRESQL_URL, _postgresql_at, url)
    reasons = []
    for start in (_postgresql_in_docker, _postgresql_from_binaries):
        try:
            return until.enter_context(start())
        except NoServer as error:
            reasons.append(str(error))
    raise NoDatabase(f"The tests need a PostgreSQL: set {POSTGRESQL_URL}, or start Docker ({'; '.join(reasons)}).")


@contextlib.contextmanager
def _postgresql_in_docker() -> Iterator[Database]:
    if not _docker_answers():
        raise NoServer("no Docker daemon answers")
    with contextlib.ExitStack() as until:
        try:
            container = _postgres_container()(POSTGRESQL_IMAGE, driver="psycopg")
            until.callback(container.stop)
            container.with_command("-c fsync=off -c max_connections=200").start()
        except Exception as error:  # any answer of a daemon or a registry: try the next way
            raise NoServer(f"Docker answers, but {POSTGRESQL_IMAGE} did not start: {error}") from error
        yield _postgresql_at(container.get_connection_url(), f"{POSTGRESQL_IMAGE} in Docker")


def _docker_answers() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a client that finds no daemon leaves its socket open
        answers = _docker_client_connects()
        gc.collect()
    return answers


def _docker_client_connects() -> bool:
    try:
        importlib.import_module("testcontainers.core.docker_client").DockerClient(timeout=1).client.close()
    except Exception:  # no daemon, no answer within a second, or no testcontainers
        return False
    return True


def _postgres_container() -> Any:
    try:
        return importlib.import_module("testcontainers.community.postgres").PostgresContainer
    except ImportError:  # its name in older releases
        return importlib.import_module("testcontainers.postgres").PostgresContainer


@contextlib.contextmanager
def _postgresql_from_binaries() -> Iterator[Database]:
    with guarded_server() as running:
        yield _postgresql_at(running.url, running.how)


def _postgresql_at(url: str, how: str = "") -> Database:
    server = _database("postgresql", url, sync_driver="psycopg", async_driver="psycopg")
    version = _scalar(server, "SHOW server_version").split()[0]
    return dataclasses.replace(server, description=f"postgresql {version} ({how or _address(url)})")


def _mysql(url: str) -> Database:
    server = _in_the_clear(_database("mysql", url, sync_driver="pymysql", async_driver="aiomysql"))
    version = _scalar(server, "SELECT version()")
    kind = "mariadb" if "mariadb" in version.lower() else "mysql"
    return dataclasses.replace(server, description=f"{kind} {version.split('-')[0]} ({_address(url)})")


def _in_the_clear(server: Database) -> Database:
    """Without TLS, as aiomysql connects. For each connection PyMySQL reads all certificates of the machine, which takes
    23 ms of CPU if they are in one file. An empty SSL_CERT_FILE would reach every program that a test starts."""
    url = make_url(server.sync_url).update_query_dict({"ssl_disabled": "true"})
    return dataclasses.replace(server, sync_url=url.render_as_string(hide_password=False))


def _sqlite() -> Database:
    server = _database("sqlite", "sqlite://", sync_driver="pysqlite", async_driver="aiosqlite")
    return dataclasses.replace(server, description=f"sqlite {sqlite3.sqlite_version} (file)")


def _asked_for(variable: str, find: Callable[[str], Database], url: str) -> Database:
    try:
        return find(url)
    except DBAPIError as error:
        raise NoDatabase(f"{variable} is set, but no server answers there: {error.orig}") from error


def _database(name: Name, url: str, *, sync_driver: str, async_driver: str) -> Database:
    def with_driver(driver: str) -> str:
        return make_url(url).set(drivername=f"{name}+{driver}").render_as_string(hide_password=False)

    return Database(name, name, with_driver(sync_driver), with_driver(async_driver))


def _inside(server: Database, name: str) -> Database:
    sync_url, async_url = (
        make_url(url).set(database=name).render_as_string(hide_password=False)
        for url in (server.sync_url, server.async_url)
    )
    return dataclasses.replace(server, sync_url=sync_url, async_url=async_url)


def _address(url: str) -> str:
    parsed = make_url(url)
    return f"{parsed.host or 'local'}:{parsed.port}" if parsed.port else parsed.host or "local"


def _drop(server: Database, name: str) -> None:
    if server.name == "postgresql":
        _execute(server, f"DROP DATABASE {name} WITH (FORCE)")
        return
    # MySQL has no FORCE, and would wait for ever for a transaction that a test left open.
    busy = f"SELECT group_concat(id) FROM information_schema.processlist WHERE db = '{name}'"
    for connection in (_scalar(server, busy) or "").split(","):
        if connection:
            with contextlib.suppress(DBAPIError):  # it may have ended by itself
                _execute(server, f"KILL {connection}")
    _execute(server, f"DROP DATABASE {name}")


def _execute(server: Database, statement: str) -> None:
    with _admin(server).connect() as connection:
        connection.execute(text(statement))


def _scalar(server: Database, statement: str) -> Any:
    with _admin(server).connect() as connection:
        return connection.scalar(text(statement))


def _admin(server: Database) -> Engine:
    connect_args = {} if server.name == "sqlite" else {"connect_timeout": 5}
    return create_engine(server.sync_url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=connect_args)


def _kill_all(engine: Engine) -> None:
    """Kill every connection to this database. Those of `engine`, which the test uses, are closed before."""
    listed = {
        "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'",
        "mysql": "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
    }
    engine.dispose()
    with engine.connect() as connection:
        ids = [int(one) for one in connection.scalars(text(listed[engine.dialect.name]))]
    engine.dispose()
    _kill(engine, ids)
    with engine.connect() as connection:  # MariaDB answers before they have ended
        await_(
            lambda: not set(ids) & set(connection.scalars(text(listed[engine.dialect.name]))),
            "the connections have ended",
        )


def _kill(engine: Engine, ids: list[int]) -> None:
    admin = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    kill = {"postgresql": "SELECT pg_terminate_backend({}, 5000)", "mysql": "KILL {}"}[engine.dialect.name]
    with admin.connect() as connection:
        for one in ids:
            with contextlib.suppress(DBAPIError):  # it may have ended by itself
                connection.execute(text(kill.format(one)))
    admin.dispose()


def rows_read(connection: Connection) -> int:
    """How many entries of tables and indexes this session has read (MySQL and MariaDB)."""
    rows = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'").all()
    return sum(int(number) for _, number in rows)


def explained(connection: Connection, statement: Any) -> str:
    """How the database executes it."""
    sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True, "render_postcompile": True}))
    word = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    return "\n".join(str(row) for row in connection.exec_driver_sql(f"{word} {sql.replace('%', '%%')}"))
