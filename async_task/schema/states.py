"""Status, and every change of an attempt's state, as the column values of one UPDATE.

Columns are combined only here, so that an illegal combination cannot be written. The statements that write these values
say which rows they may change.
"""

import datetime as dt
import enum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    String,
    Table,
    and_,
    case,
    literal_column,
    null,
    or_,
    true,
)

from async_task.database.clock import clock_now, statement_now


class Status(enum.StrEnum):
    """The stored state of an attempt. A running attempt is not stored as such: it is pending and has a live claim."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        """Whether the attempt has ended; only an explicit retry makes it pending again."""
        return self is not Status.PENDING


Values = dict[str, Any]
"""Column values, in the order in which they are set: MySQL reads a column's new value in the expressions after it."""
EMPTIED = "pruned"
"""In the place of the arguments of an attempt that was pruned. It is no JSON, so that no arguments are stored as it."""
UNCLAIMED: Values = {"claim_id": None, "claimed_by": None, "lease_until": None}


def claiming(table: Table, claim_id: Any, worker: Any, lease: dt.timedelta) -> Values:
    """Claimed by `worker`. The start is counted now, before the call: an attempt that kills its process is counted."""
    # A parameter costs both sides time. So constants are text, and so is the lease: a statement is built for each.
    return {
        "claim_id": claim_id,
        "claimed_by": worker,
        "lease_until": clock_now(literal_column(str(lease.total_seconds()), Double())),
        "attempted_at": clock_now(),
        "updated_at": clock_now(),
        "num_attempts": table.c.num_attempts + ONE,
    }


def extending(lease: dt.timedelta) -> Values:
    """The claim is valid without a row lock for another `lease`."""
    return {"lease_until": clock_now(lease.total_seconds())}


def ending(table: Table, status: Status, *, last_error: Any, charged: bool = False, unreported: bool = False) -> Values:
    """Ended in `status`. `charged`: the target raised, which counts as an error.

    The counts of crashes and losses are reset, as a worker reports. `unreported`: none reports, and a claim that is
    left counts as a loss.
    """
    return {
        "num_crashes": table.c.num_crashes if unreported else 0,
        "num_losses": table.c.num_losses + _if_claimed(table) if unreported else 0,
        **UNCLAIMED,
        "status": status,
        "completed_at": clock_now(),
        "updated_at": clock_now(),
        "last_error": last_error,
        "num_errors": table.c.num_errors + int(charged),
    }


def retrying(
    table: Table, after: dt.timedelta, last_error: str | None, *, charged: bool, expires_at: dt.datetime | None
) -> Values:
    """Performed, and due again `after` from now: a retry (`charged`) or a poll. `expires_at`: a new one."""
    return {
        **({} if expires_at is None else {"expires_at": expires_at}),
        **UNCLAIMED,
        "due_at": clock_now(_seconds(after)),
        "updated_at": clock_now(),
        "last_error": last_error,
        "num_errors": table.c.num_errors + int(charged),
        "num_crashes": 0,
        "num_losses": 0,
    }


def parking(table: Table, after: dt.timedelta, *, reason: str, started: bool) -> Values:
    """Released uncharged, and due `after` from now. Only a try whose call was not started is no longer counted: a call
    that was may have been noticed outside."""
    return {
        **UNCLAIMED,
        "due_at": clock_now(_seconds(after)),
        "updated_at": clock_now(),
        "last_error": reason,
        "num_attempts": table.c.num_attempts - int(not started),
    }


def releasing_unstarted(table: Table) -> Values:
    """Released with the same `due_at`, uncharged: claimed, and not started."""
    return {**UNCLAIMED, "updated_at": clock_now(), **_without_the_start(table)}


def releasing_started(reason: str) -> Values:
    """Released with the same `due_at`, in the middle of its call."""
    return {**UNCLAIMED, "updated_at": clock_now(), "last_error": reason}


def releasing_to_queue(table: Table, queue: str) -> Values:
    """Released unstarted and uncharged, into another queue."""
    return {**UNCLAIMED, "queue": queue, "updated_at": clock_now(), **_without_the_start(table)}


def _without_the_start(table: Table) -> Values:
    # A batch starts only what was not attempted since it began; what it has released it may start again. The time of
    # an earlier start is no longer known, but it was before this one was due.
    earlier = case((table.c.num_attempts > 1, table.c.due_at), else_=null())
    return {"attempted_at": earlier, "num_attempts": table.c.num_attempts - 1}


def recovering(table: Table, crash_limit: int, reason: str) -> Values:
    """It killed a process that performed nothing else: counted as a crash, and released with the same `due_at`; failed
    at `crash_limit` crashes in a row."""
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


