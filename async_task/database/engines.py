"""Engines of the library: made from a URL, or beside the user's own engine, which is left unchanged."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, Pool, event
from sqlalchemy.orm import Session, sessionmaker

from async_task.database.connections import guard
from async_task.database.dialects import locks_rows, set_isolation
from async_task.database.driver_errors import note_faults
from async_task.database.drivers import engine_from, refuse_memory, warn_if_untested
from async_task.database.engine_copies import configured_like
from async_task.database.flask_sqlalchemy import (
    FlaskSQLAlchemy,
    default_engine,
    flask_context,
    is_flask_sqlalchemy,
    session_factory_of,
)
from async_task.database.reading import explain_refusals
from async_task.database.savepoints import prepare_to_lend
from async_task.database.sessions import asyncio_kinds
from async_task.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    Database = str | URL | Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any] | FlaskSQLAlchemy
else:
    Database = object  # as in `sessions`: a synchronous program may not have greenlet


class Source:
    """The database with the attempts: an engine, and how the user makes sessions. Raises ConfigurationError for a URL
    that cannot be read, a driver that is not installed, or a database that connections cannot share."""

    def __init__(self, given: Database) -> None:
        self.session_class: type[Any] = Session
        self.session_options: dict[str, Any] = {}
        self.context: Callable[[], AbstractContextManager[None]] = nullcontext
        """Inside of this the user's own code finds its database: Flask's application context, else nothing."""
        self._find: Callable[[], Engine] | None = None
        self._initializing = threading.RLock()
        self._is_initialized = self._is_ours = self.is_async = False
        engine: Any = given
        if is_flask_sqlalchemy(engine):
            self.session_class, self.session_options = session_factory_of(engine)
            self.context = partial(flask_context, engine)
            self._find = partial(default_engine, engine)
            return
        if issubclass(type(engine), (sessionmaker, *asyncio_kinds("async_sessionmaker"))):
            self.session_class = engine.class_
            self.session_options = {name: value for name, value in engine.kw.items() if name not in _OURS}
            engine = _bind_of(engine)
            _refuse_other_binds(given, engine)
        self._is_ours = isinstance(engine, (str, URL))
        if isinstance(engine, (str, URL)):
            engine = engine_from(engine)
        if not issubclass(type(engine), (Engine, *asyncio_kinds("AsyncEngine"))):
            kinds = "a URL, an engine, a sessionmaker or Flask-SQLAlchemy's object"
            raise ConfigurationError(f"AsyncTask takes {kinds}, not {type(given).__name__}")
        self.is_async = not isinstance(engine, Engine)
        self._found = _prepared(engine.sync_engine if self.is_async else engine)

    @property
    def _plain(self) -> Engine:
        """The user's engine. That of Flask-SQLAlchemy is found at first use, when its application exists."""
        if self._find is not None:
            with self._initializing:
                if self._find is not None:
                    self._found = _prepared(self._find())
                    self._find = None
        return self._found

    @property
    def dialect(self) -> Any:
        return self._plain.dialect

    @property
    def pool(self) -> Pool:
        """The pool of the user's engine; they get a new one when they dispose of their engine."""
        return self._plain.pool

    @property
    def url(self) -> URL:
        return self._plain.url

    @property
    def isolation(self) -> str | None:
        """The isolation level that the user's engine sets, else that which is set in the database. None if nobody has
        set one, for AUTOCOMMIT, and where rows are not locked (SQLite): there all transactions are serializable. Known
        once a connection was made."""
        if not locks_rows(self._plain.dialect):
            return None
        dialect: Any = self._plain.dialect
        on_connect = getattr(dialect, "_on_connect_isolation_level", None)
        level = self._plain.get_execution_options().get("isolation_level", on_connect)
        if level is None:
            return set_isolation(dialect)
        return None if level == "AUTOCOMMIT" else str(level).upper().replace("_", " ")

    @property
    def address(self) -> str:
        """The URL with three asterisks for the password, and without its query, which may hold secrets."""
        return self._plain.url.set(query={}).render_as_string(hide_password=True)

    def close(self) -> None:
        """Close the idle connections of an engine that was made from a URL. An AsyncEngine has none: lanes have their
        own pools."""
        if self._is_ours and not self.is_async:
            self._plain.dispose()

    def stop_preparing(self) -> None:
        """Let psycopg prepare no statements, on an engine that was made from a URL: behind a pooler in transaction mode
        the next transaction may have another session, without them."""
        if self._is_ours and not event.contains(self._plain, "connect", _prepare_nothing):
            event.listen(self._plain, "connect", _prepare_nothing)
            self._plain.dispose()  # idle connections may have prepared some

    def close_idle(self) -> None:
        """Close the idle connections of a synchronous engine, before this process is forked."""
        if not self.is_async:
            self._plain.dispose()

    def leave_to_parent(self) -> None:
        """In a forked process: leave the connections of its parent alone, and open others."""
        self._plain.dispose(close=False)

    @property
    def database_file(self) -> str:
        """The file of an SQLite database."""
        return str(self._plain.url.database).removeprefix("file:").partition("?")[0]

    def initialize_dialect(self, connect: Callable[[], object]) -> None:
        """Call `connect` at the first call, and let other threads wait for it.

        All engines made here share one dialect. It learns from its first connection which server this is, and gives
        wrong answers to other threads until then.
        """
        if not self._is_initialized:
            with self._initializing:
                if not self._is_initialized:
                    connect()
                    self._is_initialized = True

    def session(self, engine: Engine) -> Session:
        """A session on `engine`, of the user's own class, for their overrides; a plain one if they use AsyncSession."""
        if not issubclass(self.session_class, Session):
            return Session(engine)
        if self.context is nullcontext:
            return self.session_class(engine, **self.session_options)
        made: Session = self.session_class(**self.session_options)
        vars(made)["get_bind"] = lambda *_, **__: engine  # its own asks Flask for the application's engine
        return made

    def shared(self) -> Engine:
        """An engine on the user's own pool if that is synchronous and the database locks rows; else a private one."""
        if self.is_async or not locks_rows(self._plain.dialect):
            return self.private()
        plain = self._plain
        given: dict[str, Any] = {
            "logging_name": plain.logging_name,
            "echo": plain.echo,
            "hide_parameters": plain.hide_parameters,
        }
        return configured_like(Engine(plain.pool, plain.dialect, plain.url, **given), plain)

    def private(self) -> Engine:
        """An engine with a pool of its own, configured like the user's: for another event loop, or another process."""
        pool: Any = self._plain.pool.recreate()
        # A lane keeps one connection open and now and then needs another one: a pool of one would wait for itself.
        if 0 <= getattr(pool, "_max_overflow", -1) < 2:
            pool._max_overflow = 2
        guard(pool, self._plain.dialect)
        engine = Engine(pool, self._plain.dialect, self._plain.url, hide_parameters=True)
        return configured_like(engine, self._plain)


