"""`app.retry_failures` and `async-task failures retry`: a frozen set, a few of them first, until the error returns."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, update

from async_task import AsyncTask, Attempt, ConfigurationError, RetryReport, Status
from claims import TABLE
from clockwork import row_of
from conftest import by_one_door
from outbox import Broken, act, calls, events_of, will
from said import Run

Write = Callable[..., Attempt]


@pytest.fixture
def failed(app: AsyncTask, engine: Engine, write: Write) -> Callable[..., tuple[str, list[Attempt]]]:
    """`failed(3)`: the fingerprint, and as many attempts that failed by its error; their target works from now on."""

    def make(number: int, **options: Any) -> tuple[str, list[Attempt]]:
        will(_break)
        made = [write(act, max_attempts=1, **options) for _ in range(number)]
        app.run_batch(concurrency=1)
        will(lambda: calls.append("done"))
        [fingerprint] = {events_of(engine, one.id, "error")[-1].fingerprint for one in made}
        return fingerprint, made

    return make


def _break() -> None:
    raise Broken("the warehouse is away")


def _break_otherwise() -> None:
    raise KeyError("the shelf")


def statuses(engine: Engine, attempts: list[Attempt]) -> list[str]:
    return [str(row_of(engine, one.id).status) for one in attempts]


@pytest.mark.slow
@by_one_door
def test_what_failed_by_one_error_is_retried_oldest_first_and_nothing_else(
    app: AsyncTask, engine: Engine, write: Write, failed: Any
) -> None:
    fingerprint, made = failed(3)
    will(_break_otherwise)
    other = write(act, max_attempts=1)
    app.run_batch()
    seen: list[RetryReport] = []
    report = app.retry_failures(fingerprint, reason="it is back", progress=seen.append)
    assert (report.retried, report.refused, report.left, report.end) == (3, 0, 0, "done")
    assert [one.attempt_id for one in seen] == [one.id for one in made]
    assert statuses(engine, [*made, other]) == ["pending", "pending", "pending", "failed"]
    assert {events_of(engine, one.id, "retry_now")[0].message for one in made} == {"it is back"}
    assert app.retry_failures(fingerprint, reason="again").retried == 0


@pytest.mark.slow
@by_one_door
def test_the_set_is_frozen_and_what_changed_meanwhile_is_refused(app: AsyncTask, engine: Engine, failed: Any) -> None:
    fingerprint, (first, second, third) = failed(3)
    frozen = app.attempts.failed_by(fingerprint)
    assert (frozen.ids, frozen.is_complete) == ((first.id, second.id, third.id), True)
    app.write(lambda session: session.get(Attempt, first.id).retry_now())
    app.perform(first.id)
    with engine.begin() as connection:
        connection.execute(TABLE.delete().where(TABLE.c.id == second.id))
    seen: list[RetryReport] = []
    report = app.retry_failures(frozen, reason="it is back", progress=seen.append)
    assert (report.retried, report.refused, report.left, report.end) == (1, 2, 0, "done")
    refused = [one.why_refused or "" for one in seen]
    assert "was changed meanwhile, and is succeeded" in refused[0]
    assert "there is no attempt" in refused[1]
    assert refused[2] == ""


@pytest.mark.slow
@by_one_door
def test_an_attempt_whose_last_error_was_another_is_not_in_the_set(app: AsyncTask, engine: Engine, failed: Any) -> None:
    fingerprint, (first, second) = failed(2)
    will(_break_otherwise)
    app.write(lambda session: session.get(Attempt, first.id).retry_now())
    app.perform(first.id)
    assert statuses(engine, [first, second]) == ["failed", "failed"]
    assert app.attempts.failed_by(fingerprint).ids == (second.id,)


def answering(app: AsyncTask) -> Callable[[RetryReport], None]:
    """Perform what is due as soon as the first ones are awaited."""
    return lambda report: app.run_batch() and None if report.is_waiting else None


@pytest.mark.slow
@by_one_door
def test_the_others_follow_only_if_the_first_ones_succeed(app: AsyncTask, engine: Engine, failed: Any) -> None:
    fingerprint, made = failed(4)
    report = app.retry_failures(fingerprint, reason="it is back", first=2, progress=answering(app))
    assert (report.retried, report.left, report.end) == (4, 0, "done")
    assert statuses(engine, made) == ["succeeded", "succeeded", "pending", "pending"]


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize(
    ("breaks", "end"), [(_break, "returned"), (_break_otherwise, "canary")], ids=["the same error", "another error"]
)
def test_after_an_error_of_the_first_ones_nothing_else_is_retried(
    app: AsyncTask, engine: Engine, failed: Any, breaks: Callable[[], Any], end: str
) -> None:
    fingerprint, made = failed(4)
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(max_attempts=5))
    will(breaks)
    report = app.retry_failures(fingerprint, reason="it is back", first=2, progress=answering(app))
    assert (report.retried, report.left, report.end) == (2, 2, end)
    assert statuses(engine, made) == ["pending", "pending", "failed", "failed"]


@pytest.mark.slow
@by_one_door
def test_it_stops_when_the_error_returns_when_it_is_told_to_and_when_the_first_ones_take_too_long(
    app: AsyncTask, engine: Engine, write: Write, failed: Any
) -> None:
    fingerprint, made = failed(5)
    assert app.retry_failures(fingerprint, reason="x", first=1, wait=0.01).end == "late"
    stop = threading.Event()
    report = app.retry_failures(fingerprint, reason="x", progress=lambda _: stop.set(), stop=stop)
    assert (report.retried, report.left, report.end) == (1, 3, "stopped")

    def break_again(_report: RetryReport) -> None:
        will(_break)
        write(act, max_attempts=1)
        app.run_batch(concurrency=1)

    report = app.retry_failures(fingerprint, reason="x", progress=break_again)
    assert (report.retried, report.end) == (1, "returned")
    assert report.left == 2
    assert statuses(engine, made)[3:] == ["failed", "failed"]


@pytest.mark.slow
@by_one_door
def test_order_keys_are_respected(app: AsyncTask, engine: Engine, failed: Any) -> None:
    fingerprint, made = failed(1, order_key="c-1")
    _, more = failed(1, order_key="c-1")
    assert app.retry_failures(fingerprint, reason="it is back").retried == 2
    released = [row_of(engine, one.id).released for one in (*made, *more)]
    assert released.count(True) <= 1
    app.run_batch(concurrency=1)
    app.run_batch(concurrency=1)
    first, second = (row_of(engine, one.id) for one in (*made, *more))
    assert first.status == second.status == Status.SUCCEEDED
    assert first.completed_at <= second.attempted_at


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reason": " "}, "retry_failures takes a reason"),
        ({"first": 0}, "first"),
        ({"wait": "x"}, "wait"),
        ({"stop": True}, "stop takes a threading.Event"),
        ({"failures": "3f9a"}, "a fingerprint has 12 hexadecimal digits"),
    ],
)
def test_invalid_arguments_are_refused(app: AsyncTask, options: Any, said: str) -> None:
    given = {"failures": "0" * 12, "reason": "it is back"} | options
    with pytest.raises(ConfigurationError, match=said):
        app.retry_failures(given.pop("failures"), **given)


@pytest.mark.slow
@by_one_door
def test_the_command_shows_the_set_asks_and_says_what_it_did(run: Run, engine: Engine, failed: Any) -> None:
    fingerprint, made = failed(2)
    assert fingerprint in run("failures", "list").out
    retry = ("failures", "retry", fingerprint, "--reason", "it is back")
    dry = run(*retry, "--dry-run")
    assert dry.err.startswith(f"2 attempts failed with {fingerprint} until 2")
    assert dry.err.endswith("retry: 2 would be done.\n")
    assert f"{made[0].id}  is failed, would be pending, due now" in dry.out
    asked = run(*retry)
    assert (asked.code, "Retry 2 attempts?" in asked.err or "retry 2 attempts?" in asked.err) == (2, True)
    assert statuses(engine, made) == ["failed", "failed"]
    late = run(*retry, "--yes", "--first", "1", "--wait", "5ms", "--json", "--actor", "anna")
    assert (late.code, late.lines[0]["id"], late.lines[0]["ok"]) == (1, str(made[0].id), True)
    said = "retry: 1 done, 1 left: those that were tried first have not ended in time.\n"
    assert late.err.endswith(f"Waiting until 1 attempt has ended.\n{said}")
    [event] = events_of(engine, made[0].id, "retry_now")
    assert (event.actor, event.message) == ("anna", "it is back")
    done = run(*retry, "--yes")
    assert (done.code, done.out) == (0, f"{made[1].id}  pending, due now\n")
    assert run(*retry, "--yes").err.startswith(f"No attempt failed with {fingerprint} until")
    assert run("failures", "retry", "xyz", "--reason", "x").code == 2
    assert run("failures", "retry", fingerprint).code == 2
