"""Stored arguments that do not fit their call when it is performed: an error of the call, charged and retried."""

import datetime as dt
from collections.abc import Callable
from typing import Annotated

import pydantic
import pytest
from sqlalchemy import Engine, Table, update

from async_task import AsyncTask, Attempt, Retried, Retry, Status, Succeeded, target
from clockwork import let_pass, row_of
from outbox import Client, calls, events_of

Write = Callable[..., Attempt]
TABLE: Table = Attempt.__table__  # type: ignore[assignment]
HOUR = dt.timedelta(hours=1)


fussy: list[BaseException] = []


def _check(size: int) -> int:
    """Raises `fussy[0]`, if there is one."""
    if fussy:
        raise fussy[0]
    return size


class Box(pydantic.BaseModel):
    pass


@target("test.fit", retry=Retry.every(60))
def fit(size: Annotated[int, pydantic.AfterValidator(_check)] = 0, box: Box | None = None) -> None:
    calls.append((size, box))


UNFIT: dict[str, tuple[str, str]] = {
    "of an older signature": ('{"no_such_argument": 1}', "test.fit: no argument is named 'no_such_argument'; it takes"),
    "of another type": ('{"box": 1}', "test.fit: box: Input should be a valid dictionary or instance of Box"),
    "cut off": ("[1, 2", "the stored arguments are not JSON: the text was cut off or changed"),
    "of an unknown class": ('{"box": {"$": "a:B", "v": 1}}', "the stored arguments hold a a:B, which is not regis"),
}


def _unfit(engine: Engine, attempt: Attempt, text: str) -> None:
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == attempt.id).values(method_args=text))


@pytest.mark.slow
@pytest.mark.parametrize("way", UNFIT)
def test_stored_arguments_that_do_not_fit_are_an_error_of_the_call(
    app: AsyncTask, engine: Engine, write: Write, way: str
) -> None:
    text, why = UNFIT[way]
    attempt = write(fit, max_attempts=2)
    _unfit(engine, attempt, text)
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Retried)
    row = row_of(engine, attempt.id)
    assert row.last_error == outcome.error
    assert row.last_error.startswith(f"InvalidArguments: {why}")
    assert (outcome.after, row.num_attempts, row.num_errors, row.claim_id) == (dt.timedelta(seconds=60), 1, 1, None)
    let_pass(engine, HOUR)
    assert app.run_batch().failed == 1
    assert (row_of(engine, attempt.id).status, calls) == (Status.FAILED, [])
    assert [one.kind for one in events_of(engine, attempt.id)] == ["error", "error"]


class Odd(BaseException):
    """What no library expects."""


@pytest.mark.in_turns
@pytest.mark.parametrize("error", [RuntimeError("secret"), Odd("secret"), SystemExit("secret"), RecursionError()])
def test_whatever_a_validator_raises_is_an_error_of_the_call_without_its_text(
    app: AsyncTask, engine: Engine, write: Write, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    attempt, healthy = write(fit, None, {"size": 1}), write(Client, "ping")
    fussy.append(error)
    try:
        report = app.run_batch()
    finally:
        fussy.clear()
    assert (report.retried, report.succeeded, report.claimed) == (1, 1, 2)
    row = row_of(engine, attempt.id)
    assert row.last_error == f"InvalidArguments: test.fit: a validator raised {type(error).__name__}"
    assert (row.num_errors, row_of(engine, healthy.id).status) == (1, Status.SUCCEEDED)
    assert "secret" not in f"{row} {[one.detail for one in events_of(engine, attempt.id)]} {caplog.text}"
    let_pass(engine, HOUR)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
