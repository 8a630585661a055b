"""Engines with a `schema_translate_map`, as programs with a schema for each tenant have them."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema, DropSchema

from async_task import AsyncTask, Attempt, SchemaMismatch, Status
from databases import Database
from elsewhere import await_
from outbox import Client, act, act_in_session, will
from workers import working

pytestmark = pytest.mark.only_on("postgresql", "mysql")  # SQLite has no schemas


@pytest.fixture
def tenant(database: Database, engine: Engine) -> Iterator[Engine]:
    """An engine on a schema without tables, which on PostgreSQL does not exist yet; the default schema has tables."""
    name = f"{engine.url.database}_tenant"
    if database.name == "mysql":  # there a schema is a database, which only its administrator creates
        with engine.begin() as connection:
            connection.execute(CreateSchema(name))
    made = create_engine(database.sync_url).execution_options(schema_translate_map={None: name})
    yield made
    with engine.begin() as connection:
        connection.execute(DropSchema(name, cascade=database.name == "postgresql", if_exists=True))
    made.dispose()


@pytest.fixture
def app(tenant: Engine, door: str, database: Database) -> AsyncTask:
    if door == "sync":
        return AsyncTask(tenant, lease=1)
    options = tenant.get_execution_options()
    # An engine of its own: with other keys in the map, SQLAlchemy refuses the statements that another test compiled.
    return AsyncTask(create_async_engine(database.async_url).execution_options(**options), lease=1)


def number_in(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Attempt)) or 0


@pytest.mark.slow
def test_attempts_are_created_found_performed_and_changed_in_the_translated_schema(
    app: AsyncTask, tenant: Engine, engine: Engine
) -> None:
    with pytest.raises(SchemaMismatch):
        app.check_schema()
    app.create_schema()
    app.check_schema()
    assert app.schema_version() is not None
    will(lambda *_: None)
    with Session(tenant) as session, session.begin():
        Attempt.create(target=act_in_session, session=session)
        Attempt.create(target=act, session=session, order_key="one")
        Attempt.create_many(session, [{"target": act, "order_key": "one"}] * 5)
        Attempt.ensure(session, target=act, idempotence_token="once")
        canceled = Attempt.create(target=Client, method_name="ping", session=session)
        session.flush()
        canceled.cancel()
    assert app.run_batch().succeeded == 8
    app.sweep()
    assert app.attempts.counts().total == number_in(tenant) == 9
    assert number_in(engine) == 0
    with Session(tenant) as session:
        assert set(session.scalars(select(Attempt.status))) == {Status.SUCCEEDED, Status.CANCELED}


@pytest.mark.slow
def test_a_worker_of_a_translated_schema_is_notified(app: AsyncTask, tenant: Engine) -> None:
    app.create_schema()
    will(lambda *_: None)
    with working(app, concurrency=1):
        for _ in range(2):
            with Session(tenant) as session, session.begin():
                Attempt.create(target=act, session=session)
            await_(lambda: app.attempts.counts(status="pending").total == 0, "it is called")
