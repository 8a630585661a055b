"""What a poll does next, decided from the row alone: no session, no clock, no I/O."""

import datetime as dt
from dataclasses import dataclass
from enum import Enum, auto

from async_task.polling.settings import Polling
from async_task.polling.states import TERMINAL, PollState


class Step(Enum):
    """One step of a poll: at most one question to the provider, and one transaction."""

    NOTHING = auto()
    """All is done, or nothing was submitted."""
    START = auto()
    STAMP = auto()
    """It goes on, and nobody knows since when: its age counts from now."""
    CHECK = auto()
    CHECK_LAST = auto()
    """It is too old: any answer but a terminal one gives it up."""
    GIVE_UP = auto()
    REFUSE = auto()
    """The row makes no sense: `Decision.reason` says why."""
    FETCH = auto()
    SKIP_FETCH = auto()
    HANDLE = auto()


@dataclass(frozen=True, slots=True)
class Reading:
    """What is decided from. `age`: since it was submitted; None if it was not."""

    status: str
    age: dt.timedelta | None
    is_fetched: bool = False
    is_handled: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    step: Step
    reason: str = ""


def decide(row: Reading, polling: Polling) -> Decision:
    """The age is looked at before the provider is asked anything."""
    if row.status in TERMINAL:
        return Decision(_after_the_end(row))
    if row.status not in list(PollState):
        return Decision(Step.REFUSE, f"its status was {row.status[:40]!r}, which is no state of an operation")
    is_pending = row.status == PollState.PENDING
    if row.age is None:
        return Decision(Step.NOTHING if is_pending else Step.STAMP)
    if row.age < -polling.grace:
        return Decision(Step.REFUSE, "its submitted_at was in the future")
    if row.age > polling.max_age:
        return Decision(Step.GIVE_UP if is_pending else Step.CHECK_LAST)
    return Decision(Step.START if is_pending else Step.CHECK)


def _after_the_end(row: Reading) -> Step:
    if not row.is_fetched:
        return Step.FETCH if row.status == PollState.ENDED else Step.SKIP_FETCH
    return Step.NOTHING if row.is_handled else Step.HANDLE
