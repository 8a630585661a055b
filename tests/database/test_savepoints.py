"""A savepoint that is lent to SQLAlchemy: a session acts as on two savepoints, and the server sees one."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from async_task.database.savepoints import lend_savepoint, prepare_to_lend, reclaim_savepoint
from databases import Database

pytestmark = pytest.mark.only_on("postgresql")
Do = Callable[[Session], Any]


@pytest.fixture
def plain(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.sync_url)
    prepare_to_lend(engine.dialect)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE lent (number int UNIQUE)"))
    yield engine
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE lent"))
    engine.dispose()


@pytest.fixture
def sent(plain: Engine) -> list[str]:
    """What is sent of savepoints: this listener comes after ours."""
    texts: list[str] = []

    @event.listens_for(plain, "do_execute")
    def note(_cursor: Any, statement: str, _parameters: Any, _context: Any) -> None:
        if "SAVEPOINT" in statement:
            texts.append(statement)

    return texts


def put(session: Session, number: int) -> None:
    session.execute(text(f"INSERT INTO lent VALUES ({number})"))


def put_in_nested(session: Session, number: int, *, ends: str) -> None:
    nested = session.begin_nested()
    put(session, number)
    getattr(nested, ends)()


def fail(session: Session) -> None:
    with contextlib.suppress(SQLAlchemyError):
        session.execute(text("SELECT 1 / 0"))


def hear_of_failure(session: Session) -> None:
    """A program that hears of a failure at its commit, at the latest."""
    fail(session)
    with contextlib.suppress(DBAPIError):
        session.commit()
        raise SQLAlchemyError("what has failed was committed")


def steps(*done: Do) -> Do:
    return lambda session: [one(session) for one in done]


INSERT = text("INSERT INTO lent VALUES (:number)")
PROGRAMS: dict[str, Do] = {
    "writes": lambda session: put(session, 1),
    "commits": steps(lambda s: put(s, 1), Session.commit),
    "commits and writes": steps(lambda s: put(s, 1), Session.commit, lambda s: put(s, 2)),
    "commits, writes and rolls back": steps(
        lambda s: put(s, 1), Session.commit, lambda s: put(s, 2), Session.rollback, lambda s: put(s, 3)
    ),
    "rolls back": steps(lambda s: put(s, 1), Session.rollback),
    "rolls back and writes": steps(lambda s: put(s, 1), Session.rollback, lambda s: put(s, 2)),
    "rolls back twice": steps(lambda s: put(s, 1), Session.rollback, lambda s: put(s, 2), Session.rollback),
    "rolls back and commits": steps(lambda s: put(s, 1), Session.rollback, lambda s: put(s, 2), Session.commit),
    "closes": steps(lambda s: put(s, 1), Session.close, lambda s: put(s, 2)),
    "nests": steps(lambda s: put_in_nested(s, 1, ends="commit"), lambda s: put_in_nested(s, 2, ends="rollback")),
    "begins nested": steps(Session.begin_nested, lambda s: put(s, 1), Session.rollback, lambda s: put(s, 2)),
    "leaves a nested transaction open": steps(Session.begin_nested, lambda s: put(s, 1)),
    "catches an error": fail,
    "catches an error and writes": steps(fail, lambda s: put(s, 1)),
    "catches an error and commits": steps(lambda s: put(s, 1), fail, Session.commit),
    "hears of a failure at its commit": steps(lambda s: put(s, 1), hear_of_failure),
    "catches an error and rolls back": steps(lambda s: put(s, 1), fail, Session.rollback, lambda s: put(s, 2)),
    "has savepoints of its own": lambda s: [
        s.execute(text(one))
        for one in ("SAVEPOINT own", "INSERT INTO lent VALUES (1)", "ROLLBACK TO SAVEPOINT own", "RELEASE own")
    ],
    "ends the transaction": steps(lambda s: put(s, 1), lambda s: s.execute(text("COMMIT"))),
    "ends the transaction and commits": steps(lambda s: s.execute(text("ROLLBACK")), Session.commit),
    "ends the transaction and writes": steps(lambda s: s.execute(text("COMMIT")), lambda s: put(s, 1)),
    "does nothing": lambda session: None,
    "detaches its connection": steps(lambda s: put(s, 1), lambda s: s.connection().detach()),
    "invalidates its connection": steps(lambda s: put(s, 1), lambda s: s.connection().invalidate()),
    "writes on the connection, and rolls back": steps(
        lambda s: s.get_bind().execute(INSERT, {"number": 1}), lambda s: put(s, 2), Session.rollback
    ),
    "writes much on the connection, and rolls back": steps(
        lambda s: s.get_bind().execute(INSERT, [{"number": 1}, {"number": 2}]), lambda s: put(s, 3), Session.rollback
    ),
    "writes on the connection without parameters, and rolls back": steps(
        lambda s: s.get_bind().execute(text("INSERT INTO lent VALUES (1)"), execution_options={"no_parameters": True}),
        lambda s: put(s, 2), Session.rollback,
    ),
    "writes on the connection, and rolls a nested transaction back": steps(
        lambda s: s.get_bind().execute(INSERT, {"number": 1}), lambda s: s.get_bind().begin_nested().rollback()
    ),
}  # fmt: skip


def result_of(engine: Engine, do: Do, *, lends: bool) -> tuple[list[str], list[int]]:
    """The first error of the program or of the release, and what it has written."""
    errors: list[str] = []

    def note_errors(do: Callable[[], Any]) -> None:
        try:
            do()
        except SQLAlchemyError as error:
            errors.append(type(error).__name__)

    with engine.connect() as connection:
        transaction = connection.begin()
        connection.exec_driver_sql("SAVEPOINT ours")
        if lends:
            lend_savepoint(connection, "ours")
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            note_errors(lambda: (do(session), session.commit()))
        reclaim_savepoint(connection)
        note_errors(lambda: connection.exec_driver_sql("RELEASE SAVEPOINT ours"))
        note_errors(transaction.commit)
    with engine.begin() as connection:
        return errors[:1], sorted(connection.scalars(text("DELETE FROM lent RETURNING number")))


@pytest.mark.parametrize("does", PROGRAMS)
def test_a_session_that_does_this_acts_as_without(plain: Engine, does: str) -> None:
    usual = result_of(plain, PROGRAMS[does], lends=False)
    assert result_of(plain, PROGRAMS[does], lends=True) == usual


def test_the_savepoint_of_a_session_is_not_sent(plain: Engine, sent: list[str]) -> None:
    assert result_of(plain, PROGRAMS["commits and writes"], lends=True) == ([], [1, 2])
    assert _are_sent(sent) == ["SAVEPOINT ours", "SAVEPOINT", "RELEASE SAVEPOINT", "RELEASE SAVEPOINT ours"]


def _are_sent(sent: list[str]) -> list[str]:
    """Without SQLAlchemy's numbers."""
    return [one.partition(" sa_")[0] for one in sent]


