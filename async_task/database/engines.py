"""The engines the library works with: made from a URL, or beside the user's own without changing it."""

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, Pool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session, sessionmaker

from async_task.database.clock import MYSQL
from async_task.database.dialects import locks_rows
from async_task.database.driver_errors import note_faults
from async_task.database.sessions import asyncio_kinds
from async_task.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    Database = str | URL | Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any]
else:
    Database = object  # as in `sessions`: a synchronous program need not have greenlet

EXTRAS = {"psycopg": "postgres", "pymysql": "mysql", "aiosqlite": "sqlite-async", "greenlet": "asyncio"}
LOCK_WAIT_MS = 10_000


class Source:
    """Where the attempts lie: an engine, and how the user makes sessions. Raises ConfigurationError, in a sentence, for
    a URL that cannot be read, a driver that is not installed, or a database that cannot be shared."""

    def __init__(self, given: Database) -> None:
        self.session_class: type[Any] = Session
        self.session_options: dict[str, Any] = {}
        engine: Any = given
        if issubclass(type(engine), (sessionmaker, *asyncio_kinds("async_sessionmaker"))):
            self.session_class = engine.class_
            self.session_options = {name: value for name, value in engine.kw.items() if name not in _OURS}
            engine = _bind_of(engine)
        self._is_ours = isinstance(engine, (str, URL))
        if isinstance(engine, (str, URL)):
            engine = _engine_from(engine)
        if not issubclass(type(engine), (Engine, *asyncio_kinds("AsyncEngine"))):
            raise ConfigurationError(f"AsyncTask takes a URL, an engine or a sessionmaker, not {type(given).__name__}")
        self.is_async = not isinstance(engine, Engine)
        plain: Engine = engine.sync_engine if self.is_async else engine
        _refuse_memory(plain.url)
        self._plain = plain
        self._introducing = threading.Lock()
        self._is_introduced = False
        note_faults(plain.dialect)

    @property
    def dialect(self) -> Any:
        return self._plain.dialect

    @property
    def pool(self) -> Pool:
        """The user's; another one after each time that they dispose of their engine."""
        return self._plain.pool

    @property
    def url(self) -> URL:
        return self._plain.url

    @property
    def address(self) -> str:
        """The URL without its query, in which anything may stand, and with three asterisks for the password."""
        return self._plain.url.set(query={}).render_as_string(hide_password=True)

    def close(self) -> None:
        """Close the waiting connections of an engine made here. An AsyncEngine's never wait: each lane has its own."""
        if self._is_ours and not self.is_async:
            self._plain.dispose()

    @property
    def database_file(self) -> str:
        """Of an SQLite database: its file."""
        return str(self._plain.url.database).removeprefix("file:").partition("?")[0]

    def introduce(self, connect: Callable[[], object]) -> None:
        """`connect` once, before anybody else does: all engines made here share one dialect, which learns from its
        first connection what the server is, and meanwhile answers others wrongly."""
        if not self._is_introduced:
            with self._introducing:
                if not self._is_introduced:
                    connect()
                    self._is_introduced = True

    def session(self, engine: Engine) -> Session:
        """A session over `engine` of the user's own kind, for what their overrides run in; over an AsyncEngine a plain
        one."""
        if issubclass(self.session_class, Session):
            return self.session_class(engine, **self.session_options)
        return Session(engine)

    def shared(self) -> Engine:
        """An engine on the user's own pool, for a synchronous database that locks rows; else one with its own pool."""
        if self.is_async or not locks_rows(self._plain.dialect):
            return self.private()
        plain = self._plain
        given: dict[str, Any] = {
            "logging_name": plain.logging_name,
            "echo": plain.echo,
            "hide_parameters": plain.hide_parameters,
        }
        return _made_alike(Engine(plain.pool, plain.dialect, plain.url, **given), plain)

    def private(self) -> Engine:
        """An engine with a pool of its own, made like the user's: for another event loop, or another process."""
        pool = self._plain.pool.recreate()
        engine = Engine(pool, self._plain.dialect, self._plain.url, hide_parameters=True)
        return _made_alike(engine, self._plain)


_OURS = ("bind", "binds", "class_", "close_resets_only", "join_transaction_mode", "twophase", "sync_session_class")


def _behave_alike(engine: Engine, model: Engine) -> None:
    """With the options and the listeners of `model`, which may set a tenant at each begin, or translate schemas; and
    with its compiled statements, as SQLAlchemy's own copies of an engine: both speak one dialect, and each lane and
    each beat would compile every statement again."""
    options = {name: value for name, value in model.get_execution_options().items() if name != "isolation_level"}
    engine.update_execution_options(**options)
    copied: Any = engine
    original: Any = model
    _listen_alike(copied.dispatch, original.dispatch)
    copied._has_events = getattr(original, "_has_events", True)
    copied._compiled_cache = original._compiled_cache


