"""Sweeps: what is an orphan and what is not, what becomes of it, and what expires."""

import contextlib
import datetime as dt
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, text, update

from async_task import AsyncTask, Attempt, JobEvent, Retried, Status, SweepReport
from async_task.database.transactions import retry_transient
from async_task.queue import fetch, workers
from async_task.queue.claim import Claim
from async_task.queue.sweep import expire_page, recover_page, sweep
from async_task.queue.workers import process_started
from async_task.schema.tables import Worker
from clockwork import forget_beats, let_pass, row_of
from conftest import by_one_door
from outbox import Client, events_of

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=1)
TABLE: Any = Attempt.__table__
GONE = "gone:1:0"


def test_an_orphan_is_given_back_where_it_stood_in_the_queue(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = _orphan(engine, write)
    before = row_of(engine, attempt.id)
    assert app.sweep() == SweepReport(recovered=1)
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.claimed_by, row.lease_until) == (Status.PENDING, None, None, None)
    assert (row.num_attempts, row.num_crashes, row.num_errors) == (1, 1, 0)
    assert row.due_at == before.due_at
    assert [event.kind for event in events_of(engine, attempt.id)] == ["crash"]


@pytest.mark.only_on("postgresql", "mysql")
def test_a_claim_whose_row_is_locked_is_no_orphan(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = _orphan(engine, write)
    with engine.begin() as connection:
        connection.execute(select(TABLE.c.id).where(TABLE.c.id == attempt.id).with_for_update(key_share=True)).all()
        assert app.sweep() == SweepReport()
    assert app.sweep() == SweepReport(recovered=1)


@by_one_door
def test_a_claim_whose_worker_beats_is_no_orphan(app: AsyncTask, engine: Engine, write: Write) -> None:
    _orphan(engine, write, worker="busy")
    _beat(engine, "busy", LEASE * 0)
    assert sweep(engine, TABLE, dt.timedelta(seconds=30)) == SweepReport()
    forget_beats(engine)
    assert app.sweep() == SweepReport(recovered=1)


@by_one_door
def test_a_claim_whose_lease_is_live_is_no_orphan(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    _claim(engine, attempt, GONE, lease=dt.timedelta(seconds=60))
    assert app.sweep() == SweepReport()
    let_pass(engine, 61)
    assert app.sweep() == SweepReport(recovered=1)


def test_the_third_start_lost_in_a_row_is_the_last(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    for expected in (SweepReport(recovered=1), SweepReport(recovered=1), SweepReport(crashed=1)):
        _claim(engine, attempt, GONE)
        let_pass(engine, 2)
        assert app.sweep() == expected
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.FAILED, 3, 3)
    assert row.completed_at is not None
    assert row.last_error.startswith("crashed: 3 starts in a row")
    assert [event.kind for event in events_of(engine, attempt.id)] == ["crash"] * 3


@pytest.mark.parametrize("method", ["fail", "poll"])
@by_one_door
def test_a_start_that_reports_back_ends_the_row_of_crashes(
    app: AsyncTask, engine: Engine, write: Write, method: str
) -> None:
    attempt = write(Client, method)
    for crashes in (1, 2):
        _claim(engine, attempt, GONE)
        let_pass(engine, 2)
        app.sweep()
        assert row_of(engine, attempt.id).num_crashes == crashes
    engine.dispose()  # the quarantine forks: SQLite's file must not be open here
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.PENDING, 3, 0)


@by_one_door
def test_an_orphan_past_its_expiry_is_recovered_then_expired_in_one_sweep(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "ping", expires_at=_in(1))
    _claim(engine, attempt, GONE)
    let_pass(engine, 2)
    assert app.sweep() == SweepReport(recovered=1, expired=1)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_crashes) == (Status.EXPIRED, 1)
    assert [event.kind for event in events_of(engine, attempt.id)] == ["crash", "expired"]


