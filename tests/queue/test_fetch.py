"""Claiming: which attempts a request is given, and what is counted."""

import datetime as dt
import enum
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import OperationalError

from async_task import Attempt, Busy, NotDue, NotPending, Status
from async_task.database.engines import Source
from async_task.outcomes import Expired
from async_task.queue import claim_statements, fenced_writes, fetch
from async_task.queue.claim import Claim, ClaimRequest
from claims import TABLE, claimed, seconds_from_now
from clockwork import let_pass, row_of
from databases import Database
from outbox import Client, effect

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=60)


class Queues(str, enum.Enum):  # noqa: UP042 - its members format as other texts than they are
    """As an application may name its queues."""

    OTHER = "other"


@pytest.fixture
def own(engine: Engine) -> Iterator[Engine]:
    """An engine as a lane has it."""
    made = Source(engine).private()
    yield made
    made.dispose()


def test_a_claim_takes_the_most_urgent_attempts_first_and_counts_their_starts(own: Engine, write: Write) -> None:
    late, urgent, normal = (write(Client, "ping", priority=priority) for priority in (9, 0, 5))
    write(Client, "ping", queue="other")
    write(Client, "ping", scheduled_at=seconds_from_now(60))
    request = _request(2)
    claims = fetch.claim_due(own, TABLE, request)
    assert [claim.id for claim in claims] == [urgent.id, normal.id]
    assert {(claim.number, claim.claim_id) for claim in claims} == {(1, request.claim_id)}
    row = row_of(own, urgent.id)
    assert (row.claimed_by, row.num_attempts, row.claim_id) == ("me", 1, request.claim_id)
    assert [claim.id for claim in fetch.claim_due(own, TABLE, _request(2))] == [late.id]
    assert fetch.claim_due(own, TABLE, _request(2)) == []


def test_suspects_are_claimed_only_by_a_request_for_them(own: Engine, write: Write) -> None:
    suspect, other = write(Client, "ping").id, write(Client, "ping").id
    with own.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == suspect).values(num_attempts=1, num_crashes=1))
    assert [claim.id for claim in fetch.claim_due(own, TABLE, _request(9))] == [other]
    assert [claim.id for claim in fetch.claim_due(own, TABLE, _request(9, suspects=True))] == [suspect]


def test_a_request_names_the_targets_that_it_wants_or_the_calls_that_it_does_not(own: Engine, write: Write) -> None:
    ping, other = write(Client, "ping"), write(effect)
    besides = _request(9, besides=((ping.target, "ping"), (ping.target, "fail")))
    assert [claim.id for claim in fetch.claim_due(own, TABLE, besides)] == [other.id]
    assert [claim.id for claim in fetch.claim_due(own, TABLE, _request(9, targets=(ping.target, "none")))] == [ping.id]


def test_what_was_created_or_started_after_a_batch_began_is_left_out(own: Engine, write: Write) -> None:
    first = write(Client, "ping")
    let_pass(own, 10)
    began = row_of(own, first.id).created_at + dt.timedelta(seconds=5)
    second = write(Client, "ping", scheduled_at=began - LEASE)
    (claim,) = fetch.claim_due(own, TABLE, _request(9, began=began))
    assert claim.id == first.id
    fenced_writes.park(own, TABLE, claim, dt.timedelta(0), "to be due again", started=True)
    with own.begin() as connection:
        connection.execute(update(TABLE).values(due_at=began))
    assert fetch.claim_due(own, TABLE, _request(9, began=began)) == []
    assert {claim.id for claim in fetch.claim_due(own, TABLE, _request(9))} == {first.id, second.id}


@pytest.mark.only_on("postgresql")
def test_marks_are_where_a_claim_begins_in_each_priority(own: Engine, write: Write) -> None:
    first, second, urgent = write(Client, "ping"), write(Client, "ping"), write(Client, "ping", priority=1)
    marks: list[Any] = [None] * 10
    marks[0] = row_of(own, second.id).due_at
    marks[1] = row_of(own, urgent.id).due_at - LEASE
    marks = [mark or marks[1] for mark in marks]
    claims = fetch.claim_due(own, TABLE, _request(9, marks=tuple(marks)))
    assert [claim.id for claim in claims] == [second.id, urgent.id]
    assert [claim.id for claim in fetch.claim_due(own, TABLE, _request(9))] == [first.id]


