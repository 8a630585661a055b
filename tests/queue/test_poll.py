"""A poll: everything that a worker might have to do, found by one statement."""

import datetime as dt
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from async_task import Attempt
from async_task.queue.poll import SeenQueues, poll
from outbox import act

TABLE = Attempt.__table__
LEASE = dt.timedelta(seconds=5)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def make(engine: Engine, *queues: str) -> None:
    with Session(engine) as session, session.begin():
        Attempt.create_many(session, [{"target": act, "queue": queue} for queue in queues])


@pytest.mark.parametrize("remembers", [True, False])
def test_each_queue_is_found_in_which_an_attempt_is_due(
    engine: Engine, connection: Connection, remembers: bool
) -> None:
    """Also where a collation might take two names as equal, and where a new name is between known ones."""
    names = SeenQueues() if remembers else None
    assert poll(connection, TABLE, "me", LEASE, (), names).queues == frozenset()
    make(engine, "b", "b", "B", "b ", "é")
    assert poll(connection, TABLE, "me", LEASE, (), names).queues == {"b", "B", "b ", "é"}
    make(engine, "a", "c", "😀")
    assert poll(connection, TABLE, "me", LEASE, (), names).queues == {"a", "b", "B", "b ", "c", "é", "😀"}


def test_a_poll_is_one_statement_if_no_queue_is_new(engine: Engine, connection: Connection) -> None:
    make(engine, "b", "d", "f")
    names = SeenQueues()
    poll(connection, TABLE, "me", LEASE, (), names)
    sent: list[str] = []
    event.listen(connection, "before_cursor_execute", lambda *given: sent.append(given[2]))
    assert poll(connection, TABLE, "me", LEASE, (), names).queues == {"b", "d", "f"}
    assert len(sent) == 1


def test_only_the_wanted_queues_are_polled(engine: Engine, connection: Connection) -> None:
    make(engine, "b", "d", "f")
    assert poll(connection, TABLE, "me", LEASE, ("d", "x"), SeenQueues()).queues == {"d"}
