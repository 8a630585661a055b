"""Calls that a process does not know, or has no key for: it leaves them to others at once, uncharged, and does not
claim them again."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from async_task import AesGcmEncryptor, AsyncTask, Attempt, Key, Parked, target
from async_task.encryption import encryptors
from async_task.encryption import keys as keys_module
from async_task.encryption.encryptors import register_encryptor
from async_task.queue import workers as running
from async_task.queue.fenced_writes import release_to_others
from async_task.wakeup import notify
from async_task.wakeup.notify import channel_of
from async_task.worker import unknown_calls
from claims import claimed
from clockwork import row_of
from elsewhere import await_
from outbox import Client
from workers import counted, make, working

TABLE: Any = Attempt.__table__
NEWER = "test.of_a_newer_release"


@pytest.fixture
def unknown(engine: Engine) -> list[uuid.UUID]:
    """Thirty due attempts of a target that this process does not know."""
    return _made_unknown(engine, 30, target=NEWER)


def _made_unknown(engine: Engine, number: int, **values: Any) -> list[uuid.UUID]:
    ids = make(engine, Client, number, method_name="ping")
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id.in_(ids)).values(values))
    return ids


def _rows(engine: Engine, ids: Sequence[uuid.UUID]) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(TABLE).where(TABLE.c.id.in_(ids)).order_by(TABLE.c.id)))


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.slow
def test_a_worker_leaves_unknown_calls_where_they_stood_and_says_so_once(
    app: AsyncTask, engine: Engine, unknown: list[uuid.UUID], caplog: pytest.LogCaptureFixture
) -> None:
    before = _rows(engine, unknown)
    make(engine, Client, method_name="ping")
    with working(app, concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 1, "pending": 30}, "the known call behind them was made")
        await_(lambda: all(row.claim_id is None for row in _rows(engine, unknown)), "none is claimed")
        left = _rows(engine, unknown)
        make(engine, Client, method_name="ping")
        await_(lambda: counted(engine) == {"succeeded": 2, "pending": 30}, "the next one was made too")
        assert _rows(engine, unknown) == left
    facts = ("status", "due_at", "queue", "num_attempts", "num_errors", "num_crashes", "last_error", "attempted_at")
    assert [[getattr(row, fact) for fact in facts] for row in left] == [
        [getattr(row, fact) for fact in facts] for row in before
    ]
    [said] = [text for text in _warnings(caplog) if NEWER in text]
    assert "leaves calls of test.of_a_newer_release to other workers: no target is registered as" in said
    assert {one.id for one in app.attempts.list(status="stuck").attempts} == set(unknown)


@pytest.mark.slow
def test_only_the_unknown_method_of_a_known_target_is_left(app: AsyncTask, engine: Engine) -> None:
    ids = _made_unknown(engine, 5, method_name="added_later")
    make(engine, Client, 5, method_name="ping")
    with working(app):
        await_(lambda: counted(engine) == {"succeeded": 5, "pending": 5}, "the known method was called")
    assert {row.num_attempts for row in _rows(engine, ids)} == {0}


@pytest.mark.slow
def test_a_call_is_made_when_its_target_is_registered_at_last(
    app: AsyncTask, engine: Engine, unknown: list[uuid.UUID], registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_calls, "RECHECK", 0.0)
    with working(app):
        make(engine, Client, method_name="ping")
        await_(lambda: counted(engine) == {"succeeded": 1, "pending": 30}, "the worker has seen them")
        target(Client, name=NEWER)
        await_(lambda: counted(engine) == {"succeeded": 31}, "it knows them now")


@pytest.mark.slow
def test_an_unknown_suspect_is_left_too(app: AsyncTask, engine: Engine) -> None:
    ids = _made_unknown(engine, 2, target=NEWER, num_crashes=1, num_attempts=1)
    with working(app) as worker:
        await_(lambda: bool(worker._workload and worker._workload.runtime.unknown_calls.left_out()), "one was seen")
        await_(lambda: all(row.claim_id is None for row in _rows(engine, ids)), "none is claimed")
    assert {(row.num_attempts, row.num_crashes, row.last_error) for row in _rows(engine, ids)} == {(1, 1, None)}


@pytest.mark.slow
def test_a_batch_reports_what_it_left(
    app: AsyncTask, engine: Engine, unknown: list[uuid.UUID], caplog: pytest.LogCaptureFixture
) -> None:
    make(engine, Client, 5, method_name="ping")
    began = time.monotonic()
    report = app.run_batch()
    assert (report.claimed, report.succeeded, report.parked, report.unknown) == (5, 5, 0, 30)
    assert time.monotonic() - began < 5, "the batch waits for what it does not know"
    assert len(_warnings(caplog)) == 1
    limited = app.run_batch(limit=3)
    assert (limited.claimed, limited.unknown) == (0, 30)


def test_performing_one_by_its_id_leaves_it_as_it_was(app: AsyncTask, engine: Engine, unknown: list[uuid.UUID]) -> None:
    before = row_of(engine, unknown[0])
    outcome = app.perform(unknown[0])
    assert isinstance(outcome, Parked)
    assert (outcome.after.total_seconds(), outcome.reason.split(":")[0]) == (0, "UnknownTarget")
    after = row_of(engine, unknown[0])
    assert (after.due_at, after.num_attempts, after.claim_id) == (before.due_at, 0, None)


@pytest.mark.only_on("postgresql")
def test_sleeping_workers_are_notified_of_what_is_left_to_them(
    engine: Engine, unknown: list[uuid.UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_known", {})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        running.mark_asleep(connection, TABLE, "elsewhere:1:0", kind="worker")
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    claim = claimed(engine, unknown[0])
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute(f'LISTEN "{channel_of(TABLE)}"')
        release_to_others(engine, TABLE, [claim])
        [notice] = list(listener.notifies(timeout=5, stop_after=1))
    assert (notice.payload, row_of(engine, claim.id).claim_id) == ("1 default", None)


@pytest.fixture
def sealed(engine: Engine) -> Iterator[Callable[[], None]]:
    """Ten attempts under the key "new", which this process lacks until the function that is returned is called."""
    old, new = Key.generate(id="old"), Key.generate(id="new")
    known = dict(encryptors._known)
    register_encryptor(AesGcmEncryptor([new]))
    with Session(engine) as session, session.begin():
        for _ in range(10):
            Attempt.options(encryptor="aes-gcm", session=session).call(Client.ping)
    keys = [old]
    register_encryptor(AesGcmEncryptor(lambda: keys))
    yield lambda: keys.append(new)
    encryptors._known.clear()
    encryptors._known.update(known)


@pytest.mark.slow
def test_calls_under_a_key_that_is_missing_here_are_left_to_others_until_the_key_comes(
    app: AsyncTask, engine: Engine, sealed: Callable[[], None], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(unknown_calls, "RECHECK_KEYS", 0.0)
    make(engine, Client, method_name="ping")
    with Session(engine) as session, session.begin():
        known = Attempt.options(encryptor="aes-gcm", session=session).call(Client.ping).id
        ids = list(session.scalars(select(Attempt.id).where(Attempt.encryptor == "aes-gcm", Attempt.id != known)))
    before = _rows(engine, ids)
    with working(app, concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 2, "pending": 10}, "those that can be decrypted were made")
        await_(lambda: all(row.claim_id is None for row in _rows(engine, ids)), "none is claimed")
        facts = ("due_at", "queue", "num_attempts", "num_errors", "num_crashes", "last_error")
        for row, was in zip(_rows(engine, ids), before, strict=True):
            assert [getattr(row, fact) for fact in facts] == [getattr(was, fact) for fact in facts]
        [said] = [text for text in _warnings(caplog) if "key" in text]
        assert "leaves calls with encrypted arguments to other workers: they are under the key 'new' of 'aes-" in said
        monkeypatch.setattr(keys_module, "REFRESH_EVERY", 0.0)
        sealed()
        await_(lambda: counted(engine) == {"succeeded": 12}, "the key is here")


@pytest.mark.slow
def test_calls_of_an_encryptor_that_is_missing_here_are_left_to_others(
    app: AsyncTask, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    ids = _made_unknown(engine, 10, encryptor="of.a.newer.release")
    make(engine, Client, method_name="ping")
    with working(app, concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 1, "pending": 10}, "the known call was made")
        await_(lambda: all(row.claim_id is None for row in _rows(engine, ids)), "none is claimed")
    assert {(row.num_attempts, row.last_error) for row in _rows(engine, ids)} == {(0, None)}
    assert [text for text in _warnings(caplog) if "no encryptor is named 'of.a.newer.release'" in text][1:] == []
    assert app.run_batch().unknown == 10
