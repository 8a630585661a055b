"""Whole stories of attempts in a shop."""

import datetime as dt
import hashlib
import pathlib
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

import elsewhere
from async_task import Again, AsyncTask, Attempt, InvalidState, NotDue, NotPending, Status, Succeeded
from async_task.encryption.encryptors import register_encryptor
from clockwork import let_pass, row_of
from databases import Database
from elsewhere import await_, notes
from outbox import Broken, Client, Elsewhere, act_by_default_policy, acts, calls, effects, events_of

Write = Callable[..., Attempt]
ORDER = {"customer_token": "c-1", "order_number": 7355608}
DAY = dt.timedelta(days=1)


class Mirror:
    """Reverses the arguments and binds them to their row."""

    name = "test.mirror"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return hashlib.sha256(context).digest() + plaintext[::-1]

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        if ciphertext[:32] != hashlib.sha256(context).digest():
            raise ValueError("this was encrypted for another row")
        return ciphertext[32:][::-1]


@pytest.fixture
def answers() -> Iterator[list[object]]:
    """What the target returns in its tries, one after the other. Exceptions are raised."""
    left: list[object] = []

    def answer() -> object:
        said = left.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    acts[:] = [answer]
    yield left
    acts.clear()


@pytest.mark.slow
def test_an_order_is_committed_and_its_call_is_made(
    app: AsyncTask, engine: Engine, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        session.execute(effects.insert().values(what="the order"))
        attempt = Attempt.create(target=Client, method_name="fulfill", method_args=ORDER)
    assert calls == []
    assert app.run_batch().succeeded == 1
    assert calls == [("c-1", 7355608)]
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors) == (Status.SUCCEEDED, 1, 0)
    assert row.completed_at >= row.attempted_at >= row.created_at
    assert app.run_batch().claimed == 0


def test_an_order_is_rolled_back_and_its_call_is_never_made(app: AsyncTask, sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        attempt = Attempt.create(target=Client, method_name="fulfill", method_args=ORDER, session=session)
        session.flush()
        session.rollback()
    assert app.run_batch().claimed == 0
    assert app.perform(attempt.id) == NotPending(attempt.id, None)
    assert calls == []


@pytest.mark.slow
def test_a_call_fails_twice_and_succeeds_days_later(
    app: AsyncTask, engine: Engine, write: Write, answers: list[object]
) -> None:
    answers[:] = [Broken("away"), Broken("still away"), "here"]
    attempt = write(act_by_default_policy)
    for errors in (1, 2):
        assert app.run_batch().retried == 1
        row = row_of(engine, attempt.id)
        assert (row.status, row.num_attempts, row.num_errors, row.completed_at) == (
            Status.PENDING,
            errors,
            errors,
            None,
        )
        let_pass(engine, DAY)
    assert row_of(engine, attempt.id).last_error == "Broken: still away"
    assert app.run_batch().succeeded == 1
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors) == (Status.SUCCEEDED, 3, 2)
    assert [event.message for event in events_of(engine, attempt.id, "error")] == ["Broken: away", "Broken: still away"]


@pytest.mark.slow
def test_a_call_that_fails_for_four_days_ends_failed(
    app: AsyncTask, engine: Engine, write: Write, answers: list[object]
) -> None:
    answers[:] = [Broken("away")] * 9
    attempt = write(act_by_default_policy)
    while row_of(engine, attempt.id).status is Status.PENDING:
        assert app.run_batch().claimed == 1
        let_pass(engine, DAY)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_errors, row.num_attempts) == (Status.FAILED, 5, 5)


@pytest.mark.slow
def test_an_offer_expires_before_a_worker_makes_it(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "fulfill", ORDER, expires_at=dt.datetime.now(dt.UTC) + DAY)
    let_pass(engine, DAY)
    report = app.run_batch()
    assert (report.expired, report.claimed, calls) == (1, 0, [])
    assert row_of(engine, attempt.id).status == Status.EXPIRED
    assert app.perform(attempt.id) == NotPending(attempt.id, Status.EXPIRED)


