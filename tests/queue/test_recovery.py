"""Recovery: which claims are orphans, and what becomes of them."""

import datetime as dt
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, update

from async_task import AsyncTask, Attempt, Retried, Status, SweepReport
from async_task.database.engines import Source
from async_task.queue.recovery import must_wait_for_heartbeats, recover_orphans
from async_task.queue.sweep import sweep
from async_task.schema.tables import Worker
from claims import GONE, TABLE, beat_ago, claimed, orphan, seconds_from_now
from clockwork import forget_beats, let_pass, row_of
from conftest import by_one_door
from outbox import Client, events_of

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=1)


def test_an_orphan_is_released_where_it_stood_in_the_queue(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = orphan(engine, write)
    before = row_of(engine, attempt.id)
    assert app.sweep() == SweepReport(recovered=1)
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.claimed_by, row.lease_until) == (Status.PENDING, None, None, None)
    assert (row.num_attempts, row.num_crashes, row.num_errors) == (1, 1, 0)
    assert row.due_at == before.due_at
    assert [event.kind for event in events_of(engine, attempt.id)] == ["crash"]


@pytest.mark.only_on("postgresql", "mysql")
def test_a_claim_whose_row_is_locked_is_no_orphan(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = orphan(engine, write)
    with engine.begin() as connection:
        connection.execute(select(TABLE.c.id).where(TABLE.c.id == attempt.id).with_for_update(key_share=True)).all()
        assert app.sweep() == SweepReport()
    assert app.sweep() == SweepReport(recovered=1)


@by_one_door
def test_a_claim_whose_worker_has_a_heartbeat_is_no_orphan(app: AsyncTask, engine: Engine, write: Write) -> None:
    orphan(engine, write, worker="busy")
    beat_ago(engine, "busy", LEASE * 0)
    assert sweep(engine, TABLE, dt.timedelta(seconds=30)) == SweepReport()
    forget_beats(engine)
    assert app.sweep() == SweepReport(recovered=1)


@by_one_door
def test_a_claim_whose_lease_is_live_is_no_orphan(app: AsyncTask, engine: Engine, write: Write) -> None:
    claimed(engine, write(Client, "ping").id, lease=dt.timedelta(seconds=60))
    assert app.sweep() == SweepReport()
    let_pass(engine, 61)
    assert app.sweep() == SweepReport(recovered=1)


@pytest.mark.only_on("sqlite")
@by_one_door
def test_on_sqlite_a_claim_is_an_orphan_only_when_its_process_has_died(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    names = ("living", "dead", "reused")
    living, dead, reused = (orphan(engine, write, worker=name) for name in names)
    for name in names:
        beat_ago(engine, name, LEASE * 10)
    with engine.begin() as connection:
        connection.execute(update(Worker).where(Worker.name == "dead").values(pid=2**22 + 1))
        connection.execute(update(Worker).where(Worker.name == "reused").values(process_started="another"))
    assert sweep(engine, TABLE, LEASE, page=1) == SweepReport(recovered=2)  # the living one does not block its page
    assert app.sweep() == SweepReport()
    assert [row_of(engine, one.id).num_crashes for one in (living, dead, reused)] == [0, 1, 1]


@pytest.mark.only_on("postgresql", "mysql")
@by_one_door
def test_while_the_server_is_younger_than_a_lease_attempts_expire_and_no_claim_is_recovered(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan(engine, write)
    write(Client, "ping", expires_at=seconds_from_now(1))
    let_pass(engine, 2)
    with monkeypatch.context() as young:
        young.setattr("async_task.queue.recovery.server_uptime", lambda connection: 0.9)
        assert app.sweep() == SweepReport(expired=1)
    assert app.sweep() == SweepReport(recovered=1)


@pytest.mark.only_on("postgresql", "mysql")
def test_while_a_connection_is_younger_than_a_lease_the_orphans_that_it_finds_are_not_recovered_yet(
    engine: Engine, write: Write
) -> None:
    lease, own = dt.timedelta(minutes=1), Source(engine).private()
    assert not must_wait_for_heartbeats(own, TABLE, lease)
    orphan(engine, write)
    assert must_wait_for_heartbeats(own, TABLE, lease)
    with own.connect() as connection:
        connection.info["async_task.connected"] -= lease.total_seconds()
    assert not must_wait_for_heartbeats(own, TABLE, lease)
    own.dispose()


def test_at_the_third_crash_in_a_row_an_attempt_fails(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    for expected in (SweepReport(recovered=1), SweepReport(recovered=1), SweepReport(crashed=1)):
        claimed(engine, attempt.id)
        let_pass(engine, 2)
        assert app.sweep() == expected
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.FAILED, 3, 3)
    assert row.completed_at is not None
    assert row.last_error.startswith("crashed: 3 starts in a row")
    assert [event.kind for event in events_of(engine, attempt.id)] == ["crash"] * 3


@pytest.mark.parametrize("method", ["fail", "poll"])
@by_one_door
def test_an_outcome_ends_a_row_of_crashes(app: AsyncTask, engine: Engine, write: Write, method: str) -> None:
    attempt = write(Client, method)
    for crashes in (1, 2):
        claimed(engine, attempt.id)
        let_pass(engine, 2)
        app.sweep()
        assert row_of(engine, attempt.id).num_crashes == crashes
    engine.dispose()  # the quarantine forks: SQLite's file must not be open here
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.PENDING, 3, 0)


def test_a_page_of_orphans_is_bounded(engine: Engine, write: Write) -> None:
    for _ in range(3):
        claimed(engine, write(Client, "ping").id, GONE)
    let_pass(engine, 2)
    assert recover_orphans(engine, TABLE, LEASE, limit=2) == (2, 0)
    assert recover_orphans(engine, TABLE, LEASE, limit=2) == (1, 0)


def test_one_orphan_that_cannot_be_recovered_does_not_stop_the_rest(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempts = [orphan(engine, write) for _ in range(7)]
    bad = attempts[3]
    with engine.begin() as connection:  # a start that was never counted cannot have been lost: a CHECK refuses it
        connection.execute(update(TABLE).where(TABLE.c.id == bad.id).values(num_attempts=0))
    assert app.sweep() == SweepReport(recovered=6)
    assert sweep(engine, TABLE, LEASE, page=2) == SweepReport()
    row = row_of(engine, bad.id)
    assert (row.status, row.claimed_by, row.num_crashes) == (Status.PENDING, GONE, 0)
