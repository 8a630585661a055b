"""Recovery: which claims are orphans, and what becomes of them."""

import datetime as dt
import struct
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, update

from async_task import AsyncTask, Attempt, Retried, Status, SweepReport
from async_task.database.engines import Source
from async_task.queue.ledger import Ledger, _file_of, forget
from async_task.queue.recovery import CRASH_LIMIT, SILENT, must_wait_for_heartbeats, recover_claim, recover_orphans
from async_task.queue.sweep import sweep
from async_task.queue.workers import leave_claims, worker_name
from async_task.schema.tables import Worker
from claims import GONE, TABLE, beat_ago, claimed, orphan, seconds_from_now
from clockwork import forget_beats, let_pass, row_of
from conftest import by_one_door
from outbox import Client, events_of

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=1)


@pytest.mark.slow
def test_an_orphan_is_released_where_it_stood_in_the_queue(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = orphan(engine, write)
    before = row_of(engine, attempt.id)
    assert app.sweep() == SweepReport(recovered=1)
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.claimed_by, row.lease_until) == (Status.PENDING, None, None, None)
    assert (row.num_attempts, row.num_losses, row.num_crashes, row.num_errors) == (1, 1, 0, 0)
    assert row.due_at == before.due_at
    assert [event.kind for event in events_of(engine, attempt.id)] == ["loss"]


@pytest.mark.slow
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
def test_what_a_stopped_worker_could_not_release_is_released_uncharged(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    left = orphan(engine, write, worker="stopped")
    lost = orphan(engine, write, worker="lost")
    for name in ("stopped", "lost"):
        beat_ago(engine, name, dt.timedelta(0))
    leave_claims(engine, TABLE, "stopped", LEASE)
    assert len(recover_orphans(engine, TABLE, LEASE)) == 1
    row = row_of(engine, left.id)
    assert (row.status, row.claim_id, row.num_attempts, row.num_crashes) == (Status.PENDING, None, 1, 0)
    assert [event.kind for event in events_of(engine, left.id)] == ["parked"]
    assert row_of(engine, lost.id).claim_id is not None  # its worker has had a heartbeat


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
    assert [row_of(engine, one.id).num_losses for one in (living, dead, reused)] == [0, 1, 1]


@pytest.mark.long
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


def test_at_the_third_crash_in_a_row_an_attempt_fails(engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    for status in (Status.PENDING, Status.PENDING, Status.FAILED):
        claim = claimed(engine, attempt.id)
        assert recover_claim(engine, TABLE, claim, "its process was killed by SIGSEGV") == status
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes, row.num_losses) == (Status.FAILED, 3, 3, 0)
    assert row.completed_at is not None
    assert row.last_error.startswith("crashed: 3 starts in a row")
    assert [event.kind for event in events_of(engine, attempt.id)] == ["crash"] * 3


@pytest.mark.slow
def test_any_number_of_losses_ends_no_attempt_and_leaves_its_crashes_as_they_are(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "ping")
    for _ in range(2):
        recover_claim(engine, TABLE, claimed(engine, attempt.id), "its process was killed by SIGSEGV")
    for number in range(CRASH_LIMIT + 1):
        claimed(engine, attempt.id)
        let_pass(engine, 2)
        assert app.sweep() == SweepReport(recovered=1)
        row = row_of(engine, attempt.id)
        assert (row.status, row.num_attempts, row.num_crashes) == (Status.PENDING, 3 + number, 2)
        assert row.num_losses == number + 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fail", "poll"])
@by_one_door
def test_an_outcome_ends_a_row_of_crashes_and_losses(app: AsyncTask, engine: Engine, write: Write, method: str) -> None:
    attempt = write(Client, method)
    recover_claim(engine, TABLE, claimed(engine, attempt.id), "its process was killed by SIGSEGV")
    claimed(engine, attempt.id)
    let_pass(engine, 2)
    app.sweep()
    row = row_of(engine, attempt.id)
    assert (row.num_crashes, row.num_losses) == (1, 1)
    engine.dispose()  # the quarantine forks: SQLite's file must not be open here
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes, row.num_losses) == (Status.PENDING, 3, 0, 0)


