"""Engines of the library: made from a URL, or beside the user's own engine, which is left unchanged."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine, Pool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session, sessionmaker

from async_task.database.connections import guard
from async_task.database.dialects import locks_rows, set_isolation, sets_isolation_by_statement
from async_task.database.driver_errors import note_faults
from async_task.database.reading import explain_refusals
from async_task.database.savepoints import prepare_to_lend
from async_task.database.sessions import asyncio_kinds
from async_task.database.transaction_start import begin_mysql, begin_sqlite, open_sqlite
from async_task.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    Database = str | URL | Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any]
else:
    Database = object  # as in `sessions`: a synchronous program may not have greenlet

# The extra of async-task that installs a module.
EXTRAS = {"psycopg": "postgres", "pymysql": "mysql", "aiosqlite": "sqlite-async", "greenlet": "asyncio"}
PACKAGES = {"MySQLdb": "mysqlclient", "mysql": "mysql-connector-python"}
"""By module: the package that installs it, where that has another name."""


class Source:
    """The database with the attempts: an engine, and how the user makes sessions. Raises ConfigurationError for a URL
    that cannot be read, a driver that is not installed, or a database that connections cannot share."""

    def __init__(self, given: Database) -> None:
        self.session_class: type[Any] = Session
        self.session_options: dict[str, Any] = {}
        engine: Any = given
        if issubclass(type(engine), (sessionmaker, *asyncio_kinds("async_sessionmaker"))):
            self.session_class = engine.class_
            self.session_options = {name: value for name, value in engine.kw.items() if name not in _OURS}
            engine = _bind_of(engine)
            _refuse_other_binds(given, engine)
        self._is_ours = isinstance(engine, (str, URL))
        if isinstance(engine, (str, URL)):
            engine = _engine_from(engine)
        if not issubclass(type(engine), (Engine, *asyncio_kinds("AsyncEngine"))):
            raise ConfigurationError(f"AsyncTask takes a URL, an engine or a sessionmaker, not {type(given).__name__}")
        self.is_async = not isinstance(engine, Engine)
        plain: Engine = engine.sync_engine if self.is_async else engine
        _refuse_memory(plain.url)
        self._plain = plain
        self._initializing = threading.Lock()
        self._is_initialized = False
        note_faults(plain.dialect)
        explain_refusals(plain.dialect)
        prepare_to_lend(plain.dialect)

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
        if issubclass(self.session_class, Session):
            return self.session_class(engine, **self.session_options)
        return Session(engine)

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
        return _configured_like(Engine(plain.pool, plain.dialect, plain.url, **given), plain)

    def private(self) -> Engine:
        """An engine with a pool of its own, configured like the user's: for another event loop, or another process."""
        pool: Any = self._plain.pool.recreate()
        # A lane keeps one connection open and now and then needs another one: a pool of one would wait for itself.
        if 0 <= getattr(pool, "_max_overflow", -1) < 2:
            pool._max_overflow = 2
        guard(pool, self._plain.dialect)
        engine = Engine(pool, self._plain.dialect, self._plain.url, hide_parameters=True)
        return _configured_like(engine, self._plain)


def _prepare_nothing(connection: Any, _record: Any) -> None:
    driver = getattr(connection, "driver_connection", connection)
    if hasattr(driver, "prepare_threshold"):
        driver.prepare_threshold = None


_OURS = ("bind", "binds", "class_", "close_resets_only", "join_transaction_mode", "twophase", "sync_session_class")


def _configured_like(engine: Engine, model: Engine) -> Engine:
    """`engine`, with the options and listeners of `model`, and with READ COMMITTED transactions.

    It is an engine beside the user's, not `execution_options()` of theirs: SQLAlchemy calls the listeners of the
    engine below last, so an AUTOCOMMIT of theirs would win, and no row would be locked.
    """
    _copy_behaviour(engine, model)
    if sets_isolation_by_statement(engine.dialect):
        # For each transaction: on a dead connection the statement at checkout raises the driver's own error, which
        # SQLAlchemy does not wrap.
        event.listen(engine, "begin", begin_mysql)
    elif locks_rows(engine.dialect):
        engine.update_execution_options(isolation_level="READ COMMITTED")
    else:
        event.listen(engine, "connect", open_sqlite)
        event.listen(engine, "begin", begin_sqlite)
    return engine


def _copy_behaviour(engine: Engine, model: Engine) -> None:
    """Copy the options and listeners of `model`, which may set a tenant at each begin, or translate schemas.

    Its compiled statements are shared, as by SQLAlchemy's own copies of an engine: both have one dialect, and every
    lane would compile every statement again.
    """
    options = {name: value for name, value in model.get_execution_options().items() if name != "isolation_level"}
    engine.update_execution_options(**options)
    copied: Any = engine
    original: Any = model
    _copy_listeners(copied.dispatch, original.dispatch)
    copied._has_events = getattr(original, "_has_events", True)
    copied._compiled_cache = original._compiled_cache


def _copy_listeners(dispatch: Any, model: Any) -> None:
    """Copy the listeners of `model`; if that is an engine's `execution_options()`, also those of the engine itself."""
    if not hasattr(model, "local"):
        dispatch._update(model, only_propagate=False)
        return
    for name in dispatch._event_names:
        own = getattr(model, name).local
        if own.listeners:
            getattr(dispatch, name).for_modify(dispatch)._update(own, only_propagate=False)
    _copy_listeners(dispatch, model.parent)


def _refuse_memory(url: URL) -> None:
    name = url.database or ":memory:"
    in_memory = ":memory:" in name or "mode=memory" in name or url.query.get("mode") == "memory"
    if url.get_backend_name() == "sqlite" and in_memory:
        raise ConfigurationError("an SQLite database in memory belongs to one connection: use a file")


def _bind_of(maker: Any) -> Any:
    bind = maker.kw.get("bind")
    if bind is None:
        raise ConfigurationError(
            "this sessionmaker is bound to no engine: give AsyncTask an engine, or sessionmaker(engine)"
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
        # For a missing greenlet SQLAlchemy raises an error of its own, which names no module.
        raise ConfigurationError(_missing_driver(make_url(url), error.name or "greenlet")) from None
    except ValueError:
        # Its text quotes a part of the URL, which may be a part of the password.
        raise ConfigurationError(
            "the database URL has a port that is not a number: in a password, write @ : / as %40 %3A %2F"
        ) from None


def _missing_driver(url: URL, module: str) -> str:
    if url.drivername == "postgresql":
        driver = url.get_dialect().driver
        return f"postgresql:// means the driver {driver}: write postgresql+psycopg:// and install async-task[postgres]"
    if url.drivername in ("mysql", "mariadb"):
        plain = url.drivername
        return f"{plain}:// means the driver mysqlclient: write {plain}+pymysql:// and install async-task[mysql]"
    wanted = "aiosqlite" if url.drivername == "sqlite+aiosqlite" else module  # its extra installs greenlet too
    advice = (
        f"install async-task[{EXTRAS[wanted]}]"
        if wanted in EXTRAS
        else f"install {PACKAGES.get(wanted.partition('.')[0], wanted)}"
    )
    if wanted == "psycopg2":
        advice += ", or write postgresql+psycopg:// and install async-task[postgres]"
    return f"the driver {module} of {url.drivername}:// is not installed: {advice}"
