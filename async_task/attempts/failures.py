"""What goes wrong most: the latest errors, grouped by what they have in common."""

import datetime as dt
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from async_task.attempts.events import READ, EventInfo, latest_errors
from async_task.outcomes import error_alone

LOST = ("crash", "loss")
"""Kinds of event that stand for the exception of a start whose process was lost."""
PAGE = 500
_UUID = re.compile(r"\b[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}\b", re.IGNORECASE)
_WORKER = re.compile(r"[\w.-]+:\d+:[0-9a-f]{8}\b")
_QUOTED = re.compile(r"""(?<!\w)'[^']*'(?!\w)|"[^"]*"|`[^`]*`""")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:[.,:]\d+)*", re.IGNORECASE)
_EXCEPTION = re.compile(r"([A-Za-z_][\w.<>]*)(?:: (.*)|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Errors that are alike.

    `target`: None where the attempts are no longer there. `exception`: the name of its class; "crash" for a start that
    killed its process, "loss" for one that was lost with its worker. `message`: what it says, with `N` for each number,
    `UUID` for each UUID, `WORKER` for each worker and `'...'` for each text in quotes. `count`: errors; `attempts`: to
    how many attempts they happened. `latest`: the attempt of the last one.
    """

    target: str | None
    exception: str
    message: str
    count: int
    attempts: int
    first: dt.datetime
    last: dt.datetime
    latest: uuid.UUID


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
    targets = _targets_of(session, table, {one.attempt_id for one in errors})
    groups: dict[tuple[str | None, str, str], list[EventInfo]] = {}
    for one in errors:
        exception, message = parsed(one.kind, one.message)
        groups.setdefault((targets.get(one.attempt_id), exception, message), []).append(one)
    found = [_group(*key, alike) for key, alike in groups.items()]
    found.sort(key=lambda group: (-group.count, -group.last.timestamp(), group.exception))
    return FailureReport(tuple(found), len(errors), is_complete)


def parsed(kind: str, message: str | None) -> tuple[str, str]:
    """The exception and the normalised message of an error, from what its event says."""
    first = (message or "").partition("\n")[0]
    if kind in LOST:
        return kind, normalised(first)
    first = error_alone(first)
    found = _EXCEPTION.fullmatch(first)
    return (found[1], normalised(found[2] or "")) if found else ("", normalised(first))


def normalised(message: str) -> str:
    """`message` without what differs from call to call."""
    for pattern, instead in ((_UUID, "UUID"), (_WORKER, "WORKER"), (_QUOTED, "'...'"), (_NUMBER, "N")):
        message = pattern.sub(instead, message)
    return message


def _group(target: str | None, exception: str, message: str, alike: Sequence[EventInfo]) -> FailureGroup:
    last, first = alike[0], alike[-1]  # the newest first
    ids = {one.attempt_id for one in alike}
    return FailureGroup(
        target, exception, message, len(alike), len(ids), first.created_at, last.created_at, last.attempt_id
    )


def _targets_of(session: Session, table: Table, ids: Iterable[uuid.UUID]) -> Mapping[uuid.UUID, str]:
    found: dict[uuid.UUID, str] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), PAGE):
        asked: Any = select(table.c.id, table.c.target).where(table.c.id.in_(wanted[start : start + PAGE]))
        found.update((row.id, row.target) for row in session.execute(asked))
    return found
