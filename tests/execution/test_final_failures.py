"""Final failures: whoever is on call reads one line about each, with what is asked first and no argument."""

import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt, Status
from async_task.encryption.encryptors import register_encryptor
from async_task.error_text import Failure, describe, without_values
from async_task.execution.parked_reasons import AGAIN_AFTER, MOST_REASONS, ParkedReasons
from async_task.queue.claim import Claim
from claims import claimed, seconds_from_now
from clockwork import let_pass, row_of
from conftest import by_one_door
from elsewhere import await_
from outbox import Client, act, act_in_session, act_later, acts
from workers import make, working

Write = Callable[..., Attempt]
Perform = Callable[[AsyncTask, Engine, Attempt], None]
CANARY = "tok-canary-7355608"


def _in_a_batch(app: AsyncTask, _engine: Engine, _attempt: Attempt) -> None:
    app.run_batch()


def _alone(app: AsyncTask, _engine: Engine, attempt: Attempt) -> None:
    app.perform(attempt.id)


def _by_a_worker(app: AsyncTask, engine: Engine, attempt: Attempt) -> None:
    with working(app):
        await_(lambda: row_of(engine, attempt.id).status != Status.PENDING, "it has ended")


PERFORMING = [_in_a_batch, _alone, _by_a_worker]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[logging.LogRecord]]]:
    """The records about final failures."""
    with caplog.at_level(logging.INFO, "async_task"):
        yield lambda: [one for one in caplog.records if getattr(one, "outcome", None) in ("failed", "expired")]


@pytest.mark.slow
@pytest.mark.parametrize("perform", PERFORMING)
def test_an_attempt_that_fails_for_good_is_logged_once_as_a_sentence_and_as_fields(
    app: AsyncTask, engine: Engine, write: Write, logged: Any, perform: Perform
) -> None:
    attempt = write(Client, "fail", {"message": CANARY}, max_attempts=1)
    perform(app, engine, attempt)
    [record] = logged()
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        "test.client.fail failed for good after 1 try: max_attempts used up: 1 of 1: Broken: [hidden] "
        f"(attempt {attempt.id})"
    )
    fields = ("attempt_id", "target", "method", "queue", "outcome", "try", "error")
    assert tuple(getattr(record, name) for name in fields) == (
        str(attempt.id), "test.client", "fail", "default", "failed", 1, "Broken: [hidden]",
    )  # fmt: skip
    assert CANARY in row_of(engine, attempt.id).last_error  # the table keeps it


@pytest.mark.slow
@pytest.mark.parametrize("target", [act, act_in_session, act_later], ids=["plain", "session", "coroutine"])
def test_each_kind_of_call_is_logged_with_the_places_of_its_error_and_without_values(
    app: AsyncTask, engine: Engine, logged: Any, target: Any
) -> None:
    def fail(*_: object) -> None:
        secret = CANARY
        raise ValueError(len(secret))

    acts[:] = [fail]
    make(engine, target, 1, max_attempts=1)
    with working(app):
        await_(logged, "it has failed")
    [record] = logged()
    error = record.exc_info[1]
    assert (type(error).__name__, str(error)) == ("ValueError", str(len(CANARY)))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert frames[-1].f_code.co_qualname.endswith("<locals>.fail")
    assert {str(frame.f_locals) for frame in frames} == {"{}"}
    assert "raise ValueError" in "".join(traceback.format_exception(error))


@pytest.mark.slow
def test_an_attempt_that_expires_is_logged_as_a_warning_by_a_sweep_a_perform_and_a_try(
    app: AsyncTask, engine: Engine, write: Write, logged: Any
) -> None:
    late = [write(Client, "ping", expires_at=seconds_from_now(60)) for _ in range(2)]
    tried = write(Client, "fail", expires_at=seconds_from_now(3000))
    with engine.begin() as connection:  # its next try is in 60 s
        table = Attempt.__table__
        connection.execute(table.update().where(table.c.id == tried.id).values(expires_at=seconds_from_now(30)))
    app.perform(tried.id)
    let_pass(engine, 120)
    app.perform(late[0].id)
    app.sweep()
    records = logged()
    assert {one.levelno for one in records} == {logging.WARNING}
    assert [one.getMessage() for one in records] == [
        f"test.client.fail expired after 1 try: its next try would fall past expires_at: Broken: no such order "
        f"(attempt {tried.id})",
        *(f"test.client.ping expired after 0 tries: past its expires_at (attempt {one.id})" for one in late),
    ]


