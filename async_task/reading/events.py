"""What happened to jobs, read from the events: of one job, or the latest errors of all attempts."""

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, null, select
from sqlalchemy.orm import Session

from async_task.attempts.options import SyncSession
from async_task.database.sessions import blocking_session, read_arguments
from async_task.errors import ConfigurationError
from async_task.schema.audit import AFTER, BEFORE, Value, read_change
from async_task.schema.jobs import job_of
from async_task.schema.tables import companion_tables

ERRORS = ("error", "crash", "loss")
"""The kinds of event that tell of a try that went wrong."""
READ = 10_000
"""How many of the newest events are read at most for what went wrong lately."""


@dataclass(frozen=True, slots=True)
class EventInfo:
    """One thing that happened to an attempt.

    `kind`: `error` (the call raised), `crash` (it killed a process of its own), `loss` (it was lost with its worker),
    `parked`, `failed`, `expired`, `note`, `message` (to the user of the job; its `message` is the kind of that), or the
    verb of a person: `cancel`, `retry_now`, ... `num_attempt`: the number of the start, None for what belongs to no
    start. `actor`: who did it, as `acting` says. `message`: in words; of a verb, the reason. `detail`: the traceback of
    an error, without local variables; of a verb, `before` and `after` as JSON. `fingerprint`: what an error shares with
    those of the same cause; None for what is no error. `id`: events happened in the order of these.
    """

    id: int
    attempt_id: uuid.UUID
    created_at: dt.datetime
    kind: str
    num_attempt: int | None
    actor: str | None
    message: str | None
    detail: str | None
    fingerprint: str | None = None

    @property
    def before(self) -> Mapping[str, Value]:
        """What a verb has changed, as it was: `status` and `due_at`, and what else differs. Empty for other events."""
        return read_change(self.detail, BEFORE)

    @property
    def after(self) -> Mapping[str, Value]:
        """The same as it was afterwards."""
        return read_change(self.detail, AFTER)


@dataclass(frozen=True, slots=True)
class JobEventInfo:
    """One thing that happened to a job; see `EventInfo`. `job_type`: the table of its row. `job_id`: its key as text; a
    key of more than 64 characters is hashed."""

    id: int
    job_type: str
    job_id: str
    created_at: dt.datetime
    kind: str
    num_attempt: int | None
    actor: str | None
    message: str | None
    detail: str | None
    fingerprint: str | None = None

    @property
    def before(self) -> Mapping[str, Value]:
        """What a verb has changed, as it was: `status`, and what else differs. Empty for other events."""
        return read_change(self.detail, BEFORE)

    @property
    def after(self) -> Mapping[str, Value]:
        """The same as it was afterwards."""
        return read_change(self.detail, AFTER)


def events_of(
    session: SyncSession, job: Any, *, limit: int = 1000, after: int | None = None
) -> tuple[JobEventInfo, ...]:
    """Read what happened to a job, the first event first: notes, messages, and what people did; of an attempt also its
    errors. Those of a row that is deleted are found too, if it has its key.

    `limit`: how many, up to 10,000. `after`: the `id` of an event, to go on behind it. Raises InvalidArguments for what
    is no job, and ConfigurationError for an invalid `limit` or `after`.
    """
    check_event_page(limit, after)
    own, meant = blocking_session(session), job_of(job)
    found = _of_job(meant.events, meant.type, meant.id, limit, after)
    rows: Any = own.execute(found, bind_arguments=read_arguments(meant.mapper))
    return tuple(JobEventInfo(number, meant.type, *others) for number, *others in rows)


def check_event_page(limit: object, after: object) -> None:
    """Raises ConfigurationError."""
    if type(limit) is not int or not 1 <= limit <= READ:
        raise ConfigurationError(f"limit is a whole number from 1 to {READ:,}: it was {limit!r}")
    if after is not None and (type(after) is not int or not 0 <= after < 2**63):
        raise ConfigurationError(f"after takes the `id` of an event, a whole number: it was {after!r}")


def events_of_attempt(
    session: Session, table: Table, attempt_id: uuid.UUID, limit: int, after: int | None
) -> list[EventInfo]:
    """The same of an attempt that need not exist any more."""
    found = _of_job(companion_tables(table).events, table.name, str(attempt_id), limit, after)
    return [_info(row) for row in session.execute(found)]


def latest_errors(
    session: Session, table: Table, limit: int, *, with_detail: bool = True
) -> tuple[list[EventInfo], bool]:
    """The last `limit` errors, the newest first, among the newest READ events; and whether these are all events.
    Without their detail, which is long, if it is not wanted."""
    events = companion_tables(table).events
    facts = [one if with_detail or one.name != "detail" else null().label("detail") for one in facts_of_events(events)]
    newest = select(*facts, events.c.job_type).order_by(events.c.id.desc()).limit(READ).subquery().c
    wanted = (newest.kind.in_(ERRORS), newest.job_type == table.name)
    found: Any = select(*(newest[one.name] for one in facts))
    rows = session.execute(found.where(*wanted).order_by(newest.id.desc()).limit(limit)).all()
    beyond = select(events.c.id).order_by(events.c.id.desc()).limit(1).offset(READ)
    return [_info(row) for row in rows], session.scalar(beyond) is None


def _of_job(events: Table, job_type: str, job_id: str, limit: int, after: int | None) -> Any:
    c = events.c
    mine = [c.job_type == job_type, c.job_id == job_id, *([c.id > after] if after is not None else [])]
    return select(*facts_of_events(events)).where(*mine).order_by(c.id).limit(limit)


def facts_of_events(events: Table) -> list[Any]:
    """The columns of an EventInfo, in its order."""
    c = events.c
    return [c.id, c.job_id, c.created_at, c.kind, c.num_attempt, c.actor, c.message, c.detail, c.fingerprint]


def _info(row: Any) -> EventInfo:
    number, job_id, *others = row
    return EventInfo(number, uuid.UUID(job_id), *others)
