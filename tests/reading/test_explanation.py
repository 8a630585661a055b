"""`app.attempts.explain`: why an attempt is not performed now."""

import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update

from async_task import AsyncTask, Attempt, UnknownAttempt
from async_task.schema.tables import companion_tables
from claims import TABLE, claimed, seconds_from_now
from clockwork import let_pass
from conftest import by_one_door
from elsewhere import await_
from outbox import Client
from workers import working

Write = Callable[..., Attempt]
MINUTE = dt.timedelta(minutes=1)


def kinds(app: AsyncTask, attempt: Attempt) -> list[str]:
    return [one.kind for one in app.attempts.explain(attempt.id).reasons]


def words(app: AsyncTask, attempt: Attempt) -> str:
    return "; ".join(one.words for one in app.attempts.explain(attempt.id).reasons)


@pytest.fixture
def served(engine: Engine) -> Callable[..., None]:
    """Let a worker run that serves these queues; none: all."""

    def serve(*queues: str, kind: str = "worker") -> None:
        about = json.dumps({"queues": dict.fromkeys(queues, 2)})
        workers = companion_tables(TABLE).workers
        row = {"name": f"host:7:{'-'.join(queues)}", "host": "host", "pid": 7, "process_started": "x", "kind": kind}
        with engine.begin() as connection:
            connection.execute(insert(workers).values(**row, about=about, job_type=TABLE.name))

    return serve


@by_one_door
def test_a_due_attempt_that_nothing_blocks_is_next_or_behind_earlier_ones(
    app: AsyncTask, engine: Engine, write: Write, served: Callable[..., None]
) -> None:
    served()
    first = write(Client, "ping", scheduled_at=seconds_from_now(-60))
    second = write(Client, "ping")
    assert (kinds(app, first), words(app, first)) == (["next"], "nothing blocks it: a worker takes it next")
    assert words(app, second) == "nothing blocks it: 1 of its queue and priority are due before it"


@pytest.mark.slow
@by_one_door
def test_each_state_of_the_row_is_told(
    app: AsyncTask, engine: Engine, write: Write, served: Callable[..., None]
) -> None:
    served()
    ended, held, lost, later, tried, parked, overdue, polled, put_off = (write(Client, "ping") for _ in range(9))
    app.write(lambda session: session.get(Attempt, ended.id).cancel())
    claimed(engine, held.id, lease=MINUTE)
    claimed(engine, lost.id, lease=MINUTE)
    with engine.begin() as connection:
        for one, values in (
            (lost, {"lease_until": seconds_from_now(-5)}),
            (later, {"due_at": seconds_from_now(60)}),
            (tried, {"due_at": seconds_from_now(60), "num_errors": 1, "num_attempts": 1}),
            (parked, {"due_at": seconds_from_now(60), "last_error": "parked: key k1 is missing"}),
            (overdue, {"expires_at": seconds_from_now(-5)}),
            (polled, {"due_at": seconds_from_now(60), "num_attempts": 1}),
            (put_off, {"due_at": seconds_from_now(60), "num_attempts": 3, "last_error": "Broken: once"}),
        ):
            connection.execute(update(TABLE).where(TABLE.c.id == one.id).values(values))
    every = (ended, held, lost, later, tried, parked, overdue, polled, put_off)
    told = {one.id: (kinds(app, one), words(app, one)) for one in every}
    assert told[ended.id] == (["ended"], "it has ended as canceled: `async-task retry` makes it due again")
    assert told[held.id][0] == ["performing"]
    assert told[lost.id][0] == ["lost"]
    assert told[later.id] == (["not_due"], "it is not due yet")
    assert told[tried.id] == (["not_due"], "it is retried when it is due, after its last error")
    assert told[parked.id][0] == ["not_due"]
    assert "parked, uncharged" in told[parked.id][1]
    assert told[polled.id] == (["not_due"], "it has asked to be called again when it is due")
    assert told[put_off.id] == (["not_due"], "it is not due yet")
    assert told[overdue.id] == (["overdue"], "it is past its expires_at: the next sweep expires it")


@by_one_door
def test_pauses_of_its_queue_and_of_its_target_are_told(
    app: AsyncTask, write: Write, served: Callable[..., None]
) -> None:
    served()
    attempt = write(Client, "ping", queue="mail")
    app.pause("mail", reason="it moves")
    app.pause(target=Client)
    assert kinds(app, attempt) == ["paused", "paused"]
    assert "its queue mail is paused since" in words(app, attempt)
    assert "its target test.client is paused since" in words(app, attempt)
    app.resume("mail")
    app.resume(target=Client)
    assert kinds(app, attempt) == ["next"]


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"max_running": 1}, "its queue default may have 1 running calls, and has as many"),
        ({"rate": 0.5, "burst": 1, "tokens": 0.0}, "its queue default starts 0.5 calls a second, and has started them"),
    ],
    ids=["running", "rate"],
)
def test_a_limit_that_is_reached_is_told(
    app: AsyncTask, engine: Engine, write: Write, served: Callable[..., None], limit: Any, said: str
) -> None:
    served()
    running, attempt = write(Client, "ping"), write(Client, "ping")
    claimed(engine, running.id, lease=MINUTE)
    queues = companion_tables(TABLE).queues
    with engine.begin() as connection:
        connection.execute(insert(queues).values(name="default", refilled_at=app.now(), **limit))
    assert (kinds(app, attempt), words(app, attempt)) == (["limited"], said)
    with engine.begin() as connection:
        connection.execute(update(queues).values(refilled_at=app.now() - MINUTE))
        connection.execute(update(TABLE).values(claim_id=None, claimed_by=None, lease_until=None))
    assert "limited" not in kinds(app, attempt)


@by_one_door
def test_a_queue_that_no_running_worker_serves_is_told(
    app: AsyncTask, engine: Engine, write: Write, served: Callable[..., None]
) -> None:
    attempt = write(Client, "ping", queue="mail")
    assert "no worker is running" in words(app, attempt)
    served(kind="run-batch")
    served("orders", "slow")
    assert words(app, attempt) == "no running worker serves its queue mail: they serve orders, slow"
    served("mail")
    assert kinds(app, attempt) == ["next"]
    let_pass(engine, 120)
    assert kinds(app, attempt) == ["not_served"]


@pytest.mark.slow
@by_one_door
def test_a_running_worker_counts_as_one_that_serves_its_queues_and_knows_its_targets(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "ping", queue="mail", scheduled_at=seconds_from_now(600))
    with working(app, queues={"other": 1}):
        await_(lambda: any(one.about for one in app.workers()), "it is registered")
        assert "they serve other" in words(app, attempt)
    with working(app):
        await_(lambda: any(one.about for one in app.workers()), "it is registered")
        assert kinds(app, attempt) == ["not_due"]
        with engine.begin() as connection:
            connection.execute(update(TABLE).values(target="shop.gone"))
        assert kinds(app, attempt) == ["not_due", "unknown_target"]


@by_one_door
def test_a_suspect_is_told_and_an_unknown_id_is_refused(
    app: AsyncTask, engine: Engine, write: Write, served: Callable[..., None]
) -> None:
    served()
    attempt = write(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(num_losses=1, num_attempts=1))
    assert kinds(app, attempt) == ["suspect"]
    with pytest.raises(UnknownAttempt, match="there is no attempt"):
        app.attempts.explain("01a225ff-1b36-7aeb-b2b5-f54570f52584")
