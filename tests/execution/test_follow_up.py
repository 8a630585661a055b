"""What follows an outcome: the user's `handle_perform_error` after a failed try."""

import datetime as dt
import logging
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session, object_session, sessionmaker

from async_task import AsyncTask, Canceled, Expired, Failed, InvalidState, Parked, Retried, Status, Succeeded
from outbox import Broken, Client, HookedAttempt, application, effect, heard, hooks

Hook = Callable[[HookedAttempt, BaseException], None]
Sessions = sessionmaker[Session]
Write = Callable[..., UUID]


@pytest.fixture
def app(engine: Engine, door: str, async_engine_url: str) -> Iterator[AsyncTask]:
    hooks.clear()
    heard.clear()
    made = application(engine, door, async_engine_url, model=HookedAttempt)
    yield made
    made.close()


@pytest.fixture
def write_own(sessions: Sessions) -> Write:
    def write(target: object, method_name: str | None = None, method_args: Any = None, **options: Any) -> UUID:
        with sessions.begin() as session:
            return HookedAttempt.create(
                target=target, method_name=method_name, method_args=method_args, session=session, **options
            ).id

    return write


def read(sessions: Sessions, attempt_id: UUID) -> HookedAttempt:
    with sessions(expire_on_commit=False) as session:
        return session.get_one(HookedAttempt, attempt_id)


def test_the_hook_gets_the_raised_error_after_every_failed_try(
    app: AsyncTask, engine: Engine, write_own: Write
) -> None:
    attempt_id = write_own(Client, "fail", {"message": "no"}, max_attempts=2)
    assert isinstance(app.perform(attempt_id), Retried)
    with engine.begin() as connection:
        past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        connection.execute(update(HookedAttempt).values(due_at=past))
    assert isinstance(app.perform(attempt_id), Failed)
    assert [(one, type(error), str(error)) for one, error in heard] == [(str(attempt_id), Broken, "no")] * 2


@pytest.mark.parametrize(
    ("method", "arguments"), [("ask_for_patience", {"seconds": 5}), ("give_up", {"reason": "gone"})]
)
def test_the_hook_is_called_for_retry_after_and_discard_too(
    app: AsyncTask, write_own: Write, method: str, arguments: dict[str, Any]
) -> None:
    app.perform(write_own(Client, method, arguments))
    assert len(heard) == 1


def test_the_hook_is_called_only_after_a_failed_try(app: AsyncTask, engine: Engine, write_own: Write) -> None:
    assert isinstance(app.perform(write_own(Client, "ping")), Succeeded)
    assert isinstance(app.perform(write_own(Client, "poll")), Retried)
    parked = write_own(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(HookedAttempt).where(HookedAttempt.id == parked).values(target="gone"))
    assert isinstance(app.perform(parked), Parked)
    app.perform(write_own(Client, "ping", scheduled_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)))
    assert heard == []


def test_the_hook_sees_the_committed_state_and_runs_in_a_transaction_of_its_own(
    app: AsyncTask, sessions: Sessions, write_own: Write
) -> None:
    seen: list[Any] = []

    def look(attempt: HookedAttempt, error: BaseException) -> None:
        seen.append((attempt.num_errors, attempt.last_error, attempt.claim_id, object_session(attempt) is not None))
        with sessions() as other:  # committed: others see it too
            seen.append(other.get_one(HookedAttempt, attempt.id).num_errors)

    hooks[:] = [look]
    app.perform(write_own(effect, None, {"what": "raise"}))
    assert seen == [(1, "Broken: after the write", None, True), 1]


def test_writes_of_the_hook_are_committed(app: AsyncTask, sessions: Sessions, write_own: Write) -> None:
    def note(attempt: HookedAttempt, error: BaseException) -> None:
        attempt.note = f"told the shop: {error}"

    hooks[:] = [note]
    attempt_id = write_own(Client, "fail")
    assert isinstance(app.perform(attempt_id), Retried)
    assert read(sessions, attempt_id).note == "told the shop: no such order"


@pytest.mark.parametrize(
    ("verb", "outcome", "status"),
    [("fail", Failed, Status.FAILED), ("expire", Expired, Status.EXPIRED), ("cancel", Canceled, Status.CANCELED)],
)
def test_the_hook_may_fail_expire_or_cancel_the_attempt_and_that_is_the_outcome(
    app: AsyncTask, sessions: Sessions, write_own: Write, verb: str, outcome: type[Any], status: Status
) -> None:
    hooks[:] = [lambda attempt, error: getattr(attempt, verb)(reason="we know this one")]
    attempt_id = write_own(Client, "fail")
    ended = app.perform(attempt_id)
    assert isinstance(ended, outcome)
    assert getattr(ended, "reason", "we know this one") == "we know this one"
    attempt = read(sessions, attempt_id)
    assert (attempt.status, attempt.num_errors, attempt.last_error) == (status, 1, "we know this one")


def test_the_hook_cannot_fail_an_attempt_that_has_failed_already(
    app: AsyncTask, sessions: Sessions, write_own: Write
) -> None:
    raised: list[BaseException] = []

    def fail(attempt: HookedAttempt, error: BaseException) -> None:
        try:
            attempt.fail()
        except InvalidState as refused:
            raised.append(refused)

    hooks[:] = [fail]
    attempt_id = write_own(Client, "give_up", {"reason": "gone"})
    assert isinstance(app.perform(attempt_id), Failed)
    assert len(raised) == 1
    assert read(sessions, attempt_id).last_error == "Discard: gone"


@pytest.mark.parametrize("error", [ValueError("in the hook"), SystemExit(3), KeyboardInterrupt("in the hook")])
def test_an_exception_of_the_hook_is_logged_and_rolled_back_and_the_outcome_stays(
    app: AsyncTask, sessions: Sessions, write_own: Write, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def break_it(attempt: HookedAttempt, given: BaseException) -> None:
        attempt.note = "half done"
        attempt.fail()
        raise error

    hooks[:] = [break_it]
    attempt_id = write_own(Client, "fail")
    with caplog.at_level(logging.ERROR, "async_task"):
        assert isinstance(app.perform(attempt_id), Retried)
    assert f"handle_perform_error of attempt {attempt_id} raised {type(error).__name__}" in caplog.text
    attempt = read(sessions, attempt_id)
    assert (attempt.status, attempt.num_errors, attempt.note) == (Status.PENDING, 1, None)


def test_writes_of_the_hook_that_the_database_refuses_are_logged(
    app: AsyncTask, sessions: Sessions, write_own: Write, caplog: pytest.LogCaptureFixture
) -> None:
    def write_too_much(attempt: HookedAttempt, error: BaseException) -> None:
        attempt.priority = 99

    hooks[:] = [write_too_much]
    attempt_id = write_own(Client, "fail")
    assert isinstance(app.perform(attempt_id), Retried)
    assert "handle_perform_error" in caplog.text
    assert read(sessions, attempt_id).priority == 0
