"""What is stuck, as values: jobs with one cause and one subject make a group, with the command that helps."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

from sqlalchemy.orm import Session

from async_task.errors import ConfigurationError, near
from async_task.outcomes import error_alone
from async_task.targets.target import call_name

StuckCause = Literal[
    "orphan", "lease_past", "not_served", "paused", "unknown_target", "key_missing", "unfit", "crash_limit",
    "same_error", "blocked", "overdue", "window_over", "no_job", "not_submitted",
]  # fmt: skip
CAUSES: tuple[StuckCause, ...] = get_args(StuckCause)
"""In the order in which a report has them: what is to be mended first stands first."""
TITLES: Mapping[StuckCause, str] = {
    "orphan": "Its worker has died",
    "lease_past": "Its lease is past, and its worker lives",
    "not_served": "Nobody runs its queue",
    "paused": "Paused for long",
    "unknown_target": "No running worker knows its target",
    "key_missing": "A key is missing",
    "unfit": "Its arguments no longer fit",
    "crash_limit": "The crash limit is reached",
    "same_error": "Errors again and again, or for good",
    "blocked": "Blocked by its order key",
    "overdue": "Too late, and not expired",
    "window_over": "Not processed within its window",
    "no_job": "Nobody gives it a job",
    "not_submitted": "Never submitted",
}
LATEST = dt.datetime.max.replace(tzinfo=dt.UTC)
"""Stands for an instant that nothing tells, in an order."""


@dataclass(frozen=True, slots=True)
class StuckJob:
    """One job that is stuck. `job_type`: the name of its table; `job_id`: its key, as text. `call`: what would be
    called. `since`: since when it has been so: due, claimed, failed or too late; None where nothing tells. `error`: the
    beginning of its last error, without arguments and without why nothing more is tried; None where there is none."""

    job_type: str
    job_id: str
    call: str
    since: dt.datetime | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StuckGroup:
    """Jobs that are stuck for one cause.

    `cause`: `orphan` (its worker has died), `lease_past` (its worker lives, and its lease has been past for long),
    `not_served` (no running worker serves its queue), `paused` (for long), `unknown_target` (to every running worker
    that serves its queue), `key_missing` (this process cannot decrypt it), `unfit` (its arguments no longer fit the
    signature), `crash_limit`, `same_error` (again and again, or for good), `blocked` (by another of its order key), or
    `overdue`. Of rows of an `Asyncable`: `window_over` (not processed in time), `no_job` (no attempt processes them),
    or `not_submitted` (attempted or with an error all the same). `subject`: the queue, target, key, fingerprint, order
    key or worker that the group is about.

    `words`: a sentence. `count`: how many they are; a lower bound unless `is_counted`. `jobs`: the oldest of them, the
    oldest first. `remedy`: the command that helps, to be typed as it is; `effect`: what it will do, as a sentence.
    """

    cause: StuckCause
    subject: str
    words: str
    count: int
    is_counted: bool
    jobs: tuple[StuckJob, ...]
    remedy: str
    effect: str

    @property
    def title(self) -> str:
        """The cause in a few words, as a heading."""
        return TITLES[self.cause]


@dataclass(frozen=True, slots=True)
class StuckReport:
    """`groups`: in the order of the causes, and of one cause the oldest first. `is_complete`: whether everything was
    looked at; else there may be more groups, and counts are lower bounds. `unread`: a sentence for each model that
    could not be looked at, with the error."""

    groups: tuple[StuckGroup, ...]
    is_complete: bool
    read_at: dt.datetime
    unread: tuple[str, ...] = ()


class StuckFound(NamedTuple):
    """What a source has found: see StuckReport."""

    groups: Sequence[StuckGroup]
    is_complete: bool
    unread: Sequence[str] = ()


class StuckSource(Protocol):
    """What tells of other jobs that are stuck, such as models that are their own job. It reads a bounded number of
    rows, in the transaction of `session`, and names `limit` jobs of each group at most, the oldest first."""

    def stuck(self, session: Session, limit: int) -> StuckFound: ...


def check_cause(cause: object) -> None:
    """Raises ConfigurationError unless it is None or one of CAUSES."""
    if cause is not None and cause not in CAUSES:
        raise ConfigurationError(f"cause is one of {', '.join(CAUSES)}: it was {cause!r}{near(str(cause), CAUSES)}")


def in_order(groups: Iterable[StuckGroup]) -> tuple[StuckGroup, ...]:
    """As a report has them."""
    return tuple(sorted(groups, key=lambda one: (CAUSES.index(one.cause), one.jobs[0].since or LATEST)))


def jobs_of(table_name: str, rows: Sequence[Any], since: str, limit: int) -> tuple[StuckJob, ...]:
    """The `limit` oldest of these rows, which have an id, a call, an error, and an instant named `since`."""
    oldest = sorted(rows, key=lambda row: (getattr(row, since), str(row.id)))[:limit]
    return tuple(
        StuckJob(table_name, str(row.id), call_name(row.target, row.method_name), getattr(row, since), _error(row))
        for row in oldest
    )


def _error(row: Any) -> str | None:
    return None if row.error is None else error_alone(row.error.partition("\n")[0])


def counted(number: int, *, is_counted: bool = True) -> str:
    """`1 attempt`, `2 attempts`, `10,000 attempts or more`."""
    return f"{number:,} attempt{'' if number == 1 else 's'}{'' if is_counted else ' or more'}"