@by_one_door
def test_what_a_person_ends_and_what_is_tried_again_is_no_final_failure(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    ended, tried = write(Client, "ping"), write(Client, "fail")
    app.write(lambda session: session.get(Attempt, ended.id).fail(reason="no longer wanted"))
    with caplog.at_level(logging.INFO, "async_task"):
        app.run_batch()
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", f"test.client.fail: try 1 of attempt {tried.id} raised Broken")
    ]
    assert row_of(engine, ended.id).status == Status.FAILED


@pytest.mark.slow
@by_one_door
def test_a_batch_reports_final_failures_in_groups(app: AsyncTask, engine: Engine, write: Write) -> None:
    for number in range(3):
        latest = write(Client, "give_up", {"reason": f"no order {number}"})
    late = write(Client, "ping", expires_at=seconds_from_now(60))
    let_pass(engine, 120)
    failed, expired = app.run_batch(concurrency=1).failures
    assert (failed.call, failed.status, failed.count, failed.latest) == (
        "test.client.give_up", Status.FAILED, 3, latest.id,
    )  # fmt: skip
    assert failed.reason == "Discard: no order 2"
    assert (expired.call, expired.status, expired.count, expired.latest) == (
        "test.client.ping", Status.EXPIRED, 1, late.id,
    )  # fmt: skip
    assert app.run_batch().failures == ()


class OutOfOrder:
    """An encryptor that cannot decrypt now, for a reason of its own."""

    name = "test.out_of_order"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return plaintext

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        raise RuntimeError("the key service does not answer")


register_encryptor(OutOfOrder())


@pytest.mark.slow
@by_one_door
def test_a_reason_for_parking_is_logged_once_for_each_call_and_not_for_each_row(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        write(Client, "ping")
    write(Client, "fulfill", {"customer_token": "a", "order_number": 1})
    with engine.begin() as connection:
        connection.execute(Attempt.__table__.update().values(encryptor="test.out_of_order", method_args="aGVsbG8="))
    app.run_batch()
    warned = [one.getMessage() for one in caplog.records if " is parked: " in one.getMessage()]
    assert sorted(one.partition(":")[0] for one in warned) == ["test.client.fulfill", "test.client.ping"]


def test_a_reason_that_goes_on_is_logged_again_after_an_hour(engine: Engine, write: Write) -> None:
    claim = claimed(engine, write(Client, "ping").id)
    now = 0.0
    reasons = ParkedReasons(lambda: now)
    assert [reasons.is_new(claim, "key 1 is missing"), reasons.is_new(claim, "key 2 is missing")] == [True, False]
    now = AGAIN_AFTER - 1
    assert not reasons.is_new(claim, "key 1 is missing")
    now = AGAIN_AFTER
    assert reasons.is_new(claim, "key 1 is missing")


def test_reasons_without_number_do_not_fill_the_memory(engine: Engine, write: Write) -> None:
    claim = claimed(engine, write(Client, "ping").id)
    reasons = ParkedReasons()
    for number in range(MOST_REASONS + 5):
        assert reasons.is_new(_of_target(claim, f"t{number}"), "gone")
    assert len(reasons._logged) == 5


def _of_target(claim: Claim, target: str) -> Claim:
    return claim._replace(target=target)


def test_an_exception_for_a_log_has_the_name_and_the_places_of_the_error_and_no_variables() -> None:
    class Declined(Exception):
        """Of a module of the user's."""

    def pay(token: str) -> None:
        raise Declined(f"the bank refuses {token}")

    with pytest.raises(Declined) as raised:
        pay(CANARY)
    made = without_values(raised.value, describe(raised.value, {CANARY}))
    assert (type(made).__qualname__, type(made).__module__) == (Declined.__qualname__, __name__)
    assert str(made) == "the bank refuses [hidden]"
    assert made.__cause__ is made.__context__ is None
    frames = list(traceback.walk_tb(made.__traceback__))
    assert [line for _, line in frames] == [line for _, line in traceback.walk_tb(raised.tb)]
    assert all(frame.f_back is None and not frame.f_locals for frame, _ in frames)


def test_an_exception_for_a_log_needs_no_traceback() -> None:
    made = without_values(ValueError("never raised"), Failure("ValueError: never raised", ""))
    assert (str(made), made.__traceback__) == ("never raised", None)