@by_one_door
def test_exactly_what_is_past_its_expiry_and_held_by_nobody_is_expired(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    past, future = write(Client, "ping", expires_at=_in(1)), write(Client, "ping", expires_at=_in(60))
    never, held = write(Client, "ping"), write(Client, "ping", expires_at=_in(1))
    _claim(engine, held, GONE, lease=dt.timedelta(seconds=60))
    let_pass(engine, 2)
    assert app.sweep() == SweepReport(expired=1)
    states = [row_of(engine, one.id).status for one in (past, future, never, held)]
    assert states == [Status.EXPIRED, Status.PENDING, Status.PENDING, Status.PENDING]
    assert row_of(engine, past.id).num_attempts == 0


def test_a_sweep_goes_on_page_by_page(engine: Engine, write: Write) -> None:
    for _ in range(5):
        _claim(engine, write(Client, "ping"), GONE)
        write(Client, "ping", expires_at=_in(1))
    let_pass(engine, 2)
    assert recover_page(engine, TABLE, LEASE, limit=2) == (2, 0)
    assert expire_page(engine, TABLE, limit=2) == 2
    assert sweep(engine, TABLE, LEASE, page=2) == SweepReport(recovered=3, expired=3)


def test_one_orphan_that_cannot_be_recovered_does_not_stop_the_rest(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempts = [_orphan(engine, write) for _ in range(7)]
    bad = attempts[3]
    with engine.begin() as connection:  # a start that was never counted cannot have been lost: a CHECK refuses it
        connection.execute(update(TABLE).where(TABLE.c.id == bad.id).values(num_attempts=0))
    assert app.sweep() == SweepReport(recovered=6)
    assert sweep(engine, TABLE, LEASE, page=2) == SweepReport()
    row = row_of(engine, bad.id)
    assert (row.status, row.claimed_by, row.num_crashes) == (Status.PENDING, GONE, 0)


def test_one_row_that_cannot_be_expired_does_not_stop_the_rest(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempts = [write(Client, "ping", expires_at=_in(1), queue="bad" if n == 2 else "good") for n in range(6)]
    let_pass(engine, 2)
    with _refusing_to_expire_bad_ones(engine):
        assert app.sweep() == SweepReport(expired=5)
        assert sweep(engine, TABLE, LEASE, page=2) == SweepReport()
    assert row_of(engine, attempts[2].id).status == Status.PENDING
    assert app.sweep() == SweepReport(expired=1)


def test_eight_sweeps_at_once_do_what_one_does(app: AsyncTask, engine: Engine, write: Write) -> None:
    for _ in range(12):
        _claim(engine, write(Client, "ping"), GONE)
        write(Client, "ping", expires_at=_in(1))
    let_pass(engine, 2)
    meet = threading.Barrier(8)

    def one(_: int) -> SweepReport:
        meet.wait(30)
        return app.sweep()

    with ThreadPoolExecutor(8) as threads:
        reports = list(threads.map(one, range(8)))
    assert sum(report.recovered for report in reports) == sum(report.expired for report in reports) == 12
    with engine.connect() as connection:
        crashes = connection.execute(select(TABLE.c.num_crashes, func.count()).group_by(TABLE.c.num_crashes)).all()
        events = connection.execute(select(JobEvent.kind, func.count()).group_by(JobEvent.kind)).all()
    assert sorted(map(tuple, crashes)) == [(0, 12), (1, 12)]
    assert sorted(map(tuple, events)) == [("crash", 12), ("expired", 12)]


@pytest.mark.only_on("postgresql", "mysql")
@by_one_door
def test_while_the_server_is_younger_than_a_lease_nothing_is_recovered_and_what_is_past_expires(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    _orphan(engine, write)
    write(Client, "ping", expires_at=_in(1))
    let_pass(engine, 2)
    with monkeypatch.context() as young:
        young.setattr("async_task.queue.sweep.server_uptime", lambda connection: 0.9)
        assert app.sweep() == SweepReport(expired=1)
    assert app.sweep() == SweepReport(recovered=1)


@pytest.mark.only_on("sqlite")
@by_one_door
def test_on_sqlite_a_claim_of_a_process_that_lives_here_is_never_recovered_and_that_of_a_dead_one_is(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    living, dead, reused = (_orphan(engine, write, worker=name) for name in ("living", "dead", "reused"))
    for name in ("living", "dead", "reused"):
        _beat(engine, name, LEASE * 10)
    with engine.begin() as connection:
        connection.execute(update(Worker).where(Worker.name == "dead").values(pid=2**22 + 1))
        connection.execute(update(Worker).where(Worker.name == "reused").values(process_started="another"))
    assert sweep(engine, TABLE, LEASE, page=1) == SweepReport(recovered=2)  # the living one does not block its page
    assert app.sweep() == SweepReport()
    assert [row_of(engine, one.id).num_crashes for one in (living, dead, reused)] == [0, 1, 1]


@by_one_door
def test_processes_that_have_been_silent_for_a_day_and_hold_nothing_are_forgotten(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    _claim(engine, write(Client, "ping"), "holder", lease=dt.timedelta(days=3))
    for name, silent in (("old", 25), ("holder", 25), ("young", 23)):
        _beat(engine, name, dt.timedelta(hours=silent))
    app.sweep()
    with engine.connect() as connection:
        assert set(connection.scalars(select(Worker.name))) == {"holder", "young"}


def test_the_first_beats_of_one_process_may_meet_and_are_one_row(engine: Engine, app: AsyncTask) -> None:
    meet, names = threading.Barrier(4), [f"quadruplet {number}" for number in range(10)]

    def beat(_: int) -> None:
        for name in names:
            meet.wait(30)
            retry_transient(partial(workers.beat, engine, TABLE, name, LEASE, []))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(beat, range(4)))
    with engine.connect() as connection:
        assert sorted(connection.scalars(select(Worker.name))) == names


def _claim(engine: Engine, attempt: Attempt, worker: str, *, lease: dt.timedelta = LEASE) -> None:
    """As `worker` does that then dies."""
    assert isinstance(fetch.claim_one(engine, TABLE, worker, lease, attempt.id, uuid.uuid4()), Claim)


def _orphan(engine: Engine, write: Write, *, worker: str = GONE) -> Attempt:
    attempt = write(Client, "ping")
    _claim(engine, attempt, worker)
    let_pass(engine, 2)
    return attempt


def _beat(engine: Engine, worker: str, ago: dt.timedelta) -> None:
    """The last beat of `worker`, a process on this machine: this one."""
    import socket

    pid = os.getpid()
    me = {"name": worker, "host": socket.gethostname(), "pid": pid, "process_started": process_started(pid)}
    with engine.begin() as connection:
        connection.execute(insert(Worker).values(me))
        beat = connection.scalar(select(Worker.beat_at).where(Worker.name == worker))
        assert beat is not None
        connection.execute(update(Worker).where(Worker.name == worker).values(beat_at=beat - ago))


def _in(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


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
