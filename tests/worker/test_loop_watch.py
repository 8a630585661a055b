"""A coroutine that blocks the event loop of its process is noticed and named, and others do not wait behind it."""

import threading

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, target
from async_task.worker import loop_watch
from clockwork import row_of
from elsewhere import await_
from outbox import Client, act_later, will
from workers import counted, make, working

entered, opened = threading.Event(), threading.Event()


@target("loop_watch.blocking")
async def blocking() -> None:
    entered.set()
    opened.wait(30)


@pytest.mark.slow
def test_a_blocked_event_loop_is_said_and_starts_nothing_until_it_answers(
    app: AsyncTask, engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_watch, "EVERY", 0.02)
    monkeypatch.setattr(loop_watch, "PATIENCE", 0.2)
    entered.clear()
    opened.clear()
    will(lambda: None)
    [one] = make(engine, blocking)
    with working(app, concurrency=1):
        assert entered.wait(30)
        lease = row_of(engine, one).lease_until
        await_(lambda: "has not answered for 0.2 s" in caplog.text, "it is noticed")
        others = make(engine, act_later, 3)
        make(engine, Client, method_name="ping")
        await_(lambda: counted(engine) == {"succeeded": 1, "pending": 4}, "plain calls pass")
        await_(lambda: row_of(engine, one).lease_until > lease, "its lease is extended")
        assert {(row_of(engine, other).claim_id, row_of(engine, other).num_attempts) for other in others} == {(None, 0)}
        opened.set()
        await_(lambda: counted(engine) == {"succeeded": 5}, "all are performed")
    [said] = [one.getMessage() for one in caplog.records if "has not answered" in one.getMessage()]
    assert f"attempt {one} (loop_watch.blocking), in blocking, test_loop_watch.py:" in said
    assert row_of(engine, one).num_attempts == 1
