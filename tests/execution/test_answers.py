"""What the user's own code answers where it decides something: a wrong answer is charged, and the row says so."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import Again, AsyncTask, Attempt, Discard, Failed, Retried, Retry, RetryAfter, target
from clockwork import row_of
from conftest import by_one_door
from outbox import act, events_of, will

Write = Callable[..., Attempt]


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (Discard, "Discard"),
        (RetryAfter, "RetryAfter"),
        (Again, "Again"),
        (Discard("gone"), "Discard"),
        (RetryAfter(after=5), "RetryAfter"),
        (ValueError, "ValueError"),
    ],
)
def test_an_error_or_a_class_that_is_returned_is_charged(
    app: AsyncTask, engine: Engine, write: Write, answer: object, name: str
) -> None:
    will(lambda: answer)
    attempt = write(act)
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert row.num_errors == 1
    assert row.last_error.startswith(f"TypeError: the target returned {name}: exceptions are raised")


def broken_delay(errors: int) -> Any:
    return "soon"


@target("test.by_a_broken_policy", retry=Retry(broken_delay))
def by_a_broken_policy() -> None:
    raise ValueError("the call's own error")


@by_one_door
def test_a_broken_retry_policy_is_charged_and_the_row_and_its_event_say_so(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(by_a_broken_policy)
    assert app.run_batch().retried == 1
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.claim_id) == (1, 1, None)
    assert row.last_error == (
        "ValueError: the call's own error (its retry policy is broken, so the default one decided: "
        "its delay takes a timedelta or seconds, not a str)"
    )
    assert [event.message for event in events_of(engine, attempt.id)] == [row.last_error]


@by_one_door
def test_a_broken_retry_policy_does_not_outlive_max_attempts(app: AsyncTask, write: Write) -> None:
    outcome = app.perform(write(by_a_broken_policy, max_attempts=1).id)
    assert isinstance(outcome, Failed)
    assert "max_attempts used up: 1 of 1" in outcome.reason
