"""The state of a row that is its own job, in one word, and which verbs it refuses: decided from its columns, and from
whether its attempt is being performed."""

import datetime as dt

from async_task.asyncable.scopes import NONE, Known, Scopes
from async_task.asyncable.verbs import SUBMIT, status_of

STATES = ("not_submitted", "waiting", "queued", "running", "failing", "expired", "processed", "canceled")
STUCK = frozenset({"queued", "running", "failing", "expired"})
"""The states of what is potentially stuck."""
RESTS = dt.timedelta(minutes=5)
"""How long after a try has begun people leave a row alone: it may be processed at this moment."""
LAST_OF_MINUTE = dt.timedelta(seconds=59, microseconds=999_999)
"""Added to an instant whose seconds are not told: the full minute is no earlier."""


def state_of(said: Scopes[Known], *, is_performing: bool) -> str:
    """One of STATES: the first of processed, canceled, not_submitted, waiting (for its delay), running (its attempt is
    being performed), expired (its window is over), failing (with an error), and queued."""
    holds = {
        "processed": said.processed(), "canceled": said.canceled(),
        "not_submitted": said.last_submitted_at.is_null(), "waiting": said.last_submitted_at.is_after(NONE),
        "running": is_performing, "expired": said.expired_without_processing(), "failing": said.with_error(),
    }  # fmt: skip
    return next((state for state, is_so in holds.items() if is_so), "queued")


def refusals(said: Scopes[Known], name: str, now: dt.datetime) -> dict[str, str | None]:
    """By verb, why a row of this name refuses it, or why people should leave it alone; None where neither holds."""
    status = status_of(said)
    may_submit = said.open() and said.submitted_at.is_null()
    return {
        SUBMIT: None if may_submit else f"{SUBMIT}: {name} is {status}",
        "restart": _rests(said, name, now) if said.submitted() else f"restart: {name} is {status}",
        "cancel": None if said.open() else f"cancel: {name} is {status}",
    }


def _rests(said: Scopes[Known], name: str, now: dt.datetime) -> str | None:
    if not said.attempted_at.is_after(RESTS):
        return None
    since: dt.datetime = said.attempted_at.value
    minutes = int((now - since).total_seconds() // 60)
    ago = f"{minutes} min ago" if minutes > 0 else "just now"
    return f"restart: {name} was attempted {ago}; restart it from {since + RESTS + LAST_OF_MINUTE:%H:%M} UTC"