def keep_opened(pool: Any) -> None:
    """Let a private pool that has opened no connection yet keep all that it may open (`pool_size` and `max_overflow`).
    SQLAlchemy would close those beyond `pool_size` when they are returned: under load, after each call."""
    if not {"_pool", "_max_overflow", "_overflow"} <= vars(pool).keys():  # SQLAlchemy has no public way
        return
    unlimited = pool._max_overflow < 0
    pool._pool.maxsize = 0 if unlimited else pool._pool.maxsize + pool._max_overflow
    pool._max_overflow = min(pool._max_overflow, 0)
    pool._overflow = -pool._pool.maxsize


def _prepare_nothing(connection: Any, _record: Any) -> None:
    driver = getattr(connection, "driver_connection", connection)
    if hasattr(driver, "prepare_threshold"):
        driver.prepare_threshold = None


_OURS = ("bind", "binds", "class_", "close_resets_only", "join_transaction_mode", "twophase", "sync_session_class")


def _prepared(engine: Engine) -> Engine:
    """The same. Raises ConfigurationError for a database that connections cannot share."""
    refuse_memory(engine.url)
    warn_if_untested(engine.dialect)
    note_faults(engine.dialect)
    explain_refusals(engine.dialect)
    prepare_to_lend(engine.dialect)
    return engine


def _bind_of(maker: Any) -> Any:
    bind = maker.kw.get("bind")
    if bind is None:
        raise ConfigurationError(
            "this sessionmaker is bound to no engine: give AsyncTask an engine, or sessionmaker(engine)"
        )
    if issubclass(type(bind), (Connection, *asyncio_kinds("AsyncConnection"))):
        raise ConfigurationError(
            "this sessionmaker is bound to a connection, and workers need connections of their own: give AsyncTask an "
            "engine, or sessionmaker(engine). In a test that rolls back, async_task.testing.perform_all(session) "
            "performs the calls on the test's own connection"
        )
    return bind


def _refuse_other_binds(maker: Any, engine: Any) -> None:
    """Raises ConfigurationError for `binds=` with another engine: what a target writes to it could not commit with the
    outcome of its call."""
    for bound, other in (maker.kw.get("binds") or {}).items():
        if getattr(other, "sync_engine", other) is not getattr(engine, "sync_engine", engine):
            name = getattr(bound, "__name__", None) or getattr(bound, "name", bound)
            raise ConfigurationError(
                f"this sessionmaker binds {name} to another engine than the attempts: a target's session writes in the "
                "transaction of its outcome, in one database. Give AsyncTask a sessionmaker without binds=, and let "
                "targets open a session of their own for the other database"
            )
