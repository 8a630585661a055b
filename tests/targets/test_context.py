"""What a target may answer, and what it knows of its attempt."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from async_task import Again, AsyncTaskError, ConfigurationError, Discard, RetryAfter, current_attempt


def test_there_is_no_current_attempt_outside_of_a_call() -> None:
    with pytest.raises(AsyncTaskError, match="no attempt is being performed here"):
        current_attempt()


@pytest.mark.parametrize("after", [90, 90.0, dt.timedelta(minutes=1.5)])
def test_a_delay_is_seconds_or_a_timedelta(after: Any) -> None:
    assert Again(after=after).after == RetryAfter(after=after).after == dt.timedelta(seconds=90)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Again(after=10**12), r"Again\(after=\) is at most a thousand years"),
        (lambda: Again(after=-1), r"Again\(after=\) cannot be negative"),
        (lambda: RetryAfter(after="60"), r"RetryAfter\(after=\) takes a timedelta or seconds, not a str"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_delay_is_refused(make: Callable[[], Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        make()


def test_an_answer_has_a_default_message() -> None:
    assert repr(Again(after=7)) == "Again(after=7)"
    assert str(RetryAfter(after=7)) == "asked to be tried again after 7 s"
    assert str(RetryAfter("slow down", after=7)) == "slow down"
    assert str(Discard()) == "discarded by its target"
    assert str(Discard("gone")) == Discard("gone").reason == "gone"
