"""The state of a row in one word, and what it refuses: decided without a database."""

import datetime as dt

import pytest

from async_task.asyncable.scopes import Known, Scopes, of_values
from async_task.asyncable.states import STATES, refusals, state_of

NOW = dt.datetime(2026, 11, 29, 14, 0, 30, tzinfo=dt.UTC)
MINUTE, HOUR, DAY = (dt.timedelta(**{unit: 1}) for unit in ("minutes", "hours", "days"))
NAMES = ("submitted_at", "last_submitted_at", "attempted_at", "processed_at", "canceled_at")


def row(error: str | None = None, **ago: dt.timedelta) -> Scopes[Known]:
    """`last`: how long ago it was last submitted; and so for other columns."""
    named = {"last_submitted_at": ago.pop("last")} if "last" in ago else {}
    values = {name: None if (by := (ago | named).get(name)) is None else NOW - by for name in NAMES}
    return of_values({**values, "error": error}, 3 * HOUR, 4 * DAY, NOW)


@pytest.mark.parametrize(
    ("said", "is_performing", "state"),
    [
        (row(), False, "not_submitted"),
        (row("Broken", attempted_at=HOUR), False, "not_submitted"),
        (row(last=-HOUR), True, "waiting"),
        (row(last=HOUR), False, "queued"),
        (row("Broken", last=HOUR), True, "running"),
        (row("Broken", last=HOUR), False, "failing"),
        (row("Broken", last=4 * DAY - MINUTE), False, "failing"),
        (row("Broken", last=4 * DAY), False, "expired"),
        (row(last=5 * DAY), True, "running"),
        (row(last=5 * DAY, canceled_at=HOUR), True, "canceled"),
        (row("Broken", last=5 * DAY, canceled_at=HOUR, processed_at=HOUR), False, "processed"),
    ],
)
def test_the_first_state_that_holds_is_the_state(said: Scopes[Known], is_performing: bool, state: str) -> None:
    assert state_of(said, is_performing=is_performing) == state
    assert state in STATES


def test_a_verb_is_refused_as_the_row_would_and_a_restart_also_for_five_minutes_after_a_try() -> None:
    assert refusals(row(), "Review 7", NOW) == {
        "submit_for_processing": None, "restart": "restart: Review 7 is not_yet_submitted", "cancel": None,
    }  # fmt: skip
    done = refusals(row(submitted_at=DAY, last=DAY, attempted_at=HOUR, processed_at=HOUR), "Review 7", NOW)
    assert done == {
        "submit_for_processing": "submit_for_processing: Review 7 is processed",
        "restart": None, "cancel": "cancel: Review 7 is processed",
    }  # fmt: skip
    for ago, words in (
        (2 * MINUTE, "restart: Review 7 was attempted 2 min ago; restart it from 14:04 UTC"),
        (dt.timedelta(seconds=30), "restart: Review 7 was attempted just now; restart it from 14:05 UTC"),
        (5 * MINUTE, None),
    ):
        assert refusals(row(submitted_at=DAY, last=DAY, attempted_at=ago), "Review 7", NOW)["restart"] == words
