"""The decision, without a database: what becomes of an attempt after the answer of its target."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task import Again, Discard, Retry, RetryAfter, Status
from async_task.outcomes import Standing, decide, error_alone

TICK, SECOND, HOUR = dt.timedelta(microseconds=1), dt.timedelta(seconds=1), dt.timedelta(hours=1)
DURATIONS = st.timedeltas(min_value=dt.timedelta(0), max_value=dt.timedelta(days=1000))
ERROR = ValueError("no")
MINUTELY = Retry.every(60)


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("Broken: no", "Broken: no"),
        ("max_attempts used up: 2 of 2: Broken: no", "Broken: no"),
        ("Broken: no (max_attempts used up: 2 of 2)", "Broken: no"),
        (f"no further try in its retry policy ({Retry.never().name}): Broken", "Broken"),
        (f"no further try in its retry policy ({Retry.schedule(60, 120).name}): Broken", "Broken"),
        ("Broken (the next try would be later than until = 4 days, 0:00:00 allows)", "Broken"),
        ("Broken (its next try would fall past expires_at)", "Broken"),
        ("max_attempts used up: 2 of 2", "max_attempts used up: 2 of 2"),
    ],
)
def test_an_error_is_told_without_the_reason_why_nothing_more_is_tried(text: str, alone: str) -> None:
    assert error_alone(text) == alone


def standing(
    age: dt.timedelta = SECOND, left: dt.timedelta | None = None, errors: int = 0, max_attempts: int | None = None
) -> Standing:
    return Standing(age, left, errors, max_attempts)


@pytest.mark.parametrize("answer", [None, 0, False, "done", {}, object(), Again])
def test_any_other_answer_is_success(answer: Any) -> None:
    assert decide(answer, standing(left=TICK, errors=99, max_attempts=1), Retry.never()).status is Status.SUCCEEDED


def test_an_error_is_charged_and_delayed_by_the_policy() -> None:
    decision = decide(ERROR, standing(), MINUTELY)
    assert (decision.status, decision.after, decision.charged) == (Status.PENDING, 60 * SECOND, True)
    assert decision.error is ERROR


@given(errors=st.integers(0, 50), most=st.integers(1, 50))
def test_the_error_that_uses_up_max_attempts_ends_failed(errors: int, most: int) -> None:
    decision = decide(ERROR, standing(errors=errors), Retry.every(60, max_attempts=most))
    assert decision.status is (Status.FAILED if errors + 1 >= most else Status.PENDING)


@pytest.mark.parametrize(("own", "policys"), [(2, 5), (5, 2), (2, None)])
def test_a_rows_own_max_attempts_stands_over_the_policys(own: int, policys: int | None) -> None:
    retry = Retry.every(60, max_attempts=policys)
    for errors in range(6):
        decision = decide(ERROR, standing(errors=errors, max_attempts=own), retry)
        assert (decision.status is Status.FAILED) == (errors + 1 >= own)


@pytest.mark.parametrize(
    ("age", "status"),
    [(3540 * SECOND - TICK, Status.PENDING), (3540 * SECOND, Status.PENDING), (3540 * SECOND + TICK, Status.FAILED)],
)
def test_an_error_that_would_be_retried_past_until_ends_failed_to_the_microsecond(
    age: dt.timedelta, status: Status
) -> None:
    assert decide(ERROR, standing(age=age), Retry.every(60, until=HOUR)).status is status


@pytest.mark.parametrize("charged", [True, False])
@pytest.mark.parametrize(
    ("left", "status"),
    [(60 * SECOND - TICK, Status.EXPIRED), (60 * SECOND, Status.EXPIRED), (60 * SECOND + TICK, Status.PENDING)],
)
def test_a_next_try_at_or_past_expires_at_ends_expired_to_the_microsecond(
    left: dt.timedelta, status: Status, charged: bool
) -> None:
    decision = decide(ERROR if charged else Again(after=60), standing(left=left), MINUTELY)
    assert (decision.status, decision.charged) == (status, charged)


def test_max_attempts_comes_before_until_and_until_before_expires_at() -> None:
    retry = Retry.every(60, max_attempts=1, until=HOUR)
    late = standing(age=2 * HOUR, left=SECOND)
    assert decide(ERROR, late, retry).reason == "max_attempts used up: 1 of 1"
    assert "until" in decide(ERROR, late, Retry.every(60, until=HOUR)).reason
    assert decide(ERROR, late, MINUTELY).status is Status.EXPIRED


@given(after=DURATIONS, age=DURATIONS, errors=st.integers(0, 10**6))
def test_again_is_bound_by_expires_at_alone(after: dt.timedelta, age: dt.timedelta, errors: int) -> None:
    decision = decide(Again(after=after), standing(age=age, errors=errors, max_attempts=1), Retry.never())
    assert (decision.status, decision.after, decision.charged) == (Status.PENDING, after, False)
    assert decision.error is None


def test_retry_after_uses_its_own_delay_and_is_charged() -> None:
    decision = decide(RetryAfter(after=7), standing(), MINUTELY)
    assert (decision.status, decision.after, decision.charged) == (Status.PENDING, 7 * SECOND, True)


def test_retry_after_is_bound_by_max_attempts_until_and_expires_at() -> None:
    error = RetryAfter(after=7)
    assert decide(error, standing(max_attempts=1), MINUTELY).status is Status.FAILED
    assert decide(error, standing(age=HOUR), Retry.every(60, until=HOUR)).status is Status.FAILED
    assert decide(error, standing(left=7 * SECOND), MINUTELY).status is Status.EXPIRED


@pytest.mark.parametrize("retry", [Retry.never(), Retry.schedule()])
def test_retry_after_does_not_overrule_a_policy_without_retries(retry: Retry) -> None:
    assert decide(RetryAfter(after=7), standing(), retry).status is Status.FAILED


def test_retry_after_has_a_message() -> None:
    assert str(RetryAfter(after=7)) == "asked to be tried again after 7 s"
    assert str(RetryAfter("slow down", after=7)) == "slow down"


def test_discard_ends_failed_at_once_and_its_reason_is_not_copied_into_the_decision() -> None:
    decision = decide(Discard("secret"), standing(left=TICK), MINUTELY)
    assert (decision.status, decision.charged) == (Status.FAILED, True)
    assert "secret" not in decision.reason


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError()])
def test_any_base_exception_is_an_error_like_others(error: BaseException) -> None:
    assert decide(error, standing(), MINUTELY).after == 60 * SECOND


def raising(error: BaseException) -> Callable[[int], Any]:
    def delays(errors: int) -> Any:
        raise error

    return delays


@pytest.mark.parametrize(
    ("delays", "said"),
    [
        (lambda errors: dt.timedelta(seconds=15 * 5**errors), "raised OverflowError"),
        (raising(SystemExit(3)), "raised SystemExit"),
        (lambda errors: "60", "its delay takes a timedelta or seconds, not a str"),
        (lambda errors: -1, "its delay cannot be negative, and was -1 s"),
        (lambda errors: float("inf"), "its delay takes a finite number of seconds"),
        (lambda errors: dt.timedelta.max, "its delay is at most a thousand years"),
    ],
)
def test_the_default_policy_decides_in_place_of_a_broken_one_and_the_decision_says_so(
    delays: Callable[[int], Any], said: str
) -> None:
    decision = decide(ERROR, standing(errors=39), Retry(delays), lambda: 1.0)
    assert (decision.status, decision.charged, decision.error) == (Status.PENDING, True, ERROR)
    assert decision.after == 3 * HOUR
    assert f"its retry policy is broken, so the default one decided: {said}" in decision.reason
    late = standing(age=4 * 24 * HOUR, errors=39)
    assert decide(ERROR, late, Retry(delays), lambda: 1.0).status is Status.FAILED
    assert decide(ERROR, standing(errors=39), Retry(delays, max_attempts=40)).status is Status.FAILED


def test_a_delay_may_be_a_number_of_seconds() -> None:
    decision = decide(ERROR, standing(), Retry(lambda errors: 3600, until=24 * HOUR))
    assert (decision.after, decision.reason) == (HOUR, "")


class Unfinished(RetryAfter):
    def __init__(self) -> None:
        """Without that of its base: it has no `after`."""


@pytest.mark.parametrize("after", [None, "soon", -1])
def test_a_broken_retry_after_is_delayed_by_the_policy(after: Any) -> None:
    error = Unfinished()
    if after is not None:
        error.after = after
    decision = decide(error, standing(), MINUTELY)
    assert (decision.after, decision.charged) == (60 * SECOND, True)
    assert "its Unfinished is broken, so its retry policy decided" in decision.reason


def test_a_retry_after_of_zero_is_due_at_once() -> None:
    assert decide(RetryAfter(after=0), standing(), MINUTELY).after == dt.timedelta(0)


def test_a_broken_again_is_charged_as_an_error() -> None:
    answer = Again(after=5)
    answer.after = "soon"  # type: ignore[assignment]
    decision = decide(answer, standing(), MINUTELY)
    assert (decision.after, decision.charged) == (60 * SECOND, True)
    assert "the target returned an Again whose after takes a timedelta or seconds, not a str" in str(decision.error)


@given(
    answer=st.sampled_from([None, ERROR, RetryAfter(after=5), Discard("x"), Again(after=5)]),
    age=DURATIONS, left=st.none() | DURATIONS, errors=st.integers(0, 100), most=st.none() | st.integers(1, 100),
    drawn=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_a_decision_has_a_delay_exactly_if_the_attempt_stays_pending(
    answer: object, age: dt.timedelta, left: dt.timedelta | None, errors: int, most: int | None, drawn: float
) -> None:
    decision = decide(answer, standing(age, left, errors, most), Retry.exponential(max_attempts=50), lambda: drawn)
    assert (decision.after is not None) == (decision.status is Status.PENDING)
    assert decision.charged == (decision.error is not None)
    if decision.after is not None and left is not None:
        assert decision.after < left
