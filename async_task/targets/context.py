"""Which attempt is being performed here: for idempotency keys, and for targets that mind the time."""

import datetime as dt
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from async_task.errors import AsyncTaskError


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
