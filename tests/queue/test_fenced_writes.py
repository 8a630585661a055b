"""Fenced writes: what is written about claims, and that nothing is written about a claim that was lost."""

import contextlib
import datetime as dt
import uuid
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, create_engine, func, select, update
from sqlalchemy.exc import DBAPIError

from async_task import Attempt, Status
from async_task.database.dialects import chains
from async_task.database.engines import Source
from async_task.error_text import describe
from async_task.errors import ClaimLost
from async_task.outcomes import SUCCESS, Decision
from async_task.queue import fenced_writes, fetch
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.fenced_writes import NotReleased, OutcomeWrite
from claims import TABLE
from clockwork import row_of
from databases import Database
from outbox import Client, events_of

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=60)
FAILED = Decision(Status.FAILED, "sold out", charged=True)


@pytest.fixture
def own(engine: Engine) -> Iterator[Engine]:
    """An engine as a lane has it."""
    made = Source(engine).private()
    yield made
    made.dispose()


@pytest.fixture
def silent(database: Database) -> Iterator[Engine]:
    """The same without listeners of the tests, so that statements are sent past SQLAlchemy."""
    plain = create_engine(database.sync_url)
    made = Source(plain).private()
    yield made
    made.dispose()
    plain.dispose()


@pytest.fixture
def claims(own: Engine, write: Write) -> list[Claim]:
    """Three, of one claim id."""
    for _ in range(3):
        write(Client, "ping")
    return fetch.claim_due(own, TABLE, ClaimRequest("me", LEASE, "default", 3, uuid.uuid4()))


def test_an_outcome_is_written_once(own: Engine, claims: list[Claim]) -> None:
    for claim, decision, status in zip(
        claims, (SUCCESS, FAILED, _again()), ("succeeded", "failed", "pending"), strict=True
    ):
        assert fenced_writes.write_outcome(own, TABLE, claim, decision, None)
        assert not fenced_writes.write_outcome(own, TABLE, claim, decision, None)
        row = row_of(own, claim.id)
        assert (row.status, row.claim_id) == (status, None)
    assert [len(events_of(own, claim.id)) for claim in claims] == [0, 1, 0]


def test_an_outcome_is_written_in_the_transaction_of_the_caller(own: Engine, claims: list[Claim]) -> None:
    with own.connect() as connection, connection.begin() as transaction:
        assert fenced_writes.write_outcome(connection, TABLE, claims[0], FAILED, describe(ValueError("no")))
        transaction.rollback()
    assert row_of(own, claims[0].id).status == Status.PENDING
    assert events_of(own, claims[0].id) == []


def test_outcomes_are_written_together_or_it_is_said_that_one_was_lost(own: Engine, claims: list[Claim]) -> None:
    first, second, third = claims
    with own.begin() as connection:
        failed = OutcomeWrite(second, FAILED, None)
        assert fenced_writes.write_outcomes(connection, TABLE, [first], [failed])
    assert [row_of(own, claim.id).status for claim in claims] == [Status.SUCCEEDED, Status.FAILED, Status.PENDING]
    _lose(own, third)
    with own.begin() as connection:
        assert not fenced_writes.write_outcomes(connection, TABLE, [third])


def test_unstarted_claims_are_released_with_the_outcomes_of_others(own: Engine, claims: list[Claim]) -> None:
    with own.begin() as connection:
        assert fenced_writes.write_outcomes(connection, TABLE, claims[:1], unstarted=claims[1:])
    assert [row_of(own, claim.id).num_attempts for claim in claims] == [1, 0, 0]


def test_locking_tells_which_claims_were_lost(own: Engine, claims: list[Claim]) -> None:
    with own.begin() as connection:
        assert fenced_writes.lock_claims(connection, TABLE, claims, LEASE) == set()
    _lose(own, claims[1])
    with own.begin() as connection:
        assert fenced_writes.lock_claims(connection, TABLE, claims, LEASE, savepoint="here") == {claims[1].id}
        connection.exec_driver_sql("RELEASE SAVEPOINT here")


