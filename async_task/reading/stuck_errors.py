"""What is stuck because of errors: the newest events name the attempts that failed for good or fail again and again."""

import datetime as dt
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from async_task.outcomes import error_alone
from async_task.queue.fingerprints import LOST, parsed
from async_task.queue.recovery import CRASHED
from async_task.reading.events import READ, EventInfo, latest_errors
from async_task.reading.explanation import command
from async_task.reading.row_problems import UNFIT
from async_task.reading.stuck_groups import StuckCause, StuckGroup, counted, jobs_of
from async_task.reading.waiting_sample import WaitingRow, shown_error
from async_task.schema.states import Status

SAME_ERRORS = 5
"""After how many errors of one kind an attempt that is retried counts as stuck."""
PAGE = 500
CANARIES = "5"


class Kind(NamedTuple):
    """What errors have in common: their fingerprint, or for those without one the target, exception and message."""

    fingerprint: str | None
    target: str
    exception: str
    message: str


class StuckRow(NamedTuple):
    """An attempt that failed for good at `since`, or is to be retried and was due so."""

    id: uuid.UUID
    target: str
    method_name: str
    since: dt.datetime
    error: str | None
    has_failed: bool


def stuck_errors(
    session: Session, table: Table, retried: Iterable[WaitingRow], limit: int
) -> tuple[list[StuckGroup], bool]:
    """The groups, and whether all events were read. `retried`: of the sample, those with errors. One statement for the
    events, and one for each 500 attempts that they name."""
    errors, is_complete = latest_errors(session, table, READ, with_detail=False)
    events: dict[uuid.UUID, list[EventInfo]] = defaultdict(list)
    for one in errors:
        events[one.attempt_id].append(one)
    rows = [*_failed(session, table, events), *_failing(retried, events)]
    found: dict[tuple[StuckCause, Kind], list[StuckRow]] = defaultdict(list)
    for row in rows:
        found[_cause_of(row), _kind_of(row, events.get(row.id, ()))].append(row)
    groups = [
        _group(table, cause, kind, alike, limit, is_counted=is_complete) for (cause, kind), alike in found.items()
    ]
    return groups, is_complete


def _failed(session: Session, table: Table, events: Mapping[uuid.UUID, Sequence[EventInfo]]) -> Iterator[StuckRow]:
    """Those that failed for good by their last error, and not by a person's word."""
    c, ids = table.c, sorted(events)
    for start in range(0, len(ids), PAGE):
        facts = (c.id, c.target, c.method_name, c.completed_at, shown_error(table))
        asked: Any = select(*facts).where(c.id.in_(ids[start : start + PAGE]), c.status == Status.FAILED)
        for row in session.execute(asked):
            error, last = row.error or "", events[row.id][0]
            is_crash = last.kind in LOST and error.startswith(CRASHED)
            if is_crash or parsed("error", error)[0] == parsed(last.kind, last.message)[0]:
                yield StuckRow(row.id, row.target, row.method_name, row.completed_at, row.error, has_failed=True)


def _failing(retried: Iterable[WaitingRow], events: Mapping[uuid.UUID, Sequence[EventInfo]]) -> Iterator[StuckRow]:
    for row in retried:
        known = Counter(_alike(one) for one in events.get(row.id, ()))
        last = events[row.id][0] if known else None
        others = 0 if last is None else known.total() - known[_alike(last)]
        if row.num_errors - others >= SAME_ERRORS:
            yield StuckRow(row.id, row.target, row.method_name, row.created_at, row.error, has_failed=False)


def _alike(one: EventInfo) -> object:
    return one.fingerprint or parsed(one.kind, one.message)


def _cause_of(row: StuckRow) -> StuckCause:
    error = row.error or ""
    if row.has_failed and error.startswith(CRASHED):
        return "crash_limit"
    return "unfit" if error_alone(error).startswith(UNFIT) else "same_error"


def _kind_of(row: StuckRow, events: Sequence[EventInfo]) -> Kind:
    """Of the last error; its event may not be among the newest."""
    kind, message = (events[0].kind, events[0].message) if events else ("error", row.error)
    return Kind(events[0].fingerprint if events else None, row.target, *parsed(kind, message))


def _group(
    table: Table, cause: StuckCause, kind: Kind, rows: Sequence[StuckRow], limit: int, *, is_counted: bool
) -> StuckGroup:
    failed = [row for row in rows if row.has_failed]
    oldest = min(failed or rows, key=lambda row: row.since)
    error = ": ".join(part for part in kind[2:] if part)
    how = [f"{len(failed):,} failed for good"] if failed else []
    how += (
        [f"{len(rows) - len(failed):,} retried after {SAME_ERRORS} errors or more"] if len(rows) > len(failed) else []
    )
    words = f"{counted(len(rows), is_counted=is_counted)} of {kind.target} with {error}: {', '.join(how)}"
    remedy, effect = _remedy(kind, oldest, len(failed))
    jobs = jobs_of(table.name, rows, "since", limit)
    return StuckGroup(cause, kind.fingerprint or kind.target, words, len(rows), is_counted, jobs, remedy, effect)


def _remedy(kind: Kind, oldest: StuckRow, num_failed: int) -> tuple[str, str]:
    if num_failed > 1 and kind.fingerprint is not None:
        retry = command("failures", "retry", kind.fingerprint, "--first", CANARIES, "--reason", "mended")
        effect = f"After the cause is mended: retries {CANARIES} of those that failed, and the others if these succeed."
        return retry, effect
    effect = "After the cause is mended: makes the oldest one due now, with its counters at zero if it had failed."
    return command("retry", str(oldest.id), "--reason", "mended"), effect