@pytest.mark.parametrize("does", PROGRAMS)
def test_where_a_savepoint_is_set_by_other_ways_both_are_sent(plain: Engine, sent: list[str], does: str) -> None:
    usual, before = result_of(plain, PROGRAMS[does], lends=False), len(sent)
    own: Any = plain.dialect
    for name in ("do_savepoint", "do_release_savepoint", "do_rollback_to_savepoint"):
        delattr(own, name)  # so that those of its class are called, as after somebody has replaced ours
    assert result_of(plain, PROGRAMS[does], lends=True) == usual
    assert sent[:before] == sent[before:]


def test_what_a_listener_of_the_user_executes_itself_ends_the_lending(database: Database) -> None:
    engine = create_engine(database.sync_url)

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, statement: str, parameters: Any, _context: Any) -> bool:
        cursor.execute(statement, parameters)
        return True  # after that no other listener is told

    prepare_to_lend(engine.dialect)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("CREATE TABLE lent (number int UNIQUE)"))
        connection.exec_driver_sql("SAVEPOINT ours")
        lend_savepoint(connection, "ours")
        connection.execute(INSERT, {"number": 1})
        connection.begin_nested().rollback()
        assert list(connection.scalars(text("SELECT number FROM lent"))) == [1]
        connection.execute(text("DROP TABLE lent"))
    engine.dispose()


def test_a_savepoint_with_a_name_of_its_own_borrows_nothing(plain: Engine) -> None:
    with plain.connect() as connection, connection.begin():
        connection.exec_driver_sql("SAVEPOINT ours")
        lend_savepoint(connection, "ours")
        plain.dialect.do_savepoint(connection, "own")
        connection.execute(INSERT, {"number": 1})
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT own")
        assert list(connection.scalars(text("SELECT number FROM lent"))) == []


def test_after_it_was_reclaimed_all_savepoints_are_set(plain: Engine, sent: list[str]) -> None:
    with plain.connect() as connection, connection.begin():
        connection.exec_driver_sql("SAVEPOINT ours")
        lend_savepoint(connection, "ours")
        reclaim_savepoint(connection)
        connection.begin_nested().commit()
    assert _are_sent(sent) == ["SAVEPOINT ours", "SAVEPOINT", "RELEASE SAVEPOINT"]


def test_a_connection_that_borrows_nothing_sets_its_own(plain: Engine, sent: list[str]) -> None:
    with plain.connect() as lending, plain.connect() as other, lending.begin(), other.begin():
        lending.exec_driver_sql("SAVEPOINT ours")
        lend_savepoint(lending, "ours")
        other.begin_nested().commit()
    assert _are_sent(sent) == ["SAVEPOINT ours", "SAVEPOINT", "RELEASE SAVEPOINT"]