@pytest.mark.only_on("postgresql")
def test_successes_are_committed_and_others_locked_at_once(own: Engine, claims: list[Claim]) -> None:
    _lose(own, claims[2])
    with own.connect() as connection:
        assert chains(connection)
        transaction = connection.begin()
        assert fenced_writes.succeed_and_lock(connection, TABLE, claims[:1], claims[1:], LEASE) == (1, {claims[2].id})
        transaction.rollback()
    assert row_of(own, claims[0].id).status == Status.SUCCEEDED


def test_released_claims_stand_where_they_stood_and_are_not_charged(own: Engine, claims: list[Claim]) -> None:
    before = [row_of(own, claim.id).due_at for claim in claims]
    _lose(own, claims[0])
    fenced_writes.release_claims(own, TABLE, claims)
    rows = [row_of(own, claim.id) for claim in claims]
    assert [(row.claim_id is None, row.num_attempts) for row in rows] == [(False, 1), (True, 0), (True, 0)]
    assert [row.due_at for row in rows] == before


def test_claims_are_released_into_another_queue(own: Engine, claims: list[Claim]) -> None:
    _lose(own, claims[0])
    assert fenced_writes.release_to_queue(own, TABLE, claims, "aside") == 2
    rows = [row_of(own, claim.id) for claim in claims]
    assert [(row.queue, row.num_attempts) for row in rows] == [("default", 1), ("aside", 0), ("aside", 0)]


@pytest.mark.parametrize("started", [True, False])
def test_an_abandoned_claim_is_released_unless_its_row_is_locked(
    own: Engine, engine: Engine, claims: list[Claim], started: bool
) -> None:
    is_locked = engine.dialect.name != "sqlite"  # which locks no rows
    with engine.connect() as connection, connection.begin() as transaction:
        if is_locked:
            connection.execute(select(TABLE.c.id).where(TABLE.c.id == claims[0].id).with_for_update()).all()
        else:
            transaction.rollback()
        done = fenced_writes.release_abandoned(own, TABLE, claims, started=started)
    assert done == {claim.id for claim in (claims[1:] if is_locked else claims)}
    row = row_of(own, claims[2].id)
    assert (row.claim_id, row.num_attempts) == (None, int(started))
    assert [event.kind for event in events_of(own, row.id)] == (["parked"] if started else [])


def test_a_parked_attempt_is_due_later_and_says_why_once(own: Engine, claims: list[Claim]) -> None:
    claim = claims[0]
    assert fenced_writes.park(own, TABLE, claim, dt.timedelta(0), "no key", started=False)
    row = row_of(own, claim.id)
    assert (row.claim_id, row.num_attempts, row.last_error) == (None, 0, "parked: no key")
    assert row.due_at > row_of(own, claims[1].id).due_at
    with own.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == claim.id).values(due_at=row.created_at))
    (again,) = fetch.claim_due(own, TABLE, ClaimRequest("me", LEASE, "default", 1, uuid.uuid4()))
    assert fenced_writes.park(own, TABLE, again, dt.timedelta(0), "no key", started=True)
    assert row_of(own, claim.id).num_attempts == 1
    assert len(events_of(own, claim.id)) == 1