def test_a_page_of_orphans_is_bounded(engine: Engine, write: Write) -> None:
    for _ in range(3):
        claimed(engine, write(Client, "ping").id, GONE)
    let_pass(engine, 2)
    assert len(recover_orphans(engine, TABLE, LEASE, limit=2)) == 2
    assert len(recover_orphans(engine, TABLE, LEASE, limit=2)) == 1


@pytest.mark.slow
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
    assert (row.status, row.claimed_by, row.num_losses) == (Status.PENDING, GONE, 0)


# Blame


def lost_in_a_call(engine: Engine, write: Write, worker: str) -> tuple[Attempt, Attempt, Attempt]:
    """Of a worker that is lost: one whose call ran, one whose call had returned, one that had not begun."""
    ran, returned, unstarted = (orphan(engine, write, worker=worker) for _ in range(3))
    ledger = Ledger(worker)
    ledger.open()
    ledger.begin(ran.id)
    ledger.begin(returned.id)
    ledger.returned(returned.id)
    ledger._memory[:8] = bytes(8)  # type: ignore[index]  # its last sign of life was at the start of the machine
    return ran, returned, unstarted


def charges(engine: Engine, attempt: Attempt) -> tuple[int, int, int]:
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.num_crashes, row.num_errors) == (Status.PENDING, None, 0, 0)
    return row.num_attempts, row.num_losses, len(events_of(engine, attempt.id))


@pytest.mark.slow
def test_of_a_lost_worker_only_calls_that_ran_are_charged_and_only_starts_that_happened_are_counted(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    worker = worker_name()
    ran, returned, unstarted = lost_in_a_call(engine, write, worker)
    try:
        assert app.sweep() == SweepReport(recovered=3)
    finally:
        forget(worker)
    assert charges(engine, ran) == (1, 1, 1)
    assert charges(engine, returned) == (1, 0, 1)
    assert charges(engine, unstarted) == (0, 0, 0)


@by_one_door
def test_a_worker_that_lives_and_cannot_reach_the_database_is_charged_nothing(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    worker = worker_name()
    ran, _, _ = lost_in_a_call(engine, write, worker)
    try:
        file = _file_of(worker)
        content = bytearray(file.read_bytes())
        content[:8] = struct.pack("<d", time.monotonic())
        file.write_bytes(content)
        # A sweep might wait for heartbeats, of which there are none.
        assert len(recover_orphans(engine, TABLE, LEASE)) == 3
    finally:
        forget(worker)
    assert charges(engine, ran) == (1, 0, 1)
    assert row_of(engine, ran.id).last_error.startswith(SILENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "other", "is_gone"),
    [
        (1, "1", True),  # its id belongs to a later process now
        (0, "another boot", False),
        (2, "1", False),  # the namespace of a container
    ],
)
@by_one_door
def test_a_sweep_recovers_at_once_what_ended_processes_of_this_machine_have_left_as_far_as_it_can_see_them(
    app: AsyncTask, engine: Engine, write: Write, index: int, other: str, is_gone: bool
) -> None:
    beat_ago(engine, "dead", dt.timedelta(0))
    attempt = write(Client, "ping")
    claimed(engine, attempt.id, "dead", lease=dt.timedelta(minutes=10))
    with engine.begin() as connection:
        started = connection.scalar(select(Worker.process_started).where(Worker.name == "dead"))
        assert started is not None
        parts = started.split(":")
        parts[index] = other
        connection.execute(update(Worker).where(Worker.name == "dead").values(process_started=":".join(parts)))
    assert app.sweep() == SweepReport(recovered=int(is_gone))
    with engine.connect() as connection:
        assert (connection.scalar(select(Worker.name).where(Worker.name == "dead")) is None) == is_gone
