"""What the server tells about the database as a whole; and what it does not tell to everybody."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, insert, make_url, text

from async_task import AsyncTask, Attempt, JobEvent
from async_task.database.dialects import MYSQL, has_schemas
from async_task.schema.tables import SCHEMA_VERSION
from conftest import by_one_door
from outbox import act

NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "mysql": "MariaDB", "mariadb": "MariaDB"}


@pytest.mark.slow
def test_a_system_is_its_server_its_tables_and_the_oldest_transaction(app: AsyncTask, engine: Engine) -> None:
    with engine.begin() as connection:
        Attempt.create_many(connection, [{"target": act} for _ in range(500)])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        word = "ANALYZE TABLE" if engine.dialect.name in MYSQL else "ANALYZE"
        connection.execute(text(f"{word} async_task_attempts"))
    if has_schemas(engine.dialect):  # MariaDB would answer the same again for a tenth of a second
        alone = app.system().oldest_transaction
        assert alone is None or alone.state != "active"  # not the one that asks
    with held_open(engine) as began:
        found = app.system()
    assert (found.schema_version, found.schema_needed) == (SCHEMA_VERSION, SCHEMA_VERSION)
    assert found.server in (NAMES[engine.dialect.name], "MySQL")
    assert (found.server_version or "?")[0].isdigit()
    assert [one.name for one in found.tables][:2] == ["async_task_attempts", "async_task_job_events"]
    assert len(found.tables) == 7
    attempts, oldest = found.tables[0], found.oldest_transaction
    if engine.dialect.name == "sqlite":
        assert (attempts.rows, attempts.bytes, oldest) == (None, None, None)
    else:
        assert attempts.rows == pytest.approx(500, rel=0.2)
        assert min(attempts.bytes or 0, attempts.index_bytes or 0) >= 16_384
        assert oldest is not None
        assert oldest.since <= began
    if has_schemas(engine.dialect):
        assert oldest is not None
        assert (oldest.state, oldest.application_name) == ("idle in transaction", "holder")
        assert attempts.dead_rows is not None
    assert (found.database_bytes is None) == (engine.dialect.name in MYSQL)


@contextlib.contextmanager
def held_open(engine: Engine) -> Iterator[Any]:
    """A transaction that has written; and until when it had begun."""
    if engine.dialect.name == "sqlite":
        yield None
        return
    app = AsyncTask(engine)
    with engine.connect() as connection, connection.begin() as transaction:
        if has_schemas(engine.dialect):
            connection.execute(text("SET LOCAL application_name = 'holder'"))
        connection.execute(insert(JobEvent).values(job_type="jobs", job_id="1", kind="note"))
        yield app.now()
        transaction.rollback()


@by_one_door
def test_tables_of_another_version_are_told_and_without_tables_there_is_none(
    app: AsyncTask, engine: Engine, tmp_path: Any
) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE async_task_schema SET version = 99"))
    try:
        assert app.system().schema_version == 99
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE async_task_schema SET version = {SCHEMA_VERSION}"))
    empty = AsyncTask(f"sqlite:///{tmp_path}/empty.sqlite").system()
    assert (empty.schema_version, {one.rows for one in empty.tables}) == (None, {None})


@by_one_door
@pytest.mark.only_on("postgresql", "mysql")
def test_a_right_that_is_missing_leaves_out_what_it_would_tell(app: AsyncTask, engine: Engine) -> None:
    with stranger(engine) as reader, held_open(engine):
        found = AsyncTask(reader).system()
    assert (found.schema_version, found.oldest_transaction) == (None, None)
    assert (found.server, len(found.tables)) == (app.system().server, 7)


@contextlib.contextmanager
def stranger(engine: Engine) -> Iterator[Engine]:
    """An engine whose user may connect, and has no right to anything."""
    name = f"stranger_{engine.url.database}"[:32]
    if engine.dialect.name in MYSQL:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE USER '{name}'@'%'"))
            connection.execute(text(f"GRANT CREATE ON {engine.url.database}.other TO '{name}'@'%'"))
        made = create_engine(make_url(engine.url).set(username=name, password=None))
    else:
        with engine.begin() as connection:
            connection.execute(text(f'CREATE ROLE "{name}"'))
        made = create_engine(engine.url)

        @event.listens_for(made, "begin")
        def _become(connection: Any) -> None:
            connection.exec_driver_sql(f'SET ROLE "{name}"')

    try:
        yield made
    finally:
        made.dispose()
        with engine.begin() as connection:
            connection.execute(
                text(f"DROP USER '{name}'@'%'" if engine.dialect.name in MYSQL else f'DROP ROLE "{name}"')
            )
