"""What a target knows of its attempt (`current_attempt`), and what it may answer: `Again`, `RetryAfter`, `Discard`."""

import datetime as dt
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from async_task.database.lanes import Lane
from async_task.errors import AsyncTaskError
from async_task.targets.retry import Duration, duration


@dataclass(frozen=True, slots=True)
class CurrentAttempt:
    """The attempt that a target is called for.

    `id`: the same at every try. `number`: the number of this try, from 1. `deadline`: when the time limit ends an
    `async def`, or the transaction of a `def`, by the database's clock; None without a limit. `target`, `method`,
    `queue`: as its row has them.
    """

    id: uuid.UUID
    number: int
    deadline: dt.datetime | None
    target: str
    method: str
    queue: str


performing: ContextVar[Callable[[], CurrentAttempt] | None] = ContextVar("async_task_current_attempt", default=None)
"""Makes the answer of `current_attempt`. Most targets never ask, so it is not made before."""


def current_attempt() -> CurrentAttempt:
    """The attempt that the running target is called for: its id is an idempotency key for the world outside.

        httpx.post(url, headers={"Idempotency-Key": str(current_attempt().id)}).raise_for_status()

    Raises AsyncTaskError outside of a target's call.
    """
    current = performing.get()
    if current is None:
        raise AsyncTaskError("no attempt is being performed here: current_attempt() answers inside of a target's call")
    return current()


class Again:
    """A target's answer that it is not finished: the call is made again after `after` (seconds or a timedelta).

        if refund.status == "pending":
            return Again(after=60)

    No error is counted, so a poll may go on until `expires_at` or `max_age`.
    """

    __slots__ = ("after",)

    def __init__(self, *, after: Duration) -> None:
        self.after: dt.timedelta = duration(after, name="Again(after=)")

    def __repr__(self) -> str:
        return f"Again(after={self.after.total_seconds():g})"


class GivenUp(Again):
    """The answer of the poll of an operation (`Pollable`) that has just been given up, for this `reason`. The next try
    follows at once."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        super().__init__(after=0)
        self.reason = reason


class Restarted(Again):
    """The answer of the job of a row (`Asyncable`) that was restarted meanwhile. The next try follows at once, and the
    attempt has a new `expires_at`."""

    __slots__ = ("expires_at",)

    def __init__(self, expires_at: dt.datetime) -> None:
        super().__init__(after=0)
        self.expires_at = expires_at


class ErrorRecorder:
    """The base of targets that record the error of a try in rows of their own, in the transaction of its outcome."""

    def record_error(
        self, connection: Connection, lane: Lane, arguments: Mapping[str, Any], error: BaseException, summary: str
    ) -> Restarted | None:
        """Record it. `lane`: on which `connection` is. `summary`: the error as text, without secrets. Returns Restarted
        if another try is wanted at once, whatever the retry policy says."""
        raise NotImplementedError(f"{type(self).__name__} has no record_error()")


class RetryAfter(Exception):
    """An error of a target that sets the wait until the next try: `after`, in seconds or as a timedelta.

        if response.status_code == 429:
            raise RetryAfter(after=float(response.headers["Retry-After"]))

    It is counted, and the retry policy still ends the attempt: by `max_attempts`, `until`, the end of a schedule, or
    `never`.
    """

    def __init__(self, message: str = "", *, after: Duration) -> None:
        self.after: dt.timedelta = duration(after, name="RetryAfter(after=)")
        super().__init__(message or f"asked to be tried again after {self.after.total_seconds():g} s")


class Discard(Exception):
    """An error of a target that ends the attempt `failed` at once, whatever the retry policy says.

    `reason` is what people read in `last_error`."""

    def __init__(self, reason: str = "discarded by its target") -> None:
        self.reason = reason
        super().__init__(reason)
