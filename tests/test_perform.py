"""Performing one attempt: `app.perform`, with every outcome, on every database, through both doors."""

from collections.abc import Callable

from sqlalchemy import Engine

from async_task import AsyncTask, Attempt, Retried, Status, Succeeded
from clockwork import row_of
from outbox import Client, calls, effect

Write = Callable[..., Attempt]


def test_a_call_that_returns_is_succeeded_and_counted_once(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "fulfill", {"customer_token": "c-1", "order_number": 7})
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.completed_at is not None) == (Status.SUCCEEDED, 1, True)
    assert calls == [("c-1", 7)]


def test_writes_of_a_raising_target_are_rolled_back_and_its_error_is_kept(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(effect, None, {"what": "raise"})
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors, row.completed_at) == (Status.PENDING, 1, 1, None)
    assert row.last_error == "Broken: after the write"
