"""Engines beside the user's: they have its options and listeners, but not its isolation level."""

from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, current_attempt
from databases import Database
from elsewhere import await_
from outbox import Broken, act, act_in_session, calls, effects, will
from workers import at_rest, counted, make, working


def test_the_options_and_listeners_of_the_users_engine_apply(database: Database, engine: Engine) -> None:
    plain, begun = create_engine(database.sync_url), list[str]()
    given = plain.execution_options(name="theirs")
    event.listen(plain, "begin", lambda connection: begun.append("plain"))
    event.listen(given, "begin", lambda connection: begun.append(connection.get_execution_options()["name"]))
    make(engine, act)
    make(engine, act_in_session)
    will(lambda *given: None)
    with working(AsyncTask(given, lease=1)):
        await_(lambda: at_rest(engine), "all are at rest")
    plain.dispose()
    assert counted(engine) == {"succeeded": 2}
    assert begun.count("plain") == begun.count("theirs") > 0


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
def test_an_sqlite_engine_that_begins_each_transaction_itself_is_served(
    database: Database, engine: Engine, begin: str
) -> None:
    """As SQLAlchemy's page on SQLite shows it, so that a SAVEPOINT is one."""
    own = create_engine(database.sync_url)

    def open_(driver: Any, record: Any) -> None:
        driver.isolation_level = None

    event.listen(own, "connect", open_)
    event.listen(own, "begin", lambda connection: connection.exec_driver_sql(begin))
    app = AsyncTask(own)
    app.create_schema()
    with Session(own) as session, session.begin():
        for target in (act, act_in_session):
            Attempt.create(session, target=target)
    will(lambda *given: None)
    assert app.run_batch().succeeded == 2
    assert app.attempts.counts()
    own.dispose()


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
@pytest.mark.parametrize("verb", ["run_batch", "worker"])
def test_the_isolation_level_of_the_users_engine_does_not_apply(
    database: Database, engine: Engine, level: str, verb: str
) -> None:
    own = create_engine(database.sync_url, execution_options={"isolation_level": level})

    def look(*sessions: Any) -> None:
        for session in sessions:
            session.execute(effects.insert().values(what="of a call that raises"))
        with engine.connect() as connection:
            mine = select(Attempt.id).where(Attempt.id == current_attempt().id).with_for_update(skip_locked=True)
            calls.append(connection.execute(mine).first())
        if sessions:
            raise Broken

    will(look)
    for target in (act, act_in_session):
        make(engine, target, max_attempts=1)
    app = AsyncTask(own, lease=1)
    if verb == "run_batch":
        app.run_batch(concurrency=1)
    else:
        with working(app):
            await_(lambda: at_rest(engine), "all are at rest")
    own.dispose()
    assert counted(engine) == {"succeeded": 1, "failed": 1}
    assert calls == [None, None]  # their rows are locked
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(effects)) == 0