def _listen_alike(dispatch: Any, model: Any) -> None:
    """With the listeners of `model`; of what `engine.execution_options()` answers, these and those of `engine`."""
    if not hasattr(model, "local"):
        dispatch._update(model, only_propagate=False)
        return
    for name in dispatch._event_names:
        own = getattr(model, name).local
        if own.listeners:
            getattr(dispatch, name).for_modify(dispatch)._update(own, only_propagate=False)
    _listen_alike(dispatch, model.parent)


def _made_alike(engine: Engine, model: Engine) -> Engine:
    """An engine like `model`, but that its transactions are what ours must be, whatever the user's are: what is said
    last counts. (An `engine.execution_options()` of theirs would be asked before theirs.)"""
    _behave_alike(engine, model)
    name = engine.dialect.name
    if name in MYSQL:
        # There that option is a statement at each checkout, which on a dead connection fails with the driver's naked
        # error.
        event.listen(engine, "begin", _begin_mysql)
    elif locks_rows(engine.dialect):
        engine.update_execution_options(isolation_level="READ COMMITTED")
    else:
        event.listen(engine, "connect", _open_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _is_automatic(connection: Connection) -> bool:
    """Whether each of its statements is a transaction by itself."""
    return connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"


def _begin_mysql(connection: Connection) -> None:
    if _is_automatic(connection):
        return
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")  # of the one that follows
    connection.exec_driver_sql("START TRANSACTION")  # also where the user's engine is set to AUTOCOMMIT


def _refuse_memory(url: URL) -> None:
    name = url.database or ":memory:"
    in_memory = ":memory:" in name or "mode=memory" in name or url.query.get("mode") == "memory"
    if url.get_backend_name() == "sqlite" and in_memory:
        raise ConfigurationError("an SQLite database in memory is another one for each connection: give it a file")


def _bind_of(maker: Any) -> Any:
    bind = maker.kw.get("bind")
    if bind is None:
        raise ConfigurationError(
            "this sessionmaker is bound to no engine: give AsyncTask its engine, or sessionmaker(engine)"
        )
    return bind


def _engine_from(url: str | URL) -> Any:
    try:
        made = make_url(url)
        _refuse_memory(made)
        dialect = made.get_dialect()
        if dialect.is_async:
            from sqlalchemy.ext.asyncio import create_async_engine

            return create_async_engine(made, hide_parameters=True)
        return create_engine(made, hide_parameters=True, pool_pre_ping=dialect.name != "sqlite")
    except NoSuchModuleError:
        raise ConfigurationError(
            f"no database dialect is called {make_url(url).drivername!r}: "
            "write postgresql+psycopg://, mysql+pymysql:// or sqlite:///"
        ) from None
    except ArgumentError:
        raise ConfigurationError(
            "the database URL cannot be read: write it like postgresql+psycopg://user@host/database"
        ) from None
    except ImportError as error:
        # Of a missing greenlet, SQLAlchemy says so in its own words, and names no module.
        raise ConfigurationError(_missing_driver(make_url(url), error.name or "greenlet")) from None
    except ValueError:
        # What it says quotes a part of the URL, which may be one of the password.
        raise ConfigurationError(
            "the database URL has a port that is no number: in a password, write @ : / as %40 %3A %2F"
        ) from None


def _missing_driver(url: URL, module: str) -> str:
    if url.drivername == "postgresql":
        driver = url.get_dialect().driver
        return f"postgresql:// means the driver {driver}: write postgresql+psycopg:// and install async-task[postgres]"
    if url.drivername in ("mysql", "mariadb"):
        plain = url.drivername
        return f"{plain}:// means the driver mysqlclient: write {plain}+pymysql:// and install async-task[mysql]"
    wanted = "aiosqlite" if url.drivername == "sqlite+aiosqlite" else module  # its extra brings greenlet too
    advice = f"install async-task[{EXTRAS[wanted]}]" if wanted in EXTRAS else f"install {wanted}"
    if wanted == "psycopg2":
        advice += ", or write postgresql+psycopg:// and install async-task[postgres]"
    return f"the driver {module} of {url.drivername}:// is not installed: {advice}"


def _open_sqlite(connection: Any, record: Any) -> None:
    # The driver's own BEGIN is deferred: it reads first, and then fails to become a writer.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 500")
    with contextlib.suppress(Exception):  # somebody reads it just now: then another connection will
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_MS}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    if _is_automatic(connection):
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")
