"""Attempts that have ended some time ago."""

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, insert, select, update

from async_task import Attempt, JobEvent, Status
from async_task.schema.columns import uuid7
from claims import TABLE
from outbox import Client

Write = Callable[..., Attempt]


def ended(
    engine: Engine, write: Write, days: float, status: str = "succeeded", *, target: object = Client, events: int = 0,
    **options: Any,
) -> uuid.UUID:  # fmt: skip
    """The id of an attempt that was created and ended that many days ago. An id tells the time of its creation, so that
    time is moved in it too."""
    made = write(target, None if target is not Client else "ping", **options)
    then = made.created_at - dt.timedelta(days=days)
    bits = uuid7().int & ~(0xFFFF_FFFF_FFFF << 80)
    old = uuid.UUID(int=bits | int(then.timestamp() * 1000) << 80)
    tried = int(status == "succeeded")
    times = {"created_at": then, "updated_at": then, "due_at": then, "completed_at": then}
    values: dict[str, Any] = {"id": old, "status": Status(status), "num_attempts": tried, "last_error": "once", **times}
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == made.id).values(values))
        if events:
            event = {"job_type": TABLE.name, "job_id": str(old), "kind": "parked"}
            connection.execute(insert(JobEvent), [event for _ in range(events)])
    return old


def ids_in(engine: Engine) -> set[uuid.UUID]:
    """The attempts that are left."""
    with engine.connect() as connection:
        return set(connection.scalars(select(TABLE.c.id)))


def events_in(engine: Engine) -> list[str]:
    """The ids of the attempts of the events that are left."""
    with engine.connect() as connection:
        return list(connection.scalars(select(JobEvent.job_id)))
