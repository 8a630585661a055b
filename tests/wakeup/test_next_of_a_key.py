"""Workers of other processes are notified when an attempt of an order key is released in a queue of theirs."""

import datetime as dt
import uuid
from typing import Any, cast

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt
from async_task.database.clock import clock_now
from async_task.database.engines import Source
from async_task.queue import fetch, ordering, recovery
from async_task.queue.backlog import Scope
from async_task.queue.claim import Claim
from async_task.queue.sweep import sweep
from async_task.wakeup.commit_hooks import new_attempts
from async_task.worker.batch_workload import BatchOptions, BatchWorkload
from async_task.worker.round_robin import RoundRobin
from async_task.worker.runtime import Runtime
from clockwork import let_pass
from elsewhere import await_
from outbox import Client
from receivers import TABLE, Receiver
from workers import at_rest, counted, working

LEASE = dt.timedelta(seconds=5)
pytestmark = pytest.mark.usefixtures("sleeper")
on_postgresql = pytest.mark.only_on("postgresql")


def write(engine: Engine, *queues: str, expires_at: dt.datetime | None = None) -> list[uuid.UUID]:
    """An attempt of one key in each of these queues; the first expires then."""
    with Session(engine) as session, session.begin():
        call = {"target": Client, "method_name": "ping", "order_key": "a", "session": session}
        first = Attempt.create(**call, queue=queues[0], expires_at=expires_at)
        return [first.id, *(Attempt.create(**call, queue=queue).id for queue in queues[1:])]


@on_postgresql
@pytest.mark.parametrize("verb", ["cancel", "fail", "expire"])
def test_when_a_verb_ends_the_attempt_before_it(verb: str, engine: Engine, receiver: Receiver) -> None:
    first, _ = write(engine, "one", "two")
    ordering.release_arrived(engine, TABLE)
    receiver.received()
    with Session(engine) as session, session.begin():
        getattr(session.get_one(Attempt, first), verb)()
    assert receiver.received() == ["1 two"]


@on_postgresql
def test_when_the_attempt_before_it_expires(engine: Engine, receiver: Receiver) -> None:
    write(engine, "one", "two", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=20))
    ordering.release_arrived(engine, TABLE)
    let_pass(engine, 30)
    receiver.received()
    assert sweep(engine, TABLE, LEASE).expired == 1
    assert "1 two" in receiver.received()


@on_postgresql
def test_when_the_attempt_before_it_fails_by_crashes(engine: Engine, receiver: Receiver) -> None:
    first, _ = write(engine, "one", "two")
    for _ in range(recovery.CRASH_LIMIT):
        claim = fetch.claim_one(engine, TABLE, "worker", LEASE, first, uuid.uuid4())
        assert isinstance(claim, Claim)
        receiver.received()
        recovery.recover_claim(engine, TABLE, claim, "its process was killed by SIGSEGV")
    assert receiver.received() == ["1 two"]


@on_postgresql
def test_when_it_has_arrived_as_the_first_one(engine: Engine, receiver: Receiver) -> None:
    write(engine, "one", "two")
    receiver.received()
    ordering.release_arrived(engine, TABLE)
    assert receiver.received() == ["1 one"]


@on_postgresql
def test_but_not_of_queues_that_are_named_nor_within_a_test(engine: Engine, receiver: Receiver) -> None:
    for silent in (("one",), None):
        write(engine, "one")
        receiver.received()
        ordering.release_arrived(engine, TABLE, silent=silent)
        assert receiver.received() == []
        with engine.begin() as connection:
            connection.execute(TABLE.delete())


@on_postgresql
def test_when_a_sweep_releases_it_as_the_process_before_it_has_died(engine: Engine, receiver: Receiver) -> None:
    first, _ = write(engine, "one", "two")
    ordering.release_arrived(engine, TABLE)
    with engine.begin() as connection:
        ended = TABLE.update().where(TABLE.c.id == first)
        connection.execute(ended.values(status="succeeded", completed_at=clock_now(), num_attempts=1))
    receiver.received()
    sweep(engine, TABLE, LEASE)
    assert receiver.received() == ["1 two"]


def test_a_verb_is_no_new_attempt_for_who_performs_these_inline(engine: Engine) -> None:
    first, _ = write(engine, "one", "two")
    ordering.release_arrived(engine, TABLE)
    with Session(engine) as session, session.begin():
        session.get_one(Attempt, first).cancel()
        assert new_attempts(session) == {}


@on_postgresql
def test_when_the_attempt_before_it_is_performed_by_its_id(engine: Engine, receiver: Receiver) -> None:
    first, _, _ = write(engine, "one", "one", "two")
    app = AsyncTask(engine)
    receiver.received()
    app.perform(first)
    assert receiver.received() == ["1 one"]


@on_postgresql
def test_by_a_worker_only_of_queues_that_it_does_not_serve(engine: Engine, receiver: Receiver) -> None:
    write(engine, "one", "one", "two", "one")
    receiver.received()
    with working(AsyncTask(engine), queues=["one"]):
        await_(lambda: counted(engine).get("succeeded") == 2, "its own are performed")
    # Its first sweep, which serves no queue, may release the first one before a poll does.
    assert set(receiver.received()) - {"1 one"} == {"1 two"}


@on_postgresql
def test_and_the_batch_of_some_queues_notifies_those_of_others(engine: Engine, receiver: Receiver) -> None:
    write(engine, "one", "two", "one")
    app = AsyncTask(engine)
    receiver.received()
    assert app.run_batch(queues=["one"]).succeeded == 1
    assert receiver.received() == ["1 one", "1 two"], "its sweep serves no queue"


def test_it_is_requested_in_the_queues_that_are_served_here(engine: Engine) -> None:
    round_robin = RoundRobin(1, {})
    options = BatchOptions(scope=Scope(queues=("one", "two")))
    with Runtime(Source(engine), Attempt, LEASE) as runtime:
        workload = BatchWorkload(runtime, round_robin, None, options, cast("Any", None))
        assert workload.note_next_released({"one", "three"}) == {"one", "three"}, "it may be left to others"
    assert round_robin.take() == "one"
    round_robin.put_back("one", 0)
    assert round_robin.is_idle


@pytest.mark.slow
def test_a_worker_that_polls_rarely_performs_the_next_in_another_of_its_queues_and_after_a_verb(engine: Engine) -> None:
    """A verb wakes the workers of its own process, on each database."""
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    with Session(engine) as session, session.begin():
        call = {"target": Client, "method_name": "ping", "order_key": "a", "session": session}
        first = Attempt.create(**call, queue="one", scheduled_at=later).id
        for queue in ("two", "three", "two"):
            Attempt.create(**call, queue=queue)
    with working(AsyncTask(engine), poll=60):
        await_(lambda: _is_released(engine, first), "the first attempt of the key is released")
        with Session(engine) as session, session.begin():
            session.get_one(Attempt, first).cancel()
        await_(lambda: at_rest(engine), "all are performed", patience=30)
    assert counted(engine) == {"canceled": 1, "succeeded": 3}


def _is_released(engine: Engine, attempt_id: uuid.UUID) -> bool:
    with Session(engine) as session:
        return session.get_one(Attempt, attempt_id).released
