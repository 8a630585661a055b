"""The user's `handle_perform_error`: called after a failed try, in the transaction of its outcome."""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session, object_session, sessionmaker

from async_task import AsyncTask, Canceled, Discard, Expired, Failed, InvalidState, Parked, Retried, Status, Succeeded
from outbox import (
    Broken,
    Client,
    HookedAttempt,
    act,
    act_in_session,
    act_in_session_leased,
    act_later,
    act_leased,
    act_shared,
    application,
    heard,
    hooks,
    will,
)

Sessions = sessionmaker[Session]
Write = Callable[..., UUID]


@pytest.fixture
def app(engine: Engine, door: str, async_engine_url: str) -> Iterator[AsyncTask]:
    hooks.clear()
    heard.clear()
    made = application(engine, door, async_engine_url, model=HookedAttempt)
    yield made
    made.close()
    hooks.clear()


@pytest.fixture
def write_own(sessions: Sessions) -> Write:
    def write(target: object, method_name: str | None = None, method_args: Any = None, **options: Any) -> UUID:
        with sessions.begin() as session:
            return HookedAttempt.create(
                target=target, method_name=method_name, method_args=method_args, session=session, **options
            ).id

    return write


def _raise_broken(*_: object) -> None:
    raise Broken("no")


TARGETS = [act, act_leased, act_later, act_in_session, act_in_session_leased, act_shared]


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


@pytest.mark.slow
def test_the_hook_is_called_only_after_a_failed_try(app: AsyncTask, engine: Engine, write_own: Write) -> None:
    assert isinstance(app.perform(write_own(Client, "ping")), Succeeded)
    assert isinstance(app.perform(write_own(Client, "poll")), Retried)
    parked = write_own(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(HookedAttempt).where(HookedAttempt.id == parked).values(target="gone"))
    assert isinstance(app.perform(parked), Parked)
    app.perform(write_own(Client, "ping", scheduled_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)))
    assert heard == []


@pytest.mark.in_turns
@pytest.mark.parametrize("performed", TARGETS)
def test_nobody_can_claim_the_attempt_before_the_hook_has_returned(
    app: AsyncTask, sessions: Sessions, write_own: Write, performed: Any
) -> None:
    seen: list[Any] = []

    def look(attempt: HookedAttempt, error: BaseException) -> None:
        seen.append((attempt.num_errors, attempt.last_error, attempt.claim_id, object_session(attempt) is not None))
        with sessions() as other:
            there = other.get_one(HookedAttempt, attempt.id)
            seen.append((there.num_errors, there.claim_id is not None))
        attempt.fail(reason="no second call")

    hooks[:] = [look]
    will(_raise_broken)
    attempt_id = write_own(performed, None, {"number": 1} if performed is act_shared else None)
    assert app.run_batch().failed == 1
    assert seen == [(1, "Broken: no", None, True), (0, True)]
    attempt = read(sessions, attempt_id)
    assert (attempt.status, attempt.num_attempts, attempt.num_errors) == (Status.FAILED, 1, 1)
    assert attempt.last_error == "no second call"


def test_writes_of_the_hook_are_committed(app: AsyncTask, sessions: Sessions, write_own: Write) -> None:
    def note(attempt: HookedAttempt, error: BaseException) -> None:
        attempt.note = f"told the shop: {error}"

    hooks[:] = [note]
    attempt_id = write_own(Client, "fail")
    assert isinstance(app.perform(attempt_id), Retried)
    assert read(sessions, attempt_id).note == "told the shop: no such order"


@pytest.mark.slow
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


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("verb", "outcome", "status"),
    [("fail", Failed, Status.FAILED), ("expire", Expired, Status.EXPIRED), ("cancel", Canceled, Status.CANCELED)],
)
@pytest.mark.parametrize("last", [{"max_attempts": 1}, {"method_name": "give_up", "method_args": {"reason": "gone"}}])
def test_the_hook_may_end_the_attempt_also_after_its_last_try(
    app: AsyncTask,
    sessions: Sessions,
    write_own: Write,
    caplog: pytest.LogCaptureFixture,
    last: dict[str, Any],
    verb: str,
    outcome: type[Any],
    status: Status,
) -> None:
    def end(attempt: HookedAttempt, error: BaseException) -> None:
        attempt.note = "somebody must look"
        getattr(attempt, verb)(reason="declined")

    hooks[:] = [end]
    attempt_id = write_own(Client, **{"method_name": "fail", **last})
    ended = app.perform(attempt_id)
    assert isinstance(ended, outcome)
    assert getattr(ended, "reason", "declined") == "declined"
    attempt = read(sessions, attempt_id)
    assert (attempt.status, attempt.last_error, attempt.note) == (status, "declined", "somebody must look")
    assert (attempt.num_errors, attempt.completed_at is not None) == (1, True)
    assert "handle_perform_error" not in caplog.text


