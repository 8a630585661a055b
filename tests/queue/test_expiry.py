"""Expiring: what is past its `expires_at` and not claimed."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, select, text

from async_task import AsyncTask, Attempt, Status, SweepReport
from async_task.queue.expiry import expire_one, expire_overdue
from async_task.queue.sweep import sweep
from claims import TABLE, claimed, seconds_from_now
from clockwork import let_pass, row_of
from conftest import by_one_door
from outbox import Client, events_of

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=1)


@by_one_door
def test_exactly_the_unclaimed_attempts_past_their_expires_at_are_expired(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    past, future = _late(write), write(Client, "ping", expires_at=seconds_from_now(60))
    never, running = write(Client, "ping"), _late(write)
    claimed(engine, running.id, lease=dt.timedelta(seconds=60))
    let_pass(engine, 2)
    assert app.sweep() == SweepReport(expired=1)
    states = [row_of(engine, one.id).status for one in (past, future, never, running)]
    assert states == [Status.EXPIRED, Status.PENDING, Status.PENDING, Status.PENDING]
    assert row_of(engine, past.id).num_attempts == 0


def test_a_page_is_bounded(engine: Engine, write: Write) -> None:
    for _ in range(3):
        _late(write)
    let_pass(engine, 2)
    assert len(expire_overdue(engine, TABLE, limit=2)) == 2
    assert len(expire_overdue(engine, TABLE, limit=2)) == 1


def test_one_attempt_is_expired_by_its_id_unless_its_row_is_locked(engine: Engine, write: Write) -> None:
    attempt = _late(write)
    let_pass(engine, 2)
    with engine.begin() as other, engine.connect() as connection:
        other.execute(select(TABLE.c.id).where(TABLE.c.id == attempt.id).with_for_update()).all()
        if engine.dialect.name != "sqlite":  # which locks no rows
            assert expire_one(connection, TABLE, attempt.id) is None
    with engine.begin() as connection:
        assert expire_one(connection, TABLE, attempt.id) is not None
    assert row_of(engine, attempt.id).status == Status.EXPIRED
    assert [event.kind for event in events_of(engine, attempt.id)] == ["expired"]


@pytest.mark.slow
def test_one_row_that_cannot_be_expired_does_not_stop_the_rest(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempts = [_late(write, queue="bad" if number == 2 else "good") for number in range(6)]
    let_pass(engine, 2)
    with _refusing_to_expire_bad_ones(engine):
        assert app.sweep() == SweepReport(expired=5)
        assert sweep(engine, TABLE, LEASE, page=2) == SweepReport()
    assert row_of(engine, attempts[2].id).status == Status.PENDING
    assert app.sweep() == SweepReport(expired=1)


def _late(write: Write, **options: object) -> Attempt:
    """It expires in one second."""
    return write(Client, "ping", expires_at=seconds_from_now(1), **options)


REFUSING = {
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.status = 'expired' AND "
        "NEW.queue = 'bad' THEN RAISE EXCEPTION 'refused'; END IF; RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    "mysql": [
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts FOR EACH ROW IF NEW.status = 'expired' AND "
        "NEW.queue = 'bad' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'refused'; END IF"
    ],
    "sqlite": [
        "CREATE TRIGGER refuse BEFORE UPDATE ON async_task_attempts WHEN NEW.status = 'expired' AND NEW.queue = 'bad' "
        "BEGIN SELECT RAISE(ABORT, 'refused'); END"
    ],
}
ALLOWING = {
    "postgresql": "DROP FUNCTION refuse CASCADE",
    "mysql": "DROP TRIGGER refuse",
    "sqlite": "DROP TRIGGER refuse",
}


@contextlib.contextmanager
def _refusing_to_expire_bad_ones(engine: Engine) -> Iterator[None]:
    with engine.begin() as connection:
        for statement in REFUSING[engine.dialect.name]:
            connection.execute(text(statement))
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.execute(text(ALLOWING[engine.dialect.name]))