@pytest.mark.slow
def test_a_process_is_killed_during_a_call_and_the_next_one_makes_the_call_again(
    app: AsyncTask, database: Database, door: str, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    attempt = write(Elsewhere, "hold", {"folder": str(tmp_path)})
    url = database.sync_url if door == "sync" else database.async_url
    with elsewhere.process(elsewhere.run_batch, url, 1.0) as process:
        await_(lambda: notes(tmp_path), "the call begins")
        process.kill()
    let_pass(engine, 60)
    report = await_(lambda: (done := app.run_batch()).claimed and done, "the attempt is recovered")
    assert (report.recovered, report.succeeded) == (1, 1)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.SUCCEEDED, 2, 0)
    assert [event.kind for event in events_of(engine, attempt.id)] == ["loss"]


def test_a_person_cancels_a_call_that_is_no_longer_wanted(
    app: AsyncTask, engine: Engine, write: Write, sessions: sessionmaker[Session]
) -> None:
    attempt = write(Client, "fulfill", ORDER)
    with sessions.begin() as session:
        session.get_one(Attempt, attempt.id).cancel(reason="ordered twice")
    assert app.run_batch().claimed == 0
    assert calls == []
    assert row_of(engine, attempt.id).status == Status.CANCELED
    with pytest.raises(InvalidState), sessions.begin() as session:
        session.get_one(Attempt, attempt.id).cancel()


@pytest.mark.slow
def test_a_person_removes_the_cause_and_retries_a_failed_call(
    app: AsyncTask, engine: Engine, write: Write, sessions: sessionmaker[Session], answers: list[object]
) -> None:
    answers[:] = [Broken("no such warehouse"), "done"]
    attempt = write(act_by_default_policy, max_attempts=1)
    assert app.run_batch().failed == 1
    let_pass(engine, DAY)
    assert app.run_batch().claimed == 0
    with sessions.begin() as session:
        session.get_one(Attempt, attempt.id).retry_now(reason="the warehouse is there")
    assert app.run_batch().succeeded == 1
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors) == (Status.SUCCEEDED, 2, 0)
    assert [event.kind for event in events_of(engine, attempt.id)] == ["error", "retry_now"]


@pytest.mark.slow
def test_a_target_is_called_again_until_its_work_is_finished(
    app: AsyncTask, engine: Engine, write: Write, answers: list[object]
) -> None:
    answers[:] = [Again(after=600), Again(after=600), "shipped"]
    attempt = write(act_by_default_policy)
    for number in (1, 2):
        assert app.run_batch().retried == 1
        assert app.run_batch().claimed == 0
        row = row_of(engine, attempt.id)
        assert (row.status, row.num_attempts, row.num_errors, row.last_error) == (Status.PENDING, number, 0, None)
        let_pass(engine, 600)
    assert app.run_batch().succeeded == 1
    assert row_of(engine, attempt.id).num_attempts == 3


@pytest.mark.slow
def test_a_call_scheduled_for_tomorrow_is_not_made_today(app: AsyncTask, engine: Engine, write: Write) -> None:
    tomorrow = dt.datetime.now(dt.UTC) + DAY
    attempt = write(Client, "fulfill", ORDER, scheduled_at=tomorrow)
    before = row_of(engine, attempt.id)
    assert app.run_batch().claimed == 0
    assert app.perform(attempt.id) == NotDue(attempt.id, before.due_at)
    assert row_of(engine, attempt.id) == before
    assert before.due_at == tomorrow
    let_pass(engine, DAY)
    assert app.perform(attempt.id) == Succeeded(attempt.id)


def test_the_target_gets_a_secret_that_the_row_does_not_show(app: AsyncTask, engine: Engine, write: Write) -> None:
    register_encryptor(Mirror())
    attempt = write(Client, "fulfill", ORDER, encryptor="test.mirror")
    row = row_of(engine, attempt.id)
    assert row.encryptor == "test.mirror"
    assert "7355608" not in row.method_args
    assert attempt.method_args == ORDER
    assert app.run_batch().succeeded == 1
    assert calls == [("c-1", 7355608)]
