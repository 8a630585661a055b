"""Which attempt is being performed here: for idempotency keys, and for targets that mind the time."""

import datetime as dt
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from async_task.errors import AsyncTaskError
from async_task.targets.retry import Duration, duration


@dataclass(frozen=True, slots=True)
class CurrentAttempt:
    """`id`: the same at every try. `number`: which start this is, from 1. `deadline`: by the database's clock, the
    instant at which the time limit ends an `async def`, or the transaction of a `def`; None without a limit."""

    id: uuid.UUID
    number: int
    deadline: dt.datetime | None


performing: ContextVar[Callable[[], CurrentAttempt] | None] = ContextVar("async_task_current_attempt", default=None)
"""What answers it: most targets never ask."""


def current_attempt() -> CurrentAttempt:
    """The attempt that is being performed here. Raises AsyncTaskError outside of a target's call."""
    current = performing.get()
    if current is None:
        raise AsyncTaskError("no attempt is being performed here: current_attempt() answers inside of a target's call")
    return current()


class Again:
    """`return Again(after=...)`: not finished, look again after a timedelta or seconds; no error counted (a poll)."""

    __slots__ = ("after",)

    def __init__(self, *, after: Duration) -> None:
        self.after: dt.timedelta = duration(after, name="Again(after=)")

    def __repr__(self) -> str:
        return f"Again(after={self.after.total_seconds():g})"


class RetryAfter(Exception):
    """`raise RetryAfter(after=...)`: an error, tried again after its own timedelta or seconds instead of the policy's.

    The policy still says how often: `max_attempts`, `until`, the end of a schedule, `never`."""

    def __init__(self, message: str = "", *, after: Duration) -> None:
        self.after: dt.timedelta = duration(after, name="RetryAfter(after=)")
        super().__init__(message or f"asked to be tried again after {self.after.total_seconds():g} s")


class Discard(Exception):
    """`raise Discard(reason)`: `failed` at once, whatever the policy says."""

    def __init__(self, reason: str = "discarded by its target") -> None:
        self.reason = reason
        super().__init__(reason)
