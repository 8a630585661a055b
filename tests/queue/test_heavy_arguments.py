"""Long arguments: a claim reads as many as may be in memory, and leaves the other attempts as they were."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, Succeeded
from async_task.database.lanes import open_lane
from async_task.execution.adaptive import MAX_BATCH_SIZE, BatchSizes
from async_task.queue import heavy_arguments
from async_task.worker import lane_loop
from async_task.worker.runtime import Runtime
from elsewhere import await_
from outbox import Client, calls
from workers import at_rest, make, working

TABLE: Any = Attempt.__table__
LONG = 50_000
MOST = 4 * LONG + 1_000


@pytest.fixture(autouse=True)
def _small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four long arguments fit into it."""
    for module in (heavy_arguments, lane_loop):
        monkeypatch.setattr(module, "CLAIM_BYTES", MOST)


def _write(engine: Engine, *lengths: int) -> list[Any]:
    with Session(engine) as session, session.begin():
        return Attempt.create_many(
            session,
            [
                {"target": Client, "method_name": "fulfill", "method_args": _arguments(number, length)}
                for number, length in enumerate(lengths)
            ],
        )


def _arguments(number: int, length: int) -> dict[str, Any]:
    return {"customer_token": str(number) * length, "order_number": number}


def test_a_claim_keeps_what_fits_into_memory_and_releases_the_rest_as_it_was(app: AsyncTask, engine: Engine) -> None:
    ids = _write(engine, *[LONG] * 7, 3, 3)
    with Runtime(app._source, Attempt, dt.timedelta(seconds=5)) as runtime, open_lane(app._source) as lane:
        request = runtime.claimer.request("default", 9)
        claims, after = lane.run(lambda: runtime.claimer.claim(lane, request, is_limited=False))
    assert {one.id for one in claims} == {*ids[:4], *ids[7:]}
    assert sum(len(one.encoded_args) for one in claims) <= MOST
    assert after == dt.timedelta(0)  # there is more
    with engine.connect() as connection:
        rows = {row.id: row for row in connection.execute(select(TABLE))}
    for one in ids[4:7]:
        assert (rows[one].claim_id, rows[one].num_attempts, rows[one].attempted_at) == (None, 0, None)
    assert {one.id: one.encoded_args for one in claims} == {one.id: rows[one.id].method_args for one in claims}


@pytest.mark.slow
def test_one_attempt_is_claimed_however_long_its_arguments_are(app: AsyncTask, engine: Engine) -> None:
    _write(engine, 2 * MOST, 2 * MOST)
    report = app.run_batch(concurrency=1)
    assert (report.claimed, report.succeeded) == (2, 2)
    assert calls == [("0" * 2 * MOST, 0), ("1" * 2 * MOST, 1)]


def test_performing_one_by_its_id_reads_its_long_arguments(app: AsyncTask, engine: Engine) -> None:
    [one] = _write(engine, LONG)
    assert isinstance(app.perform(one), Succeeded)
    assert calls == [("0" * LONG, 0)]


@pytest.mark.slow
def test_a_worker_performs_long_and_short_attempts_once_each(app: AsyncTask, engine: Engine) -> None:
    make(engine, Client, 20, method_name="ping")
    _write(engine, *[LONG, 3] * 10)
    with working(app):
        await_(lambda: at_rest(engine), "all are done")
    assert sorted(number for _, number in calls if number != "ping") == list(range(20))
    with engine.connect() as connection:
        assert set(connection.scalars(select(Attempt.num_attempts))) == {1}
        assert set(connection.scalars(select(Attempt.num_crashes))) == {0}


def test_the_next_claim_is_as_large_as_the_last_arguments_allow() -> None:
    sizes = BatchSizes()
    sizes.to_claim.number = MAX_BATCH_SIZE
    sizes.note_weight(8, 8_000_000, 8_000_000)
    assert sizes.number_to_claim == 8
    sizes.note_weight(8, 80_000_000, 8_000_000)
    assert sizes.number_to_claim == 1
    sizes.note_weight(500, 0, 8_000_000)
    assert sizes.number_to_claim == MAX_BATCH_SIZE
