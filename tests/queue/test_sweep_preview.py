"""The preview of a sweep: what it says is what the sweep then does, and it changes nothing."""

import datetime as dt
import socket
import subprocess
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, ConfigurationError, JobEvent, PlannedChange, SweepReport
from async_task.queue.ledger import Ledger
from async_task.queue.processes import process_started
from async_task.queue.workers import leave_claims, worker_name
from async_task.schema.tables import Worker
from claims import TABLE, beat_ago, claimed, orphan, seconds_from_now
from clockwork import let_pass, row_of
from conftest import by_one_door
from operations import HOUR, Batch, Provider, World
from outbox import Client

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=1)


def planned(app: AsyncTask, **options: Any) -> dict[str, PlannedChange]:
    found = app.preview_sweep(**options)
    assert len({one.id for one in found.changes}) == len(found.changes), "one record a row"
    return {one.id: one for one in found.changes}


def everything(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        rows = [connection.execute(select(one).order_by(next(iter(one.primary_key)))).all() for one in
                (TABLE, Worker.__table__, JobEvent.__table__)]  # fmt: skip
    return [tuple(map(tuple, some)) for some in rows]


@pytest.mark.slow
def test_each_row_is_named_with_the_action_the_reason_and_since_when_and_the_sweep_does_just_that(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    lost = orphan(engine, write)
    both = write(Client, "ping", expires_at=seconds_from_now(60), queue="mail")
    claimed(engine, both.id, "gone:2:0")
    let_pass(engine, 61)
    overdue = write(Client, "ping", expires_at=seconds_from_now(1))
    stopped = orphan(engine, write, worker="stopped")
    beat_ago(engine, "stopped", LEASE)
    leave_claims(engine, TABLE, "stopped", LEASE)
    first, second = (write(Client, "ping", order_key="a") for _ in range(2))
    beat_ago(engine, "long silent", dt.timedelta(hours=25))
    kept = write(Client, "ping")
    before = everything(engine)
    found = planned(app)
    assert everything(engine) == before
    assert {one: (found[one].action, found[one].reason) for one in found} == {
        str(lost.id): ("recovered", "the process gone:1:0 was lost: a loss is counted"),
        str(both.id): (
            "expired", "the process gone:2:0 was lost: a loss is counted, and it is past its expires_at"
        ),
        str(overdue.id): ("expired", "it is past its expires_at"),
        str(stopped.id): (
            "parked", "the worker stopped was stopped, and could not release it: nothing is charged"
        ),
        str(first.id): ("released", "its turn has come in its order key: it is the first that has come"),
        "long silent": ("forgotten", "it has no claims, and had no heartbeat for a day: its row is deleted"),
    }  # fmt: skip
    assert {str(kept.id), str(second.id)}.isdisjoint(found)
    assert found[str(lost.id)].since == row_of(engine, lost.id).lease_until
    assert found[str(overdue.id)].since == row_of(engine, overdue.id).expires_at
    mail = found[str(both.id)]
    assert (mail.kind, mail.target, mail.method, mail.queue, mail.call) == (
        "attempt", "test.client", "ping", "mail", "test.client.ping",
    )  # fmt: skip
    worker = found["long silent"]
    assert (worker.kind, worker.target, worker.method, worker.queue) == ("worker", None, None, None)
    report = app.sweep()
    assert report == SweepReport(recovered=3, expired=2)
    _assert_done(engine, found)
    assert app.preview_sweep().changes == ()


def _assert_done(engine: Engine, found: dict[str, PlannedChange]) -> None:
    for one in (one for one in found.values() if one.kind == "attempt"):
        row = row_of(engine, uuid.UUID(one.id))
        assert row.claim_id is None
        assert (row.status == "expired") == (one.action == "expired")
        assert (row.num_losses == 1) == ("a loss is counted" in one.reason)
        assert row.released
    with engine.connect() as connection:
        names = set(connection.scalars(select(Worker.name)))
    assert names.isdisjoint(found)


@pytest.mark.slow
@by_one_door
def test_claims_of_a_process_of_this_machine_that_has_ended_are_foreseen_before_their_leases_are_past(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    """Also what its ledger says of them."""
    dead = worker_name()  # of this run alone: ledgers are files of the machine
    with subprocess.Popen(["sleep", "60"]) as process:
        me = {"host": socket.gethostname(), "pid": process.pid, "process_started": process_started(process.pid)}
        with engine.begin() as connection:
            connection.execute(insert(Worker).values(name=dead, **me))
        claims = [claimed(engine, write(Client, "ping").id, dead, lease=dt.timedelta(hours=1)) for _ in range(3)]
        ledger = Ledger(dead)
        ledger.open()
        for claim in claims[:2]:
            ledger.begin(claim.id)
        ledger.returned(claims[1].id)
        assert planned(app) == {}
        process.kill()
    found = [planned(app)[str(claim.id)] for claim in claims]
    assert [(one.action, one.reason.partition(" has died")[2]) for one in found] == [
        ("recovered", ": a loss is counted"),
        ("parked", " before its outcome was written: nothing is charged"),
        ("released", ": its call had not begun, so nothing is charged"),
    ]
    assert app.preview_batch().to_recover == 3
    assert app.sweep().recovered == 3
    rows = [row_of(engine, claim.id) for claim in claims]
    assert [(row.num_attempts, row.num_losses) for row in rows] == [(1, 1), (1, 0), (0, 0)]


@pytest.mark.only_on("postgresql", "mysql")
@by_one_door
def test_a_claim_whose_row_is_locked_by_its_call_is_not_named(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = orphan(engine, write)
    with engine.begin() as connection:
        connection.execute(select(TABLE.c.id).where(TABLE.c.id == attempt.id).with_for_update(key_share=True)).all()
        assert planned(app) == {}
    assert list(planned(app)) == [str(attempt.id)]


@pytest.mark.slow
@by_one_door
def test_a_preview_is_bounded_and_says_how_many_it_leaves_out(app: AsyncTask, engine: Engine, write: Write) -> None:
    for _ in range(3):
        claimed(engine, write(Client, "ping").id)
        write(Client, "ping", expires_at=seconds_from_now(1))
        write(Client, "ping", order_key=str(uuid.uuid4()))
    let_pass(engine, 2)
    for limit, left_out in ((1, 8), (3, 6), (4, 5), (8, 1), (9, 0), (100, 0)):
        found = app.preview_sweep(limit)
        assert (len(found.changes), found.left_out) == (min(limit, 9), left_out)
    with pytest.raises(ConfigurationError, match="limit"):
        app.preview_sweep(0)


@pytest.mark.slow
@by_one_door
def test_resumes_and_hurries_of_operations_are_foreseen(world: World, provider: Provider, engine: Engine) -> None:
    lost, kept, ended, old = (world.running() for _ in range(4))
    world.change(ended, status="ended", next_poll_at=None)
    attempts = {one.idempotence_token: one for one in world.attempts()}
    with engine.begin() as connection:
        gone = [attempts[str(key)].id for key in (lost, ended)]
        connection.execute(delete(Attempt).where(Attempt.id.in_(gone)))
    world.pass_by(10 * 60)
    found = planned(world.app)
    assert {key: (one.kind, one.action, one.target, one.method) for key, one in found.items()} == {
        str(lost): ("operation", "resumed", "test.batch", "poll"),
        str(ended): ("operation", "resumed", "test.batch", "poll"),
    }
    assert found[str(lost)].reason == "no attempt polls it: it is submitted, and late"
    assert found[str(lost)].since == world.row(lost).next_poll_at
    assert found[str(ended)].reason == "no attempt polls it: it is ended, and not yet fetched and handled"
    assert world.app.sweep().resumed == 2
    assert planned(world.app) == {}
    world.pass_by(27 * HOUR)
    now = world.app.now()
    with Session(engine) as session, session.begin():
        for one in session.query(Attempt).where(Attempt.idempotence_token.in_([str(old), str(kept)])):
            one.reschedule(at=now + dt.timedelta(days=365))
    world.change(kept, submitted_at=now, next_poll_at=now)
    assert [(one.id, one.action) for one in planned(world.app).values()] == [(str(old), "hurried")]
    assert f"past its maximal age of {Batch.polling.max_age}" in planned(world.app)[str(old)].reason
    world.app.sweep()
    assert planned(world.app) == {}
