"""Events: what happened to a job, and who did it; written in the same transaction as the change."""

import datetime as dt
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from async_task.error_text import storable
from async_task.errors import ConfigurationError
from async_task.schema.tables import companion_tables

NOTE = "note"
"""The kind of an event that is a note of a person: pruning leaves these."""
RUN = "run"
"""The kind of an event that tells of a run of `run-batch`: no attempt's, and nothing that a person did to a job."""
BEFORE, AFTER = "before", "after"
Value = str | int | float | dt.datetime | None


def record(
    connection: Connection, table: Table, job_id: uuid.UUID, kind: str, message: str | None,
    *, number: int | None = None, detail: str | None = None, fingerprint: str | None = None,
) -> None:  # fmt: skip
    """Insert one event of the job, in the transaction of `connection`. `number`: of the try (`num_attempts`)."""
    told = {"num_attempt": number, "detail": detail, "fingerprint": fingerprint}
    values = event(table, job_id, kind, message) | told
    connection.execute(insert(companion_tables(table).events).values(values))


def last_start(connection: Connection, table: Table, job_id: uuid.UUID, kind: str) -> int | None:
    """The number of the try that has the job's last event of this kind; None if it has no such event."""
    c = companion_tables(table).events.c
    found = select(func.max(c.num_attempt)).where(c.job_type == table.name, c.job_id == str(job_id), c.kind == kind)
    number: int | None = connection.scalar(found)
    return number


def event(table: Table, job_id: uuid.UUID, kind: str, message: str | None) -> dict[str, Any]:
    """The column values of an event, for an INSERT of several."""
    return {"job_type": table.name, "job_id": str(job_id), "kind": kind, "message": message}


def record_verb(
    connection: Connection, table: Table, job: tuple[str, str], verb: str, reason: str | None,
    before: Mapping[str, Any], after: Mapping[str, Any], *, always: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Insert the event of what the actor has done: `verb`, why, and the values that it has changed, in the transaction
    of that change. `job`: its `job_type` and `job_id`. `table`: of the attempts. `always`: values that are told also
    if they are the same."""
    job_type, job_id = job
    values = {
        "job_type": job_type, "job_id": job_id, "kind": verb, "actor": current_actor(),
        "message": None if reason is None else storable(reason), "detail": change_of(before, after, always),
    }  # fmt: skip
    connection.execute(insert(companion_tables(table).events).values(values))


def change_of(before: Mapping[str, Any], after: Mapping[str, Any], always: tuple[str, ...] = ()) -> str:
    """The `detail` of an event that changed these values: those that differ, and those named in `always`. UTC."""
    names = [name for name in before if name in always or before[name] != after[name]]
    sides = {side: {name: values[name] for name in names} for side, values in ((BEFORE, before), (AFTER, after))}
    return json.dumps(sides, default=_plain)


def read_change(detail: str | None, side: str) -> dict[str, Value]:
    """One side of a `change_of`; empty for any other `detail`."""
    try:
        values = json.loads(detail or "{}").get(side, {})
        return {name: _value(name, value) for name, value in values.items()}
    except (ValueError, AttributeError):  # a traceback
        return {}


def _plain(value: object) -> str:
    return value.astimezone(dt.UTC).isoformat() if isinstance(value, dt.datetime) else str(value)


def _value(name: str, value: Any) -> Value:
    is_instant = isinstance(value, str) and name.endswith(("_at", "_until"))
    return dt.datetime.fromisoformat(value) if is_instant else value


LONGEST_ACTOR = 255
_acting: ContextVar[str | None] = ContextVar("async_task_actor", default=None)


@contextmanager
def acting(actor: str) -> Iterator[None]:
    """Inside of this, `actor` is written into the events of the verbs: `with acting("anna@host"): attempt.cancel()`.

    It applies to this thread and asyncio task, to tasks that are started here, and through `AsyncSession.run_sync`.
    Raises ConfigurationError unless `actor` is a printable text of 1 to 255 characters.
    """
    check_actor(actor)
    token = _acting.set(actor)
    try:
        yield
    finally:
        _acting.reset(token)


def current_actor() -> str | None:
    """The actor of the innermost `acting`; None outside of any."""
    return _acting.get()


def check_actor(actor: object) -> None:
    """Raises ConfigurationError unless `actor` is a printable text of 1 to 255 characters."""
    if not (isinstance(actor, str) and 0 < len(actor) <= LONGEST_ACTOR and actor.isprintable()):
        raise ConfigurationError(
            f"an actor is a printable text of 1 to {LONGEST_ACTOR} characters: acting('anna@host')"
        )
