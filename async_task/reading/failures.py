"""What goes wrong most: the latest errors, grouped by what they have in common."""

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from async_task.queue.fingerprints import parsed
from async_task.reading.events import READ, EventInfo, latest_errors
from async_task.schema.states import Status

PAGE = 500


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Errors that are alike.

    `target`: None where the attempts are no longer there. `exception`: the name of its class; "crash" for a start that
    killed its process, "loss" for one that was lost with its worker. `message`: what it says, with `N` for each number,
    `UUID` for each UUID, `WORKER` for each worker and `'...'` for each text in quotes. `count`: errors; `attempts`: to
    how many attempts they happened. `latest`: the attempt of the last one. `fingerprint`: what they share, which
    `retry_failures` takes; None for errors from before version 6 of the tables, which are grouped by target, exception
    and message. `left`: how many of the attempts have neither succeeded nor been canceled since.
    """

    target: str | None
    exception: str
    message: str
    count: int
    attempts: int
    first: dt.datetime
    last: dt.datetime
    latest: uuid.UUID
    fingerprint: str | None = None
    left: int = 0


@dataclass(frozen=True, slots=True)
class FailureReport:
    """`groups`: the most frequent first. `counted`: how many errors they are made of. `is_complete`: whether all errors
    were counted; else those among the newest 10,000 events."""

    groups: tuple[FailureGroup, ...]
    counted: int
    is_complete: bool


def failures_of(session: Session, table: Table) -> FailureReport:
    """The groups of the errors among the newest READ events."""
    errors, is_complete = latest_errors(session, table, READ, with_detail=False)
    found_in = _attempts_of(session, table, {one.attempt_id for one in errors})
    targets = {one: row.target for one, row in found_in.items()}
    left = {one for one, row in found_in.items() if row.status not in (Status.SUCCEEDED, Status.CANCELED)}
    groups: dict[tuple[str | None, ...], list[EventInfo]] = {}
    for one in errors:
        alike = (targets.get(one.attempt_id), *parsed(one.kind, one.message))
        groups.setdefault(alike if one.fingerprint is None else (one.fingerprint,), []).append(one)
    found = [_group(alike, targets, left) for alike in groups.values()]
    found.sort(key=lambda group: (-group.count, -group.last.timestamp(), group.exception))
    return FailureReport(tuple(found), len(errors), is_complete)


def _group(alike: Sequence[EventInfo], targets: Mapping[uuid.UUID, str], left: Set[uuid.UUID]) -> FailureGroup:
    last, first = alike[0], alike[-1]  # the newest first
    ids = {one.attempt_id for one in alike}
    target = next((targets[one] for one in ids if one in targets), None)
    return FailureGroup(
        target, *parsed(last.kind, last.message), len(alike), len(ids), first.created_at, last.created_at,
        last.attempt_id, last.fingerprint, len(ids & left),
    )  # fmt: skip


def _attempts_of(session: Session, table: Table, ids: Iterable[uuid.UUID]) -> Mapping[uuid.UUID, Any]:
    """The target and the status of each that is there."""
    found: dict[uuid.UUID, Any] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), PAGE):
        asked: Any = select(table.c.id, table.c.target, table.c.status).where(
            table.c.id.in_(wanted[start : start + PAGE])
        )
        found.update((row.id, row) for row in session.execute(asked))
    return found
