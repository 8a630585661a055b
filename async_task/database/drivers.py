"""The drivers of the databases: an engine that is made from a URL, and what is said of a driver that is missing or not
tested."""

import functools
import logging
from typing import Any

from sqlalchemy import URL, Dialect, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from async_task.errors import ConfigurationError

logger = logging.getLogger("async_task")
# The extra of async-task that installs a module.
EXTRAS = {"psycopg": "postgres", "pymysql": "mysql", "aiosqlite": "sqlite-async", "greenlet": "asyncio"}
PACKAGES = {"MySQLdb": "mysqlclient", "mysql": "mysql-connector-python"}
"""By module: the package that installs it, where that has another name."""
TESTED = {
    "postgresql": ("psycopg", "asyncpg"),
    "mysql": ("pymysql", "aiomysql"),
    "mariadb": ("pymysql", "aiomysql"),
    "sqlite": ("pysqlite", "aiosqlite"),
}
"""The drivers that the tests use, by the name of the dialect."""


def engine_from(url: str | URL) -> Any:
    """An engine with the driver that the URL names. Raises ConfigurationError."""
    try:
        made = make_url(url)
        refuse_memory(made)
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


def refuse_memory(url: URL) -> None:
    """Raise ConfigurationError for an SQLite database in memory."""
    name = url.database or ":memory:"
    in_memory = ":memory:" in name or "mode=memory" in name or url.query.get("mode") == "memory"
    if url.get_backend_name() == "sqlite" and in_memory:
        raise ConfigurationError("an SQLite database in memory belongs to one connection: use a file")


def warn_if_untested(dialect: Dialect) -> None:
    """Once for each driver: with one that is not tested, errors of the database may look like errors of a call."""
    _warn_if_untested(dialect.name, dialect.driver)


@functools.cache
def _warn_if_untested(name: str, driver: str) -> None:
    tested = TESTED.get(name, ())
    if driver.removesuffix("_async") not in tested:
        logger.warning(
            "the driver %s is not tested: an outage of the database may use up tries of a call; tested are %s",
            driver, " and ".join(tested) or "those of PostgreSQL, MySQL, MariaDB and SQLite",
        )  # fmt: skip


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
