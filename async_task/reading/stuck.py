"""What is stuck, by cause, with the command that helps: attempts, and whatever the sources of an application tell."""

from collections.abc import Sequence

from sqlalchemy import Table
from sqlalchemy.orm import Session

from async_task.reading.pages import clock_of
from async_task.reading.stuck_claims import MOST_KEYS, stuck_behind, stuck_claims, stuck_late, stuck_undecided
from async_task.reading.stuck_errors import stuck_errors
from async_task.reading.stuck_groups import StuckCause, StuckGroup, StuckReport, StuckSource, in_order
from async_task.reading.stuck_waiting import stuck_waiting
from async_task.reading.waiting_sample import sample_of


def stuck_of(
    session: Session, table: Table, cause: StuckCause | None, limit: int, sources: Sequence[StuckSource]
) -> StuckReport:
    """A number of statements that depends on the number of queues, and not on how much waits or is stuck."""
    now = clock_of(session)
    sample = sample_of(session, table, now)
    waiting = stuck_waiting(session, table, sample, limit)
    by_error, is_read = stuck_errors(session, table, [row for row in waiting.others if row.num_errors], limit)
    heads = [*waiting.stuck, *(row for row in waiting.others if row.num_errors or row.due_at > now)]
    others = [source.stuck(session, limit) for source in sources]
    groups: list[StuckGroup] = [
        *waiting.groups,
        *by_error,
        *stuck_claims(session, table, now, limit),
        *stuck_late(session, table, now, limit),
        *stuck_undecided(session, table, now, limit),
        *stuck_behind(session, table, heads, now, limit),
        *(group for found in others for group in found.groups),
    ]
    wanted = [one for one in groups if cause in (None, one.cause)]
    keys = {row.order_key for row in heads if row.order_key is not None}
    is_complete = (
        waiting.is_complete and is_read and len(keys) <= MOST_KEYS and all(one.is_counted for one in groups)
        and all(found.is_complete for found in others)
    )  # fmt: skip
    unread = tuple(words for found in others for words in found.unread)
    return StuckReport(in_order(wanted), is_complete, now, unread)
