"""What a poll does next: decided from a row alone."""

import datetime as dt

import pytest

from async_task import ConfigurationError, Polling, PollState
from async_task.polling.decisions import Reading, Step, decide

POLLING = Polling()
H = dt.timedelta(hours=1)
US = dt.timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("row", "step"),
    [
        (Reading("pending", None), Step.NOTHING),
        (Reading("pending", 0 * H), Step.START),
        (Reading("pending", 26 * H), Step.START),
        (Reading("pending", 26 * H + US), Step.GIVE_UP),
        (Reading("submitted", None), Step.STAMP),
        (Reading("submitted", 26 * H), Step.CHECK),
        (Reading("in_progress", 26 * H + US), Step.CHECK_LAST),
        (Reading("in_progress", -H / 12), Step.CHECK),
        (Reading("in_progress", -H / 12 - US), Step.REFUSE),
        (Reading("Ended", 0 * H), Step.REFUSE),
        (Reading("ended", 99 * H), Step.FETCH),
        (Reading("ended", None, is_handled=True), Step.FETCH),
        (Reading("failed", None), Step.SKIP_FETCH),
        (Reading("ended", None, is_fetched=True), Step.HANDLE),
        (Reading("ended", None, is_fetched=True, is_handled=True), Step.NOTHING),
    ],
)
def test_a_row_has_one_next_step(row: Reading, step: Step) -> None:
    assert decide(row, POLLING).step is step


def test_the_wait_depends_on_the_age_alone() -> None:
    ages = {0: 60, 59.9: 60, 60: 120, 179.9: 120, 180: 300, 480: 600, 1080: 1800, 2880: 1800, 90_000: 1800}
    waits = {age: POLLING.wait(dt.timedelta(seconds=age)).total_seconds() for age in ages}
    assert waits == ages


def test_the_states_are_those_of_a_provider() -> None:
    assert [one.value for one in PollState if one.is_terminal] == ["ended", "canceled", "expired", "failed"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": ()}, {"schedule": (60, 0)}, {"max_age": -1}, {"transient_errors": (ValueError("x"),)},
        {"queue": ""}, {"priority": 10}, {"schedule": 60}, {"transient_errors": ValueError},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Polling(**wrong)  # type: ignore[arg-type]
