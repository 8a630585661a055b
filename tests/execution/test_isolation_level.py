"""The isolation level of a target's session: its own, else that of the user's engine, else READ COMMITTED."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert, make_url, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, ConfigurationError, Parked, Succeeded, target
from clockwork import let_pass, row_of
from conftest import by_one_door
from databases import Database
from outbox import act_in_session, effects, will

Write = Callable[..., Attempt]
locks_rows = pytest.mark.only_on("postgresql", "mysql")
seen: list[str] = []


@pytest.fixture
def counter(engine: Engine) -> None:
    seen.clear()
    will(look)
    with engine.begin() as connection:
        connection.execute(insert(effects).values(attempt_id="a counter", number=0, what="counter"))


def look(session: Session, *_: Any) -> None:
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        seen.append(str(connection.scalar(text("SELECT current_setting('transaction_isolation')"))).upper())
    else:
        seen.append("SERIALIZABLE" if _read_locks(session) else "READ COMMITTED")


def _read_locks(session: Session) -> bool:
    """Whether a plain SELECT locks what it reads: on MySQL and MariaDB it does at SERIALIZABLE only, and what they say
    about the level of a transaction is as old as a cache."""
    session.execute(select(effects.c.number))
    with session.connection().engine.connect() as other:
        try:
            other.execute(select(effects.c.number).with_for_update(nowait=True))
        except DBAPIError:
            return True
    return False


@target("isolation.serializable", isolation="SERIALIZABLE")
def serializable(session: Session) -> None:
    look(session)


@target("isolation.repeatable", isolation="REPEATABLE READ", mode="leased")
def repeatable(session: Session) -> None:
    look(session)


@target("isolation.shared", isolation="SERIALIZABLE", batch=5)
def shared(session: Session) -> None:
    look(session)


@target("isolation.by_the_engine", batch=5)
def by_the_engine(session: Session) -> None:
    look(session)


@target("isolation.committed", isolation="READ COMMITTED")
def committed(session: Session) -> None:
    look(session)


@pytest.mark.slow
@locks_rows
def test_a_target_sets_the_level_of_its_session_and_of_no_other_call(
    counter: None, app: AsyncTask, database: Database, write: Write
) -> None:
    called = [serializable, act_in_session, repeatable, act_in_session, shared, act_in_session, committed]
    for number, one in enumerate(called):
        write(one, priority=number)
    assert app.run_batch(concurrency=1).succeeded == len(called)
    second = "REPEATABLE READ" if database.name == "postgresql" else "READ COMMITTED"
    assert sorted(seen) == sorted(["SERIALIZABLE", second, "SERIALIZABLE", *["READ COMMITTED"] * 4])


@pytest.mark.slow
@locks_rows
@pytest.mark.parametrize("by", ["create_engine", "execution_options"])
def test_the_level_of_the_users_engine_is_kept_unless_the_target_sets_another(
    counter: None, database: Database, write: Write, by: str
) -> None:
    given = create_engine(database.sync_url, isolation_level="SERIALIZABLE" if by == "create_engine" else "AUTOCOMMIT")
    app = AsyncTask(given if by == "create_engine" else given.execution_options(isolation_level="SERIALIZABLE"))
    ids = [write(act_in_session).id, write(committed).id, write(by_the_engine).id]
    assert [type(app.perform(one)) for one in ids] == [Succeeded] * 3
    given.dispose()
    assert seen == ["SERIALIZABLE", "READ COMMITTED", "SERIALIZABLE"]


@pytest.fixture
def strict_urls(engine: Engine, database: Database) -> Iterator[tuple[str, str]]:
    """URLs of a database whose default level somebody has set."""
    if database.name == "mysql":  # of the session: a server's would reach other programs of this machine
        strict = {"init_command": "SET tx_isolation = 'SERIALIZABLE'"}
        urls = (make_url(url).update_query_dict(strict) for url in (database.sync_url, database.async_url))
        plain, later = (url.render_as_string(hide_password=False) for url in urls)
        yield plain, later
        return
    with engine.begin() as connection:
        connection.execute(
            text(f'ALTER DATABASE "{engine.url.database}" SET default_transaction_isolation TO serializable')
        )
    yield database.sync_url, database.async_url
    with engine.begin() as connection:
        connection.execute(text(f'ALTER DATABASE "{engine.url.database}" RESET default_transaction_isolation'))


@pytest.mark.slow
@locks_rows
def test_the_level_that_is_set_in_the_database_is_kept_unless_the_target_or_the_engine_sets_another(
    counter: None, strict_urls: tuple[str, str], door: str, write: Write
) -> None:
    engines: list[Any] = [
        create_engine(strict_urls[0]),
        create_engine(strict_urls[0], isolation_level="READ COMMITTED"),
    ]
    if door == "async":
        engines[0] = create_async_engine(strict_urls[1])
    for given in engines:
        app = AsyncTask(given)
        ids = [write(act_in_session).id, write(committed).id, write(by_the_engine).id]
        assert [type(app.perform(one)) for one in ids] == [Succeeded] * 3
    for given in engines:
        (given.sync_engine if given is engines[0] and door == "async" else given).dispose()
    assert seen == ["SERIALIZABLE", "READ COMMITTED", "SERIALIZABLE", *["READ COMMITTED"] * 3]


@by_one_door
@pytest.mark.only_on("postgresql")
@pytest.mark.usefixtures("registered")
def test_a_serialization_failure_is_retried_and_charges_nothing(
    counter: None, app: AsyncTask, engine: Engine, write: Write
) -> None:
    of_counter = effects.c.what == "counter"
    others = [1]

    @target("isolation.bump", isolation="SERIALIZABLE")
    def bump(session: Session) -> None:
        known = session.scalar(select(effects.c.number).where(of_counter)) or 0
        if others:
            with engine.begin() as connection:
                connection.execute(update(effects).where(of_counter).values(number=known + others.pop()))
        session.execute(update(effects).where(of_counter).values(number=known + 1))

    attempt = write(bump)
    assert isinstance(app.perform(attempt.id), Parked)
    row = row_of(engine, attempt.id)
    assert (row.num_errors, row.num_crashes, row.num_attempts) == (0, 0, 1)
    let_pass(engine, 60)
    assert isinstance(app.perform(attempt.id), Succeeded)
    with engine.begin() as connection:
        assert connection.scalar(select(effects.c.number).where(of_counter)) == 2


@pytest.mark.parametrize("level", ["serializable", "AUTOCOMMIT", 1])
def test_another_level_is_refused(level: Any) -> None:
    with pytest.raises(ConfigurationError, match="isolation is one of READ COMMITTED, REPEATABLE READ, SERIALIZABLE"):
        target(look, name="isolation.no", isolation=level)
