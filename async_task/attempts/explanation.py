"""Why an attempt is not performed now: what blocks it, from the tables as they are."""

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, func, or_, select
from sqlalchemy.orm import Session

from async_task.attempts.info import AttemptInfo
from async_task.database.clock import statement_now
from async_task.queue.backlog import MOST_COUNTED
from async_task.queue.limits import allowance
from async_task.schema.states import Status, is_pending, is_waiting
from async_task.schema.tables import companion_tables
from async_task.targets.policies import Limit
from async_task.targets.registry import own_queue

SILENT_AFTER = 60.0
"""Seconds without a heartbeat after which a worker does not count as running. An idle one has four in that time."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason why an attempt is not performed now. `words`: a sentence. `kind`:

    `ended`, `performing` (a worker has claimed it), `lost` (that worker's lease is past), `waits_behind` (an earlier
    attempt of its order key), `not_due`, `overdue` (past its `expires_at`), `paused`, `limited`, `not_served` (no
    running worker serves its queue), `suspect` (its last start was lost with its process); or `next`: nothing blocks
    it.
    """

    kind: str
    words: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """An attempt, and why it is not performed now; the first reason is the one to look at first."""

    attempt: AttemptInfo
    reasons: tuple[Reason, ...]


def explained(session: Session, table: Table, attempt: AttemptInfo) -> Explanation:
    """What blocks this attempt, by the database's clock; each question is bounded."""
    return Explanation(attempt, tuple(_reasons(session, table, attempt)))


def _reasons(session: Session, table: Table, attempt: AttemptInfo) -> Iterator[Reason]:
    if (own := _of_the_row(attempt)) is not None:
        yield own
    if own is None or own.kind in ("waits_behind", "not_due"):
        blocks = list(_of_the_queue(session, table, attempt))
        yield from blocks
        if own is None and not blocks:
            yield _next(session, table, attempt)


def _of_the_row(attempt: AttemptInfo) -> Reason | None:  # noqa: PLR0911 - one for each state
    """What the row says by itself; None for one that is due."""
    now = attempt.read_at
    if attempt.status is not Status.PENDING:
        return Reason("ended", _how_it_ended(attempt))
    if attempt.claim_id is not None:
        is_leased = attempt.lease_until is not None and attempt.lease_until > now
        if is_leased:
            return Reason("performing", f"{attempt.claimed_by} performs it")
        said = f"the lease of {attempt.claimed_by} is past: unless it still has the row locked, a sweep releases it"
        return Reason("lost", said)
    if attempt.expires_at is not None and attempt.expires_at <= now:
        return Reason("overdue", "it is past its expires_at: the next sweep expires it")
    if attempt.waits_behind is not None:
        said = f"it waits behind {attempt.waits_behind}, an earlier attempt of its order key {attempt.order_key}"
        return Reason("waits_behind", said)
    if not attempt.released:
        said = f"it waits for its turn in the order key {attempt.order_key}: the next poll of a worker decides"
        return Reason("waits_behind", said)
    return Reason("not_due", _why_later(attempt)) if attempt.due_at > now else None


def _how_it_ended(attempt: AttemptInfo) -> str:
    if attempt.status in (Status.FAILED, Status.EXPIRED, Status.CANCELED):
        return f"it has ended as {attempt.status.value}: `async-task retry` makes it due again"
    return f"it has {attempt.status.value}"


def _why_later(attempt: AttemptInfo) -> str:
    if (attempt.last_error or "").startswith("parked: "):
        return "it is parked, uncharged, until it is due: its last error says what is missing"
    if attempt.num_errors:
        return "it is retried when it is due, after its last error"
    # A poll clears the last error; a person who retries or reschedules leaves it.
    if attempt.num_attempts and attempt.last_error is None:
        return "it has asked to be called again when it is due"
    return "it is not due yet"


def _of_the_queue(session: Session, table: Table, attempt: AttemptInfo) -> Iterator[Reason]:
    queues, own = companion_tables(table).queues, own_queue(attempt.target)
    rows: Any = session.execute(select(queues).where(queues.c.name.in_((attempt.queue, own))))
    for row in rows:
        if row.paused_at is not None:
            what = f"its target {attempt.target}" if row.name == own else f"its queue {row.name}"
            by = f" by {row.paused_by}" if row.paused_by else ""
            why = f": {row.pause_reason}" if row.pause_reason else ""
            yield Reason("paused", f"{what} is paused{by} since {row.paused_at:%Y-%m-%d %H:%M} UTC{why}")
        elif row.name == attempt.queue and (said := _limited(session, table, row, attempt.read_at)):
            yield Reason("limited", said)
    if (missing := _not_served(session, table, attempt.queue)) is not None:
        yield Reason("not_served", missing)
    if attempt.num_crashes or attempt.num_losses:
        yield Reason("suspect", "its last start was lost with its process: it is performed in a process of its own")


def _limited(session: Session, table: Table, row: Any, now: dt.datetime) -> str | None:
    limit = Limit(row.max_running, row.rate)
    running = 0
    if row.max_running is not None:
        claimed: Any = (is_pending(table), table.c.claim_id.is_not(None), table.c.queue == row.name)
        some = select(table.c.id).where(*claimed, table.c.lease_until.is_not(None)).limit(row.max_running).subquery()
        running = session.scalar(select(func.count()).select_from(some)) or 0
        if running >= row.max_running:
            return f"its queue {row.name} may have {row.max_running:,} running calls, and has as many"
    allowed = allowance(limit, running=running, tokens=row.tokens, since=now - (row.refilled_at or now))
    if limit.rate is not None and allowed.number == 0:
        return f"its queue {row.name} starts {limit.rate:g} calls a second, and has started them"
    return None


def _not_served(session: Session, table: Table, queue: str) -> str | None:
    """Why no running worker takes it; None if one does."""
    c = companion_tables(table).workers.c
    is_ours = or_(c.job_type.is_(None), c.job_type == table.name)
    running = (is_ours, c.kind == "worker", c.beat_at > statement_now(-SILENT_AFTER))
    served: set[str] = set()
    for about in session.scalars(select(c.about).where(*running).limit(MOST_COUNTED)):
        names = json.loads(about).get("queues") if about else None
        if not names or queue in names:
            return None
        served |= set(names)
    if not served:
        return "no worker is running: `async-task worker` or the next `async-task run-batch` performs it"
    return f"no running worker serves its queue {queue}: they serve {', '.join(sorted(served)[:10])}"


def _next(session: Session, table: Table, attempt: AttemptInfo) -> Reason:
    c = table.c
    first: Any = (*is_waiting(table), c.queue == attempt.queue, c.priority == attempt.priority)
    some = select(c.id).where(*first, c.due_at < attempt.due_at).limit(MOST_COUNTED).subquery()
    number = session.scalar(select(func.count()).select_from(some)) or 0
    if not number:
        return Reason("next", "nothing blocks it: a worker takes it next")
    more = " or more" if number >= MOST_COUNTED else ""
    return Reason("next", f"nothing blocks it: {number:,}{more} of its queue and priority are due before it")
