"""Sweeps: their steps, one after the other, and many at once."""

import datetime as dt
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, func, select

from async_task import AsyncTask, Attempt, JobEvent, Status, SweepReport
from async_task.queue.ordering import release_overlooked
from async_task.queue.sweep import sweep
from async_task.schema.tables import Worker
from claims import TABLE, beat_ago, claimed, seconds_from_now
from clockwork import let_pass, row_of
from conftest import by_one_door
from outbox import Client, events_of

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=1)


@pytest.mark.slow
@by_one_door
def test_an_orphan_past_its_expires_at_is_recovered_and_then_expired(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "ping", expires_at=seconds_from_now(1))
    claimed(engine, attempt.id)
    let_pass(engine, 2)
    assert app.sweep() == SweepReport(recovered=1, expired=1)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_losses) == (Status.EXPIRED, 1)
    assert [event.kind for event in events_of(engine, attempt.id)] == ["loss", "expired"]


@pytest.mark.slow
def test_a_sweep_continues_page_by_page(engine: Engine, write: Write) -> None:
    _make_work(engine, write, 5)
    assert sweep(engine, TABLE, LEASE, page=2) == SweepReport(recovered=5, expired=5)


@pytest.mark.slow
def test_eight_sweeps_at_once_do_what_one_does(app: AsyncTask, engine: Engine, write: Write) -> None:
    _make_work(engine, write, 12)
    meet = threading.Barrier(8)

    def one(_: int) -> SweepReport:
        meet.wait(30)
        return app.sweep()

    with ThreadPoolExecutor(8) as threads:
        reports = list(threads.map(one, range(8)))
    assert sum(report.recovered for report in reports) == sum(report.expired for report in reports) == 12
    with engine.connect() as connection:
        crashes = connection.execute(select(TABLE.c.num_losses, func.count()).group_by(TABLE.c.num_losses)).all()
        events = connection.execute(select(JobEvent.kind, func.count()).group_by(JobEvent.kind)).all()
    assert sorted(map(tuple, crashes)) == [(0, 12), (1, 12)]
    assert sorted(map(tuple, events)) == [("expired", 12), ("loss", 12)]


@by_one_door
def test_workers_without_claims_that_were_silent_for_a_day_are_forgotten(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    claimed(engine, write(Client, "ping").id, "claims", lease=dt.timedelta(days=3))
    for name, silent in (("old", 25), ("claims", 25), ("young", 23)):
        beat_ago(engine, name, dt.timedelta(hours=silent))
    app.sweep()
    with engine.connect() as connection:
        assert set(connection.scalars(select(Worker.name))) == {"claims", "young"}


def _make_work(engine: Engine, write: Write, number: int) -> None:
    """As many orphans, and as many attempts that are overdue."""
    for _ in range(number):
        claimed(engine, write(Client, "ping").id)
        write(Client, "ping", expires_at=seconds_from_now(1))
    let_pass(engine, 2)


@by_one_door
def test_a_sweep_releases_fresh_order_keys_without_a_word_about_a_repair(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = [write(Client, "ping", order_key=key) for key in ("a", "a", "b")]
    assert release_overlooked(engine, TABLE) == (0, None)  # they arrive between the two steps of a sweep
    app.sweep()
    assert [row_of(engine, one.id).released for one in fresh] == [True, False, True]
    assert caplog.text == ""


@by_one_door
def test_a_sweep_says_which_repair_it_made(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = write(Client, "ping", order_key="a")
    with engine.begin() as connection:  # it was checked behind another one, whose process died
        connection.execute(TABLE.update().values(arrived=None))
    with caplog.at_level("INFO", logger="async_task"):
        app.sweep()
    assert row_of(engine, attempt.id).released
    assert "released that waited for others of their order key, which had ended: 1" in caplog.text
    assert {one.levelname for one in caplog.records} == {"INFO"}  # so that cron mails nothing
