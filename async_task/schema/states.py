"""Every change of an attempt's state, as the values of one UPDATE. Only here are columns put together, so that an
illegal combination of them cannot be written; the statements that apply these values say which rows they may hit."""

import datetime as dt
import enum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    case,
    literal_column,
    null,
    true,
)

from async_task.database.clock import clock_now, statement_now


class Status(enum.StrEnum):
    """Where an attempt stands. There is no stored `running`: that is a pending attempt with a live claim."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether the attempt is at rest; only an explicit retry brings it back."""
        return self is not Status.PENDING


Values = dict[str, Any]
"""In this order: in what MySQL sets later, it reads what it has set before."""
UNCLAIMED: Values = {"claim_id": None, "claimed_by": None, "lease_until": None}


def claiming(table: Table, claim_id: Any, worker: Any, lease: dt.timedelta) -> Values:
    """Taken by `worker`. The start is counted here, before the work: an attempt that kills its process is counted."""
    return {
        "claim_id": claim_id,
        "claimed_by": worker,
        "lease_until": clock_now(lease.total_seconds()),
        "attempted_at": clock_now(),
        "updated_at": clock_now(),
        "num_attempts": table.c.num_attempts + 1,
    }


def extending(lease: dt.timedelta) -> Values:
    """Believed without a lock for another `lease`."""
    return {"lease_until": clock_now(lease.total_seconds())}


def ending(table: Table, status: Status, *, last_error: Any, charged: bool = False, crashed: bool = False) -> Values:
    """At rest in `status`. `charged`: the target raised. Whoever reports back has not crashed; `crashed`: nobody does,
    and a claim that had lapsed is a start lost."""
    return {
        "num_crashes": table.c.num_crashes + _if_claimed(table) if crashed else 0,
        **UNCLAIMED,
        "status": status,
        "completed_at": clock_now(),
        "updated_at": clock_now(),
        "last_error": last_error,
        "num_errors": table.c.num_errors + int(charged),
    }


def waiting(table: Table, after: dt.timedelta, *, last_error: str | None, charged: bool) -> Values:
    """Performed, and to be performed again `after` from now: a retry (`charged`) or a poll."""
    return {
        **UNCLAIMED,
        "due_at": clock_now(_seconds(after)),
        "updated_at": clock_now(),
        "last_error": last_error,
        "num_errors": table.c.num_errors + int(charged),
        "num_crashes": 0,
    }


def parking(table: Table, after: dt.timedelta, *, reason: str, started: bool) -> Values:
    """Given back uncharged, due `after` from now. A start whose call had not begun is taken back."""
    return {
        **UNCLAIMED,
        "due_at": clock_now(_seconds(after)),
        "updated_at": clock_now(),
        "last_error": reason,
        "num_attempts": table.c.num_attempts - int(not started),
    }


def released_unstarted(table: Table) -> Values:
    """Given back where it stood: it was taken, and not started."""
    return {**UNCLAIMED, "updated_at": clock_now(), **_start_taken_back(table)}


def released_started(reason: str) -> Values:
    """Given back where it stood, in the middle of its call."""
    return {**UNCLAIMED, "updated_at": clock_now(), "last_error": reason}


def released_to(table: Table, queue: str) -> Values:
    """Given back unstarted and uncharged, into another queue, where it waits until that is served."""
    return {**UNCLAIMED, "queue": queue, "updated_at": clock_now(), **_start_taken_back(table)}


def _start_taken_back(table: Table) -> Values:
    # The batch that claimed it may claim it again, and a batch starts only what was not attempted since it began. When
    # an earlier start was is no longer known, but it was before this one was due.
    before = case((table.c.num_attempts > 1, table.c.due_at), else_=null())
    return {"attempted_at": before, "num_attempts": table.c.num_attempts - 1}


def recovering(table: Table, crash_limit: int, reason: str) -> Values:
    """The start was lost with its process: counted, and given back where it stood in the queue; at `crash_limit` in a
    row, failed."""
    lost = table.c.num_crashes + 1
    final = lost >= crash_limit
    return {
        **UNCLAIMED,
        "status": case((final, Status.FAILED), else_=Status.PENDING),
        "completed_at": case((final, clock_now()), else_=null()),
        "updated_at": clock_now(),
        "last_error": case((final, reason), else_=table.c.last_error),
        "num_crashes": lost,
    }


def reviving(table: Table) -> Values:
    """Due now, by a person's wish, from failed, expired or canceled: with fresh counters, and without the deadline."""
    return {
        **UNCLAIMED,
        "status": Status.PENDING,
        "completed_at": None,
        "due_at": clock_now(),
        "updated_at": clock_now(),
        "num_errors": 0,
        "num_crashes": 0,
        "expires_at": case((table.c.expires_at <= clock_now(), null()), else_=table.c.expires_at),
        # Another of its key may have been released meanwhile: it lines up again.
        "released": table.c.order_key.is_(None),
        "arrived": case((table.c.order_key.is_not(None), true()), else_=null()),
    }


def moving(table: Table, at: dt.datetime | None) -> Values:
    """Due `at`, None: now, by a person's wish. A claim that had lapsed is a start lost."""
    return {
        "num_crashes": table.c.num_crashes + _if_claimed(table),
        **UNCLAIMED,
        "due_at": clock_now() if at is None else at,
        "updated_at": clock_now(),
    }


def looked_at() -> Values:
    """No longer new: it waits until the earlier ones of its key are at rest."""
    return {"arrived": None}


def releasing() -> Values:
    """It is its turn among those of its key."""
    return {"released": True, "arrived": None, "updated_at": clock_now()}


def _if_claimed(table: Table) -> ColumnElement[int]:
    return case((table.c.claim_id.is_not(null()), 1), else_=0)


def _seconds(after: dt.timedelta) -> float:
    # SQLite's clock has milliseconds: what comes back must come back later than it left.
    return max(after.total_seconds(), 0.001)


def is_pending(table: Table) -> ColumnElement[bool]:
    # A literal, not a parameter: else a prepared statement's generic plan cannot use the partial indexes. Some of these
    # speak of the state, and some of the time since which it is at rest.
    is_said = table.c.status == literal_column(f"'{Status.PENDING.value}'", table.c.status.type)
    return and_(is_said, table.c.completed_at.is_(None))


def is_waiting(table: Table) -> tuple[ColumnElement[bool], ...]:
    """Pending, unclaimed and released: the rows of the claim index."""
    return is_pending(table), table.c.claim_id.is_(None), table.c.released


def is_overdue(table: Table) -> ColumnElement[bool]:
    """Past its `expires_at`: nobody starts it any more."""
    return and_(table.c.expires_at.is_not(None), table.c.expires_at <= statement_now())
