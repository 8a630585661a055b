"""Events: what happened to a job, written beside it in the transaction of what happened."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from async_task.errors import ConfigurationError
from async_task.schema.tables import companion_tables


def record(
    connection: Connection, table: Table, job_id: uuid.UUID, kind: str, message: str | None,
    *, number: int | None = None, detail: str | None = None,
) -> None:  # fmt: skip
    """Write one down; `number`: of which start. In the transaction of `connection`."""
    said = event(table, job_id, kind, message) | {"num_attempt": number, "detail": detail}
    connection.execute(insert(companion_tables(table).events).values(said))


def last_start(connection: Connection, table: Table, job_id: uuid.UUID, kind: str) -> int | None:
    """Of which start the last event of this kind is; None where there is none."""
    c = companion_tables(table).events.c
    found = select(func.max(c.num_attempt)).where(c.job_type == table.name, c.job_id == str(job_id), c.kind == kind)
    number: int | None = connection.scalar(found)
    return number


def event(table: Table, job_id: uuid.UUID, kind: str, message: str | None) -> dict[str, Any]:
    """Its values by column, for several of one kind."""
    return {"job_type": table.name, "job_id": str(job_id), "kind": kind, "message": message}


LONGEST_ACTOR = 255


_acting: ContextVar[str | None] = ContextVar("async_task_actor", default=None)


@contextmanager
def acting(actor: str) -> Iterator[None]:
    """Inside of this, the verbs write `actor` into their events: `with acting("anna@host"): attempt.cancel()`.

    It holds in this thread and asyncio task, in the tasks begun here, and through `AsyncSession.run_sync`. Raises
    ConfigurationError unless `actor` is a printable text of 1 to 255 characters.
    """
    check_actor(actor)
    token = _acting.set(actor)
    try:
        yield
    finally:
        _acting.reset(token)


def current_actor() -> str | None:
    """Who acts here; None where nobody said so."""
    return _acting.get()


def check_actor(actor: object) -> None:
    """Raises ConfigurationError unless it is a printable text of 1 to 255 characters."""
    if not (isinstance(actor, str) and 0 < len(actor) <= LONGEST_ACTOR and actor.isprintable()):
        raise ConfigurationError(
            f"an actor is a printable text of 1 to {LONGEST_ACTOR} characters: acting('anna@host')"
        )
