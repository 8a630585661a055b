"""Servers that are too old are refused in one sentence."""

import contextlib
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Engine

from async_task import AsyncTask, ConfigurationError
from async_task.database.server_versions import too_old


def of(dialect: Any, version: tuple[int, ...], *, is_mariadb: bool = False) -> Any:
    made = dialect.dialect()
    made.server_version_info = version
    made.is_mariadb = is_mariadb
    return made


def test_the_oldest_versions_are_accepted_and_older_ones_are_refused() -> None:
    for oldest in (
        of(postgresql, (12, 0)), of(mysql, (8, 0, 17)), of(mysql, (10, 6, 4), is_mariadb=True), of(sqlite, (3, 31, 1)),
    ):  # fmt: skip
        assert too_old(oldest) is None
    refused = {
        of(postgresql, (11, 22)): "PostgreSQL 11.22 is too old: this library needs PostgreSQL 12 or newer",
        of(mysql, (8, 0, 16)): "MySQL 8.0.16 is too old: this library needs MySQL 8.0.17 or newer",
        of(mysql, (10, 5, 23), is_mariadb=True): "MariaDB 10.5.23 is too old: this library needs MariaDB 10.6 or newer",
        of(sqlite, (3, 26, 0)): "SQLite 3.26.0 is too old: this library needs SQLite 3.31 or newer",
    }
    assert {dialect: too_old(dialect) for dialect in refused} == refused


def test_the_first_use_of_an_old_server_says_that_it_is_too_old(engine: Engine) -> None:
    old = create_engine(engine.url)
    with old.connect():
        assert too_old(old.dialect) is None
    old.dialect.server_version_info = (3, 1)  # type: ignore[attr-defined]
    with contextlib.closing(AsyncTask(old)) as app:
        for use in (app.run_batch, app.create_schema, app.schema_version):
            with pytest.raises(ConfigurationError, match=r" 3\.1 is too old: this library needs "):
                use()
    old.dispose()