def losing(table: Table) -> Values:
    """Lost with a worker that performed others too, or was killed from outside: counted as a loss, which ends no
    attempt, and released with the same `due_at`."""
    return {**UNCLAIMED, "updated_at": clock_now(), "num_losses": table.c.num_losses + 1}


def reopening(table: Table) -> Values:
    """Pending again and due now, after it failed, expired or was canceled; with counters at zero, and without an
    `expires_at` in the past."""
    return {
        **UNCLAIMED,
        "status": Status.PENDING,
        "completed_at": None,
        "due_at": clock_now(),
        "updated_at": clock_now(),
        "num_errors": 0,
        "num_crashes": 0,
        "num_losses": 0,
        "expires_at": case((table.c.expires_at <= clock_now(), null()), else_=table.c.expires_at),
        # Another attempt of its order key may have been released: it must wait for its turn again.
        "released": table.c.order_key.is_(None),
        "arrived": case((table.c.order_key.is_not(None), true()), else_=null()),
    }


def rescheduling(table: Table, at: dt.datetime | None) -> Values:
    """Due `at` (None: now), as a person asked. A claim that is left counts as a loss."""
    return {
        "num_losses": table.c.num_losses + _if_claimed(table),
        **UNCLAIMED,
        "due_at": clock_now() if at is None else at,
        "updated_at": clock_now(),
    }


def restarting(table: Table, at: dt.datetime | None, expires_at: dt.datetime | None) -> Values:
    """As `reopening`, also if it was pending: due `at` (None: now), until `expires_at`."""
    due_at = clock_now() if at is None else at
    return {**reopening(table), "due_at": due_at, "expires_at": expires_at}


def emptying() -> Values:
    """Only the token, the status and the times are left of an attempt that has ended."""
    emptied: Values = {"method_args": EMPTIED, "encryptor": "null", "last_error": None, "trace_context": None}
    return {**emptied, "call_settings": None, "updated_at": clock_now()}


def clearing_arrived() -> Values:
    """No longer new: it waits until the earlier attempts of its order key have ended.

    `arrived` is a column of its own, because SQLite could make `released` nullable only by rebuilding the table.
    """
    return {"arrived": None}


def releasing_order_key() -> Values:
    """Its turn has come among the attempts of its order key."""
    return {"released": True, "arrived": None, "updated_at": clock_now()}


def _if_claimed(table: Table) -> ColumnElement[int]:
    return case((table.c.claim_id.is_not(null()), 1), else_=0)


def _seconds(after: dt.timedelta) -> float:
    # SQLite's clock has milliseconds. With less than one, a poll would be due at once, twice in the same batch.
    return max(after.total_seconds(), 0.001)


# Literals, not parameters: the generic plan of a prepared statement could not use the partial indexes.
ZERO, ONE = (literal_column(number, Integer()) for number in ("0", "1"))
PENDING: ColumnElement[str] = literal_column(f"'{Status.PENDING.value}'", String())


def is_pending(table: Table) -> ColumnElement[bool]:
    """Not ended, with the conditions of both kinds of partial indexes: `status` and `completed_at`."""
    return and_(table.c.status == PENDING, table.c.completed_at.is_(None))


def has_ended(table: Table) -> ColumnElement[bool]:
    """Not pending."""
    return and_(table.c.status != Status.PENDING, table.c.completed_at.is_not(None))


def is_emptied(table: Table) -> ColumnElement[bool]:
    """Whether it was pruned, and is left because its token is remembered."""
    return table.c.method_args == literal_column(f"'{EMPTIED}'")


def is_waiting(table: Table) -> tuple[ColumnElement[bool], ...]:
    """Pending, unclaimed and released: the rows of the claim index."""
    return is_pending(table), table.c.claim_id.is_(None), table.c.released


def waits_or_runs(table: Table) -> tuple[ColumnElement[bool], ...]:
    """Pending and released, claimed or not. The claim index answers this by its own columns: without partial indexes
    (MySQL, MariaDB) `is_waiting` reads each row, 13 s for the name of the next queue behind 1,000,000 rows."""
    return table.c.status == PENDING, table.c.released


def is_suspect(table: Table) -> ColumnElement[bool]:
    """Whether its last start was lost with its process."""
    # Two ranges of one index, for MySQL; and the very text of the partial index, for SQLite.
    return or_(table.c.num_crashes > ZERO, and_(table.c.num_crashes == ZERO, table.c.num_losses > ZERO))


def is_no_suspect(table: Table) -> ColumnElement[bool]:
    """The opposite."""
    return and_(table.c.num_crashes == ZERO, table.c.num_losses == ZERO)


def is_overdue(table: Table) -> ColumnElement[bool]:
    """Past its `expires_at`, after which it is not started."""
    return and_(table.c.expires_at.is_not(None), table.c.expires_at <= statement_now())
