"""A process that was silent for a lease, as one that was frozen, starts no call whose claim it may have lost."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from async_task import AsyncTask, Status, current_attempt
from async_task.database.clock import clock_now
from async_task.worker import heartbeat
from async_task.worker.watchdog import Watchdog
from claims import TABLE
from clockwork import forget_beats, let_pass, row_of
from conftest import LEASE, by_one_door
from elsewhere import await_
from outbox import act, act_in_session, act_in_session_leased, act_later, act_leased, act_shared, will
from workers import make

pytestmark = pytest.mark.long

KINDS = {
    "leased": act_leased,
    "leased, with a session": act_in_session_leased,
    "coroutine": act_later,
    "locked": act,
    "locked, with a session": act_in_session,
    "in a shared transaction": act_shared,
}
SILENCE = 3600.0
QUICK = 10


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how much the clock of heartbeats is ahead."""
    ahead = [0.0]
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0]))
    monkeypatch.setattr(Watchdog, "watch", lambda self, executor: None)  # it was frozen, too
    return ahead


@by_one_door
@pytest.mark.parametrize(("first", "kind"), [*(("the call", kind) for kind in KINDS), ("the heartbeat", "leased")])
def test_a_process_that_was_frozen_starts_no_call_that_another_one_has_made(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, clock: list[float],
    caplog: pytest.LogCaptureFixture, first: str, kind: str,
) -> None:  # fmt: skip
    """Whichever of its threads comes first when it goes on."""
    caplog.set_level(logging.INFO)
    if first == "the call":
        monkeypatch.setattr(heartbeat.Heartbeat, "_start", lambda self: None)
    begun, go_on = threading.Event(), threading.Event()
    made: list[str] = []

    def called(*given: Any) -> None:
        made.append(str(current_attempt().id))
        if len(made) == QUICK:
            begun.set()
            go_on.wait(60)

    will(called)
    options = {"method_args": {"number": 1}} if KINDS[kind] is act_shared else {}
    ids = make(engine, KINDS[kind], 4 * QUICK, **options)
    other = AsyncTask(engine, lease=LEASE)
    with ThreadPoolExecutor(1) as threads:
        batch = threads.submit(app.run_batch, concurrency=1)
        try:
            await_(begun.is_set, "a call takes long")
            await_(lambda: len(_claimed(engine)) > 1, "another one waits behind it")
            if kind == "coroutine":  # whose lane goes on: what it claims later would have a heartbeat
                await_(lambda: not _unclaimed(engine), "all are claimed")
            clock[0] += SILENCE
            if "lease" in kind or kind == "coroutine":  # the rows of the others are locked
                with engine.begin() as connection:
                    is_claimed = TABLE.c.claim_id.is_not(None)
                    connection.execute(update(TABLE).where(is_claimed).values(lease_until=clock_now(-SILENCE)))
                _recover_and_perform(engine, other)
            if first == "the heartbeat":
                await_(lambda: "had no heartbeat for 36" in caplog.text, "the heartbeat notices")
        finally:
            go_on.set()
        batch.result(60)
    let_pass(engine, SILENCE)
    _recover_and_perform(engine, other)
    rows = {str(one): row_of(engine, one) for one in ids}
    assert {row.status for row in rows.values()} == {Status.SUCCEEDED}
    others = rows.keys() - {made[QUICK - 1]}
    assert {one: made.count(one) for one in others} == {one: rows[one].num_attempts for one in others}


def _claimed(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(map(str, connection.scalars(select(TABLE.c.id).where(TABLE.c.claim_id.is_not(None)))))


def _unclaimed(engine: Engine) -> bool:
    waits = (TABLE.c.status == Status.PENDING, TABLE.c.claim_id.is_(None))
    with engine.connect() as connection:
        return connection.scalar(select(TABLE.c.id).where(*waits).limit(1)) is not None


def _recover_and_perform(engine: Engine, app: AsyncTask) -> None:
    forget_beats(engine)
    app.sweep()
    app.run_batch()
