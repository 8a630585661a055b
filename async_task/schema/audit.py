"""Events: what happened to a job, written beside it in the transaction of what happened."""

import uuid
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from async_task.schema.tables import beside


def record(
    connection: Connection, table: Table, job_id: uuid.UUID, kind: str, message: str | None,
    *, number: int | None = None, detail: str | None = None,
) -> None:  # fmt: skip
    """Write one down; `number`: of which start. In the transaction of `connection`."""
    said = event(table, job_id, kind, message) | {"num_attempt": number, "detail": detail}
    connection.execute(insert(beside(table).events).values(said))


def last_start(connection: Connection, table: Table, job_id: uuid.UUID, kind: str) -> int | None:
    """Of which start the last event of this kind is; None where there is none."""
    c = beside(table).events.c
    found = select(func.max(c.num_attempt)).where(c.job_type == table.name, c.job_id == str(job_id), c.kind == kind)
    number: int | None = connection.scalar(found)
    return number


def event(table: Table, job_id: uuid.UUID, kind: str, message: str | None) -> dict[str, Any]:
    """Its values by column, for several of one kind."""
    return {"job_type": table.name, "job_id": str(job_id), "kind": kind, "message": message}
