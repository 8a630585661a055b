"""Targets that take a session and follow one another, and what tests know about them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import outbox
from async_task import AsyncTask, Attempt, Retry, target
from async_task.queue.fenced_writes import release_succeed_and_lock
from databases import Database
from outbox import calls
from shared_calls import claim_many, does, put

RETRY = Retry.every(60)


@target("following.each", retry=RETRY)
def each(session: Session, number: int) -> Any:
    """Writes its number, and does what the test says."""
    calls.append(number)
    put(session, str(number))
    return outbox.acts[0](session, number)


@target("following.limited", retry=RETRY, timeout=5)
def limited(session: Session, number: int) -> Any:
    return each(session, number)


@target("following.strict", retry=RETRY, isolation="SERIALIZABLE")
def strict(session: Session, number: int) -> Any:
    return each(session, number)


def run(app: AsyncTask) -> None:
    app.run_batch(concurrency=1)


def is_locked(engine: Engine, attempt_id: Any) -> bool:
    with engine.connect() as connection:
        found = select(Attempt.id).where(Attempt.id == attempt_id).with_for_update(skip_locked=True)
        return connection.execute(found).first() is None


@pytest.fixture
def many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker thread claims many calls from the start, and they do nothing more until the test says what."""
    claim_many(partial(monkeypatch.setattr, raising=False))
    does(lambda session, number: None)


@pytest.fixture
def plain(database: Database, door: str) -> Iterator[AsyncTask]:
    """An application without the listeners of the tests, which would see each statement by itself."""
    if door == "async":  # `AsyncTask` opens the connections, for each loop
        yield AsyncTask(create_async_engine(database.async_url))
        return
    made = create_engine(database.sync_url)
    yield AsyncTask(made)
    made.dispose()


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each commit that was to lock the row of the next call, whether it did."""
    found: list[bool] = []

    def counting(*given: Any) -> bool:
        found.append(release_succeed_and_lock(*given))
        return found[-1]

    monkeypatch.setattr("async_task.execution.transaction.release_succeed_and_lock", counting)
    return found
