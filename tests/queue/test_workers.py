"""Workers: their rows, heartbeats and claims."""

import datetime as dt
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, select, update

from async_task import Attempt
from async_task.database.transactions import retry_transient
from async_task.queue import workers
from async_task.queue.processes import Process, process_started
from async_task.schema.tables import Worker
from claims import TABLE, claimed
from clockwork import let_pass, row_of
from outbox import Client

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=1)


def test_a_heartbeat_extends_the_leases_of_its_own_claims_only(engine: Engine, write: Write) -> None:
    mine, others = claimed(engine, write(Client, "ping").id, "me"), claimed(engine, write(Client, "ping").id, "other")
    let_pass(engine, 10)
    before = [row_of(engine, one.id).lease_until for one in (mine, others)]
    workers.beat(engine, TABLE, "me", LEASE, [mine.id, others.id])
    after = [row_of(engine, one.id).lease_until for one in (mine, others)]
    assert after[0] > before[0]
    assert after[1] == before[1]


@pytest.mark.only_on("postgresql", "mysql")
def test_a_heartbeat_waits_for_no_locked_row(engine: Engine, write: Write) -> None:
    claim = claimed(engine, write(Client, "ping").id, "me")
    before = row_of(engine, claim.id).lease_until
    with engine.begin() as connection:
        connection.execute(select(TABLE.c.id).where(TABLE.c.id == claim.id).with_for_update()).all()
        workers.beat(engine, TABLE, "me", LEASE * 60, [claim.id])
    assert row_of(engine, claim.id).lease_until == before


@pytest.mark.parametrize(("kind", "has_claim"), [("worker", False), ("worker", True), ("run-batch", False)])
def test_only_an_idle_worker_on_postgresql_beats_in_one_statement(
    engine: Engine, write: Write, kind: str, has_claim: bool
) -> None:
    """Others beat in a transaction, with what users do at the begin of one; and elsewhere AUTOCOMMIT is a statement."""
    held = [claimed(engine, write(Client, "ping").id, "me").id] if has_claim else []
    workers.beat(engine, TABLE, "me", LEASE, held, kind=kind)  # writes the row
    seen: list[bool] = []

    def note(connection: Connection, *_: Any) -> None:
        seen.append(connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT")

    event.listen(engine, "before_cursor_execute", note)
    try:
        workers.beat(engine, TABLE, "me", LEASE, held, kind=kind)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    is_single = engine.dialect.name == "postgresql" and kind == "worker" and not has_claim
    assert set(seen) == {is_single}
    assert (len(seen) == 1) is (not has_claim)


@pytest.mark.slow
def test_the_first_heartbeats_of_one_process_may_be_written_at_once_and_make_one_row(engine: Engine) -> None:
    meet, names = threading.Barrier(4), [f"quadruplet {number}" for number in range(10)]

    def beat(_: int) -> None:
        for name in names:
            meet.wait(30)
            retry_transient(partial(workers.beat, engine, TABLE, name, LEASE, []))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(beat, range(4)))
    with engine.connect() as connection:
        assert sorted(connection.scalars(select(Worker.name))) == names


def test_running_workers_are_listed_with_the_number_of_their_claims(engine: Engine, write: Write) -> None:
    for name in ("one", "two"):
        workers.beat(engine, TABLE, name, LEASE, [], kind="worker")
    for _ in range(2):
        claimed(engine, write(Client, "ping").id, "two")
    assert {one.name: one.claims for one in workers.running_workers(engine, TABLE, LEASE)} == {"one": 0, "two": 2}


def elsewhere(engine: Engine, name: str) -> None:
    """As if this worker were of another machine."""
    with engine.begin() as connection:
        moved = {"host": "elsewhere", "process_started": "another boot:1:2"}
        connection.execute(update(Worker).where(Worker.name == name).values(moved))


def dead(engine: Engine) -> dict[str, bool]:
    return {one.name: one.is_dead for one in workers.running_workers(engine, TABLE, LEASE)}


def test_a_process_of_another_machine_is_dead_a_lease_after_its_next_heartbeat_was_due(
    engine: Engine, write: Write
) -> None:
    for name, kind in (("idle", "worker"), ("busy", "worker"), ("batch", "run-batch")):
        workers.beat(engine, TABLE, name, LEASE, [], kind=kind)
        elsewhere(engine, name)
    claimed(engine, write(Client, "ping").id, "busy")
    assert dead(engine) == {"idle": False, "busy": False, "batch": False}
    let_pass(engine, LEASE)
    assert dead(engine) == {"idle": False, "busy": True, "batch": True}
    let_pass(engine, dt.timedelta(seconds=workers.IDLE_PAUSE))
    assert dead(engine) == {"idle": True, "busy": True, "batch": True}


def test_a_process_of_this_machine_is_dead_when_it_has_ended_and_the_living_come_first(engine: Engine) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        for name in ("ended", "stopped", "lives"):
            workers.beat(engine, TABLE, name, LEASE, [], kind="worker")
        with engine.begin() as connection:
            other = {"pid": process.pid, "process_started": process_started(process.pid)}
            connection.execute(update(Worker).where(Worker.name == "ended").values(other))
        workers.leave_claims(engine, TABLE, "stopped", LEASE)
        assert dead(engine) == {"ended": False, "stopped": True, "lives": False}
        process.kill()
    assert list(dead(engine).items()) == [("lives", False), ("ended", True), ("stopped", True)]
    let_pass(engine, dt.timedelta(hours=1))
    assert not dead(engine)["lives"], "it is frozen, or cut off"


def test_the_rows_of_a_dead_process_are_deleted_when_it_has_no_claim_left(engine: Engine, write: Write) -> None:
    for name in ("free", "claims"):
        workers.beat(engine, TABLE, name, LEASE, [])
    with engine.connect() as connection:
        host = connection.scalar(select(Worker.host).limit(1))
    process = Process(str(host), os.getpid(), process_started(os.getpid()) or "")
    with engine.connect() as connection:
        names = workers.names_of(connection, TABLE, process)
    claimed(engine, write(Client, "ping").id, "claims")
    assert not workers.deregister_dead(engine, TABLE, names)
    assert [one.name for one in workers.running_workers(engine, TABLE, LEASE)] == ["claims"]
    with engine.begin() as connection:
        connection.execute(TABLE.delete())
    assert workers.deregister_dead(engine, TABLE, names)