def test_the_lease_of_a_claim_that_is_still_ours_is_extended(own: Engine, claims: list[Claim]) -> None:
    _lose(own, claims[1])
    before = [row_of(own, claim.id).lease_until for claim in claims]
    with own.begin() as connection:
        for claim in claims[:2]:
            fenced_writes.extend_lease(connection, TABLE, claim, LEASE * 9)
    after = [row_of(own, claim.id).lease_until for claim in claims]
    assert [now > then for now, then in zip(after, before, strict=True)] == [True, False, False]


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("commits", [True, False])
def test_a_savepoint_is_released_and_a_success_written_at_once(
    silent: Engine, claims: list[Claim], commits: bool
) -> None:
    with silent.connect() as connection:
        connection.begin()
        connection.exec_driver_sql("SAVEPOINT here")
        fenced_writes.release_and_succeed(connection, TABLE, claims[0], "here", commits=commits)
        assert (row_of(silent, claims[0].id).status == Status.SUCCEEDED) is commits
        connection.commit()
    assert row_of(silent, claims[0].id).status == Status.SUCCEEDED


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("commits", [True, False])
def test_of_a_lost_claim_nothing_is_committed(silent: Engine, claims: list[Claim], commits: bool) -> None:
    _lose(silent, claims[0])
    with silent.connect() as connection:
        connection.begin()
        connection.execute(update(TABLE).where(TABLE.c.id == claims[1].id).values(last_error="by the target"))
        connection.exec_driver_sql("SAVEPOINT here")
        with pytest.raises(ClaimLost):
            fenced_writes.release_and_succeed(connection, TABLE, claims[0], "here", commits=commits)
        connection.commit()
    assert [row_of(silent, one.id).status for one in claims] == [Status.PENDING] * 3
    assert row_of(silent, claims[1].id).last_error is None


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize("ends", ["COMMIT", "SELECT 1 / 0"])
def test_after_a_savepoint_that_is_not_released_no_success_is_written(
    silent: Engine, claims: list[Claim], ends: str
) -> None:
    with silent.connect() as connection:
        connection.begin()
        connection.exec_driver_sql("SAVEPOINT here")
        with contextlib.suppress(DBAPIError):
            connection.exec_driver_sql(ends)
        with pytest.raises(NotReleased) as raised:
            fenced_writes.release_and_succeed(connection, TABLE, claims[0], "here", commits=True)
        assert isinstance(raised.value.error, DBAPIError)
        connection.rollback()
    assert row_of(silent, claims[0].id).status == Status.PENDING


@pytest.mark.only_on("postgresql")
def test_if_the_connection_was_lost_before_its_commit_the_database_s_error_is_raised(
    silent: Engine, claims: list[Claim]
) -> None:
    with silent.connect() as connection:
        transaction = connection.begin()
        connection.exec_driver_sql("SAVEPOINT here")
        pid = connection.scalar(select(func.pg_backend_pid()))
        with silent.connect() as other:
            other.execute(select(func.pg_terminate_backend(pid, 10_000)))
        with pytest.raises(DBAPIError) as raised:
            fenced_writes.release_and_succeed(connection, TABLE, claims[0], "here", commits=True)
        assert raised.value.connection_invalidated
        transaction.rollback()


@pytest.mark.only_on("postgresql")
def test_the_server_keeps_the_plans_for_one_attempt(own: Engine) -> None:
    """Claim, lock and outcome: planned anew at each execution, they cost the server twice as much."""
    with own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        Attempt.create_many(connection, [{"target": Client, "method_name": "ping"}] * 5_000)
        # Rows that are old stand in any order.
        connection.exec_driver_sql("UPDATE async_task_attempts SET id = CAST(md5(random()::text) AS uuid)")
        connection.exec_driver_sql("VACUUM ANALYZE async_task_attempts")
    with own.connect() as connection:
        for _ in range(20):
            (claim,) = fetch.claim_due(connection, TABLE, ClaimRequest("me", LEASE, "default", 1, uuid.uuid4()))
            with connection.begin():
                assert fenced_writes.lock_claims(connection, TABLE, [claim], LEASE) == set()
                assert fenced_writes.write_outcomes(connection, TABLE, [claim])
        plans = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement ~ 'async_task_attempts'"
        assert [tuple(row) for row in connection.exec_driver_sql(plans)] == [(10, 5)] * 3


def _lose(own: Engine, claim: Claim) -> None:
    """As if another worker had recovered and claimed it."""
    with own.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == claim.id).values(claim_id=uuid.uuid4()))


def _again() -> Decision:
    return Decision(Status.PENDING, "", dt.timedelta(seconds=1))