def test_the_hook_may_make_an_attempt_due_again_after_its_last_try(
    app: AsyncTask, sessions: Sessions, write_own: Write
) -> None:
    hooks[:] = [lambda attempt, error: attempt.retry_now(reason="once more")]
    attempt_id = write_own(Client, "give_up", {"reason": "gone"})
    assert isinstance(app.perform(attempt_id), Retried)
    assert read(sessions, attempt_id).status is Status.PENDING


def test_what_only_the_hook_may_do_is_refused_after_it(app: AsyncTask, sessions: Sessions, write_own: Write) -> None:
    attempt_id = write_own(Client, "give_up", {"reason": "gone"})
    assert isinstance(app.perform(attempt_id), Failed)
    with sessions.begin() as session, pytest.raises(InvalidState, match="is failed, and must be pending"):
        session.get_one(HookedAttempt, attempt_id).fail(reason="again")


def test_a_coroutine_as_hook_is_awaited_and_may_fail_the_attempt(
    app: AsyncTask, sessions: Sessions, write_own: Write
) -> None:
    async def later(attempt: HookedAttempt) -> None:
        await asyncio.sleep(0)
        attempt.note = "awaited"
        attempt.fail(reason="declined")
        await asyncio.wait_for(asyncio.sleep(0), timeout=5)

    hooks[:] = [lambda attempt, error: later(attempt)]
    attempt_id = write_own(Client, "fail")
    assert isinstance(app.perform(attempt_id), Failed)
    attempt = read(sessions, attempt_id)
    assert (attempt.status, attempt.last_error, attempt.note) == (Status.FAILED, "declined", "awaited")


def test_an_exception_of_a_coroutine_as_hook_is_logged_and_its_writes_are_undone(
    app: AsyncTask, sessions: Sessions, write_own: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async def later(attempt: HookedAttempt) -> None:
        attempt.fail(reason="half done")
        await asyncio.sleep(0)
        raise ValueError("in the hook")

    hooks[:] = [lambda attempt, error: later(attempt)]
    attempt_id = write_own(Client, "fail")
    assert isinstance(app.perform(attempt_id), Retried)
    assert f"handle_perform_error of attempt {attempt_id} raised ValueError" in caplog.text
    assert read(sessions, attempt_id).last_error == "Broken: no such order"


def test_an_answer_of_the_hook_is_said_to_be_ignored(
    app: AsyncTask, write_own: Write, caplog: pytest.LogCaptureFixture
) -> None:
    hooks[:] = [lambda attempt, error: Discard("I thought so")]
    assert isinstance(app.perform(write_own(Client, "fail")), Retried)
    assert "returned a Discard, which is ignored: call self.fail()" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["ROLLBACK", "COMMIT"])
def test_a_hook_that_ends_the_transaction_loses_no_outcome(
    app: AsyncTask, sessions: Sessions, write_own: Write, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    def end_it(attempt: HookedAttempt, error: BaseException) -> None:
        session = object_session(attempt)
        assert session is not None
        session.connection().exec_driver_sql(statement)

    hooks[:] = [end_it]
    attempt_id = write_own(Client, "fail")
    assert isinstance(app.perform(attempt_id), Retried)
    attempt = read(sessions, attempt_id)
    assert (attempt.status, attempt.num_attempts, attempt.num_errors) == (Status.PENDING, 1, 1)
    assert "handle_perform_error" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError("in the hook"), SystemExit(3), KeyboardInterrupt("in the hook")])
def test_an_exception_of_the_hook_is_logged_and_rolled_back_and_the_outcome_stays(
    app: AsyncTask, sessions: Sessions, write_own: Write, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def break_it(attempt: HookedAttempt, given: BaseException) -> None:
        attempt.note = "half done"
        attempt.fail()
        session = object_session(attempt)
        assert session is not None
        session.commit()
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


def test_the_hook_decides_about_stored_arguments_that_do_not_fit(
    app: AsyncTask, engine: Engine, write_own: Write
) -> None:
    attempt_id = write_own(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(HookedAttempt).values(method_args='{"of_an_older_signature": 1}'))
    hooks[:] = [lambda attempt, error: attempt.fail(reason=type(error).__name__)]
    assert app.perform(attempt_id) == Failed(attempt_id, "InvalidArguments")
