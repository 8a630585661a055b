"""Drivers that the tests do not use."""

from typing import Any

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.dialects.postgresql import psycopg2

from async_task.database.driver_errors import is_statement_timeout, is_transient
from async_task.database.drivers import TESTED, warn_if_untested
from async_task.database.engines import Source
from databases import Database


class OfPsycopg2(Exception):
    """It has its SQLSTATE as `pgcode`."""

    def __init__(self, pgcode: str | None) -> None:
        super().__init__("said")
        self.pgcode = pgcode


def test_an_error_of_psycopg2_is_understood() -> None:
    assert [is_transient(OfPsycopg2(code)) for code in ("40001", "40P01", "55P03", "23505", None)] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert is_statement_timeout(OfPsycopg2("57014"))


def test_a_driver_that_is_not_tested_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    dialect: Any = psycopg2.dialect()
    for _ in range(2):
        warn_if_untested(dialect)
    assert [one.getMessage() for one in caplog.records] == [
        "the driver psycopg2 is not tested: an outage of the database may use up tries of a call; tested are psycopg "
        "and asyncpg"
    ]


def test_of_the_tested_ones_nothing_is_said(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    for url in (database.sync_url, database.async_url):
        name = make_url(url).get_backend_name()
        assert make_url(url).get_driver_name() in TESTED[name]
    Source(create_engine(database.sync_url))
    Source(database.async_url)
    assert caplog.records == []
