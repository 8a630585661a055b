"""The check of the tables before the first work on them."""

import pytest
from sqlalchemy import Engine, update

from async_task import AsyncTask, Attempt, SchemaMismatch
from async_task.schema import versions
from async_task.schema.tables import SCHEMA_VERSION, companion_tables
from claims import TABLE
from writing import statements_of

COMPANIONS = companion_tables(TABLE)


def test_tables_that_fit_are_checked_by_one_statement(engine: Engine) -> None:
    with statements_of(engine) as seen:
        versions.check(engine, Attempt)
    assert len(seen) == 1, seen


@pytest.mark.parametrize("other", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_tables_of_another_version_are_refused(engine: Engine, other: int) -> None:
    version = COMPANIONS.version
    with engine.begin() as connection:
        connection.execute(update(version).values(version=other))
    try:
        with pytest.raises(SchemaMismatch, match=f"the tables are of version {other}"):
            versions.check(engine, Attempt)
    finally:
        with engine.begin() as connection:
            connection.execute(update(version).values(version=SCHEMA_VERSION))
    AsyncTask(engine).check_schema()


def test_one_missing_table_is_named(engine: Engine) -> None:
    COMPANIONS.queues.drop(engine)
    try:
        with pytest.raises(SchemaMismatch, match="the database has no table 'async_task_queues'"):
            versions.check(engine, Attempt)
    finally:
        COMPANIONS.queues.create(engine)
