"""Who did what: the events of people and programs that have an actor, of all jobs, the newest first."""

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, select
from sqlalchemy.orm import Session

from async_task.errors import ConfigurationError, near
from async_task.reading.events import READ, JobEventInfo, facts_of_events
from async_task.reading.filters import When, check_storable, check_when, instant_of
from async_task.reading.lookup import id_meant
from async_task.reading.pages import clock_of
from async_task.schema.audit import NOTE, RUN
from async_task.schema.tables import companion_tables

VERBS = (
    "attempted", "cancel", "clear_error", "expire", "fail", NOTE, "pause", "processed", "reschedule", "restart",
    "resume", "retry_now", "reveal", "run_now", "submit_for_processing", "update_error",
)  # fmt: skip
"""What people do to jobs, queues and entries of schedules, as the kinds of events."""
SLACK = dt.timedelta(minutes=1)
"""By how much an event with a lower id may be later than one with a higher."""


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A page of what people did. `events`: the newest first. `next`: what `after=` takes for the page that follows;
    None after the last one. A page may hold fewer than `limit`, even none, and still have a `next`. `read_at`: the
    database's clock."""

    events: tuple[JobEventInfo, ...]
    next: int | None
    read_at: dt.datetime


@dataclass(frozen=True, slots=True)
class AuditFilters:
    """What is selected: events for which everything holds that is given."""

    actor: str | None = None
    verb: str | None = None
    attempt: uuid.UUID | str | None = None
    job: tuple[str, str] | None = None
    since: When | None = None
    until: When | None = None


def audit_filters(
    actor: str | None, verb: str | None, attempt: uuid.UUID | str | None, job_type: str | None, job_id: str | None,
    since: When | None, until: When | None,
) -> AuditFilters:  # fmt: skip
    """What `outbox.attempts.audit` was given, checked. Raises ConfigurationError."""
    for name, given in (("actor", actor), ("verb", verb), ("job_type", job_type), ("job_id", job_id)):
        check_storable(name, given)
    for name, when in (("since", since), ("until", until)):
        check_when(name, when)
    if verb is not None and verb not in VERBS:
        raise ConfigurationError(f"verb is one of {', '.join(VERBS)}: it was {verb!r}{near(verb, VERBS)}")
    if job_type is None or job_id is None:
        if job_type is not job_id:
            raise ConfigurationError("job_type and job_id name a job together: give both, or attempt=")
        return AuditFilters(actor, verb, attempt, None, since, until)
    if attempt is not None:
        raise ConfigurationError("give one of the two: attempt=, or job_type= and job_id=")
    return AuditFilters(actor, verb, None, (job_type, job_id), since, until)


def audit_of(session: Session, table: Table, filters: AuditFilters, limit: int, after: int | None) -> AuditPage:
    """The page behind the event `after`. Raises UnknownAttempt for a part of an id that fits none."""
    now, events = clock_of(session), companion_tables(table).events
    since, until = (None if when is None else instant_of(when, now) for when in (filters.since, filters.until))
    within = [*_of_job(session, table, filters), *([events.c.id < after] if after is not None else [])]
    end = _end(session, events, within)
    wanted = select(*facts_of_events(events), events.c.job_type).where(
        *within,
        *([events.c.id >= end.id] if end is not None else []),
        *_conditions(events, filters, since, until),
    )
    rows = list(session.execute(wanted.order_by(events.c.id.desc()).limit(limit + 1)))
    following = None if end is None or (since is not None and end.created_at < since - SLACK) else end.id
    if len(rows) > limit:
        rows, following = rows[:limit], rows[limit - 1].id
    return AuditPage(tuple(_info(row) for row in rows), following, now)


def _of_job(session: Session, table: Table, filters: AuditFilters) -> list[ColumnElement[bool]]:
    c, job = companion_tables(table).events.c, filters.job
    if filters.attempt is not None:
        job = (table.name, str(id_meant(session, table, filters.attempt)))
    return [] if job is None else [c.job_type == job[0], c.job_id == job[1]]


def _end(session: Session, events: Table, within: list[ColumnElement[bool]]) -> Any:
    """The last event that this page reads: its `id` and `created_at`; None if it reads all that are left."""
    found: Any = select(events.c.id, events.c.created_at).where(*within)
    return session.execute(found.order_by(events.c.id.desc()).limit(1).offset(READ - 1)).one_or_none()


def _conditions(
    events: Table, filters: AuditFilters, since: dt.datetime | None, until: dt.datetime | None
) -> list[ColumnElement[bool]]:
    c = events.c
    exact = [(c.actor, filters.actor), (c.kind, filters.verb)]
    return [
        c.actor.is_not(None),
        c.kind != RUN,
        *(column == wanted for column, wanted in exact if wanted is not None),
        *([c.created_at >= since] if since is not None else []),
        *([c.created_at < until] if until is not None else []),
    ]


def _info(row: Any) -> JobEventInfo:
    number, *others, job_type = row
    return JobEventInfo(number, job_type, *others)
