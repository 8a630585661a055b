"""What happened to attempts, read from the events beside them: of one attempt, or the latest errors of all."""

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, null, select
from sqlalchemy.orm import Session

from async_task.schema.audit import AFTER, BEFORE, Value, read_change
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


def events_of(session: Session, table: Table, attempt_id: uuid.UUID, limit: int, after: int | None) -> list[EventInfo]:
    """Of one attempt, the first ones first."""
    c = companion_tables(table).events.c
    mine = [c.job_type == table.name, c.job_id == str(attempt_id), *([c.id > after] if after is not None else [])]
    found = select(*_facts(companion_tables(table).events)).where(*mine).order_by(c.id).limit(limit)
    return [_info(row) for row in session.execute(found)]


def latest_errors(
    session: Session, table: Table, limit: int, *, with_detail: bool = True
) -> tuple[list[EventInfo], bool]:
    """The last `limit` errors, the newest first, among the newest READ events; and whether these are all events.
    Without their detail, which is long, if it is not wanted."""
    events = companion_tables(table).events
    facts = [one if with_detail or one.name != "detail" else null().label("detail") for one in _facts(events)]
    newest = select(*facts, events.c.job_type).order_by(events.c.id.desc()).limit(READ).subquery().c
    wanted = (newest.kind.in_(ERRORS), newest.job_type == table.name)
    found: Any = select(*(newest[one.name] for one in facts))
    rows = session.execute(found.where(*wanted).order_by(newest.id.desc()).limit(limit)).all()
    beyond = select(events.c.id).order_by(events.c.id.desc()).limit(1).offset(READ)
    return [_info(row) for row in rows], session.scalar(beyond) is None


def _facts(events: Table) -> list[Any]:
    c = events.c
    return [c.id, c.job_id, c.created_at, c.kind, c.num_attempt, c.actor, c.message, c.detail, c.fingerprint]


def _info(row: Any) -> EventInfo:
    number, job_id, *others = row
    return EventInfo(number, uuid.UUID(job_id), *others)