def test_in_a_transaction_of_the_caller_a_claim_ends_with_it(own: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    with own.connect() as connection, connection.begin() as transaction:
        assert len(fetch.claim_due(connection, TABLE, _request(1))) == 1
        transaction.rollback()
    assert row_of(own, attempt.id).num_attempts == 0
    with own.connect() as connection:
        assert len(fetch.claim_due(connection, TABLE, _request(1))) == 1
    assert row_of(own, attempt.id).num_attempts == 1


def test_an_attempt_is_claimed_by_its_id_or_the_reason_is_told(own: Engine, write: Write) -> None:
    ready, later = write(Client, "ping").id, write(Client, "ping", scheduled_at=seconds_from_now(60)).id
    late = write(Client, "ping", expires_at=seconds_from_now(1)).id
    let_pass(own, 2)
    claim = _claim_one(own, ready)
    assert isinstance(claim, Claim)
    busy = _claim_one(own, ready)
    assert isinstance(busy, Busy)
    assert busy.by == "me"
    assert isinstance(_claim_one(own, later), NotDue)
    assert isinstance(_claim_one(own, late), Expired)
    assert _claim_one(own, late) == NotPending(late, Status.EXPIRED)
    nobody = uuid.uuid4()
    assert _claim_one(own, nobody) == NotPending(nobody, None)


def test_a_claim_whose_commit_was_not_answered_is_found_by_its_id(own: Engine, write: Write) -> None:
    for _ in range(3):
        write(Client, "ping")
    request = _request(2)
    claims = fetch.claim_due(own, TABLE, request)
    assert fetch.claims_under(own, TABLE, request.claim_id) == claims
    assert fetch.claims_under(own, TABLE, uuid.uuid4()) == []


def test_a_claim_has_what_its_row_has_also_in_fields_that_are_not_read_with_it(own: Engine, write: Write) -> None:
    one, suspect, other = (write(Client, "ping", queue="other") for _ in range(3))
    with own.begin() as connection:
        counted = update(TABLE).where(TABLE.c.id == suspect.id)
        connection.execute(counted.values(num_attempts=4, num_errors=1, num_crashes=2, num_losses=1))
    for attempt, counts, options in (
        (one, (0, 0), {"besides": ((one.target, "fail"),)}),
        (suspect, (2, 1), {"suspects": True}),
        (other, (0, 0), {}),
    ):
        request = _request(1, queue=Queues.OTHER, **options)
        (claim,) = fetch.claim_due(own, TABLE, request)
        assert (claim.id, claim.queue, claim.claim_id) == (attempt.id, "other", request.claim_id)
        assert type(claim.queue) is str
        assert (claim.num_crashes, claim.num_losses) == counts
        assert fetch.claims_under(own, TABLE, request.claim_id) == [claim]


def test_lost_claims_are_those_of_the_worker_whose_lease_is_past(own: Engine, write: Write) -> None:
    lost = claimed(own, write(Client, "ping").id, "me")
    claimed(own, write(Client, "ping").id, "other")
    let_pass(own, 2)
    claimed(own, write(Client, "ping").id, "me", lease=LEASE)
    assert [claim.id for claim in fetch.lost_claims(own, TABLE, "me")] == [lost.id]


@pytest.fixture
def plain(database: Database) -> Iterator[Engine]:
    """An engine without the listeners of the tests."""
    made = create_engine(database.sync_url)
    yield made
    made.dispose()


@pytest.mark.slow
def test_a_claim_on_a_connection_is_committed_and_the_connection_free(plain: Engine, write: Write) -> None:
    for _ in range(12):  # by then psycopg has prepared it
        attempt = write(Client, "ping")
        with plain.connect() as connection:
            assert [one.id for one in fetch.claim_due(connection, TABLE, _request(1))] == [attempt.id]
            assert not connection.in_transaction()
            assert row_of(plain, attempt.id).num_attempts == 1
            assert fetch.claim_due(connection, TABLE, _request(1)) == []
            assert connection.scalar(text("SELECT 1")) == 1


@pytest.mark.only_on("postgresql")
def test_after_a_claim_that_fails_its_connection_is_another_one(plain: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    with plain.connect() as connection:
        connection.exec_driver_sql("SET statement_timeout = '100ms'")
        before = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.commit()
        with plain.begin() as other:
            other.exec_driver_sql("LOCK TABLE async_task_attempts")
            with pytest.raises(OperationalError, match="statement timeout"):
                fetch.claim_due(connection, TABLE, _request(1))
        assert [one.id for one in fetch.claim_due(connection, TABLE, _request(1))] == [attempt.id]
        assert connection.scalar(text("SELECT pg_backend_pid()")) != before


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("kind", ["begin", "commit"])
def test_listeners_to_transactions_hear_of_a_claim(plain: Engine, write: Write, kind: str) -> None:
    heard: list[Any] = []
    event.listen(plain, kind, heard.append)
    attempt = write(Client, "ping")
    with plain.connect() as connection:
        assert [one.id for one in fetch.claim_due(connection, TABLE, _request(1))] == [attempt.id]
        assert heard == [connection]


def test_what_is_the_same_in_each_claim_is_no_parameter() -> None:
    claim = claim_statements.claim(TABLE, LEASE, claim_statements.Shape(), 4)
    assert set(claim.compile(dialect=postgresql.dialect()).params) == {"a_queue", "a_claim", "a_worker"}


def _request(limit: int, queue: str = "default", **options: Any) -> ClaimRequest:
    return ClaimRequest("me", LEASE, queue, limit, uuid.uuid4(), **options)


def _claim_one(own: Engine, attempt_id: uuid.UUID) -> object:
    return fetch.claim_one(own, TABLE, "me", LEASE, attempt_id, uuid.uuid4())
