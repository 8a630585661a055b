"""Pages of jobs: of attempts, of rows that are their own jobs, or of both together."""

import datetime as dt
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from async_task.attempts.info import AttemptInfo
from async_task.reading.jobs import JobInfo, JobPage
from async_task.reading.pages import AttemptPage, StatusCounts
from async_task.web.requests.search import ROW_STATES
from async_task.web.security.refusal import Refused

if TYPE_CHECKING:
    from async_task.application.app import AsyncTask

LIMIT = 50
MOST_LOOKS = 5
"""How many bounded parts of a table are read for one page that has few rows."""
STUCK = ("stuck",)
OVER = "-"
"""Stands in a cursor for what has no further page."""
FACTS = (
    "id", "status", "target", "method_name", "queue", "priority", "idempotence_token", "order_key", "num_attempts",
    "num_errors", "num_crashes", "num_losses", "scheduled_at", "due_at", "expires_at", "claimed_by", "lease_until",
    "attempted_at", "completed_at", "last_error", "created_at", "updated_at", "waits_behind",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One job of a list: an attempt, or a row."""

    attempt: AttemptInfo | None = None
    job: JobInfo | None = None

    @property
    def submitted_at(self) -> dt.datetime | None:
        if self.job is not None:
            return self.job.last_submitted_at or self.job.submitted_at
        return None if self.attempt is None else self.attempt.created_at

    @property
    def cells(self) -> tuple[Any, ...]:
        """As `.csv` has it."""
        if self.job is not None:
            one = self.job
            return (
                one.model, one.key, one.submitted_at, one.last_submitted_at, one.attempted_at, one.error, one.user
            )  # fmt: skip
        assert self.attempt is not None
        found = self.attempt
        return found.call, found.id, found.created_at, found.created_at, found.attempted_at, found.error, ""

    @property
    def data(self) -> Any:
        """As `.json` has it."""
        return self.job or {name: getattr(self.attempt, name) for name in FACTS}


@dataclass(frozen=True, slots=True)
class JobList:
    """A page. `words`: how many there are of how many. `unread`: models that could not be read."""

    lines: Sequence[Line]
    next: str | None
    read_at: dt.datetime
    words: str
    order: str
    statuses: tuple[str, ...]
    command: str
    unread: tuple[str, ...] = ()


def attempts_page(outbox: "AsyncTask", filters: dict[str, Any], order: Any, after: str | None, command: str) -> JobList:
    """Of attempts for which these filters hold."""
    page = _read_on(outbox, filters, order, after)
    words = _viewing(len(page.attempts), after)
    if order not in ("due", "due_last"):  # these list only what waits, which counts do not tell apart
        words += f" of {_counted(outbox.attempts.counts(**filters))}"
    lines = [Line(attempt=one) for one in page.attempts]
    return JobList(lines, page.next, page.read_at, words, order, filters["status"], command)


def rows_page(
    outbox: "AsyncTask", model: str | None, statuses: tuple[str, ...], user: str | None, after: str | None
) -> JobList:
    """Of rows of one model, or of all, in these states (none: in whichever), of this user (None: of all)."""
    states = ROW_STATES if not statuses else tuple(one for one in statuses if one not in STUCK)
    page = outbox.jobs(model, status=states, user=user, limit=LIMIT, after=after)
    lines = [Line(job=one) for one in page.jobs]
    words = _viewing(len(lines), after)
    return JobList(lines, page.next, page.read_at, words, "oldest", statuses, "", page.unread)


def merged_page(outbox: "AsyncTask", after: str | None) -> JobList:
    """Of both, those that are potentially stuck, by the time of submission. The cursor holds one of each, with a tilde
    between them."""
    before = _cursors(after)
    attempts = None if before[0] == OVER else _read_on(outbox, {"status": STUCK}, "oldest", before[0])
    rows = None if before[1] == OVER else outbox.jobs(limit=LIMIT, after=before[1])
    chosen = _merged(
        [Line(attempt=one) for one in attempts.attempts] if attempts is not None else [],
        [Line(job=one) for one in rows.jobs] if rows is not None else [],
    )[:LIMIT]
    following = _following(outbox, before, chosen, attempts, rows)
    read_at = attempts.read_at if attempts is not None else outbox.now()
    counts = outbox.attempts.counts(status=STUCK)
    words = f"{_viewing(len(chosen), after)} of {len(chosen)}"
    if following is not None or after is not None:
        words = f"{_viewing(len(chosen), after)}, of {_counted(counts)} attempts, and rows of models"
    unread = rows.unread if rows is not None else ()
    return JobList(chosen, following, read_at, words, "oldest", STUCK, "", unread)


def _read_on(outbox: "AsyncTask", filters: dict[str, Any], order: Any, after: str | None) -> AttemptPage:
    """LIMIT attempts, or fewer where a few bounded parts of the table hold no more: then there is a `next`."""
    found: list[AttemptInfo] = []
    for look in itertools.count(1):
        page = outbox.attempts.list(**filters, order=order, limit=LIMIT - len(found), after=after)
        found += page.attempts
        after = page.next
        if after is None or len(found) >= LIMIT or look == MOST_LOOKS:
            return AttemptPage(tuple(found), after, page.read_at)
    raise AssertionError


def _merged(some: Sequence[Line], others: Sequence[Line]) -> list[Line]:
    """By the time of submission, and each in its own order, which the cursors follow: that of attempts is the order of
    their ids, by the clocks of those who wrote them."""
    found, left, right = list[Line](), deque(some), deque(others)
    while left and right:
        found.append(left.popleft() if _when(left[0]) <= _when(right[0]) else right.popleft())
    return [*found, *left, *right]


def _when(line: Line) -> dt.datetime:
    return line.submitted_at or dt.datetime.max.replace(tzinfo=dt.UTC)


def _cursors(after: str | None) -> tuple[str | None, str | None]:
    if after is None:
        return None, None
    attempts, tilde, rows = after.partition("~")
    if not tilde:
        raise Refused(400, "after is the end of a page of another list.")
    return attempts or None, rows or None


def _following(
    outbox: "AsyncTask", before: tuple[str | None, str | None], chosen: Sequence[Line],
    attempts: AttemptPage | None, rows: JobPage | None,
) -> str | None:  # fmt: skip
    """The cursor behind the lines that were chosen of both."""
    ids = [str(one.attempt.id) for one in chosen if one.attempt is not None]
    number = sum(one.job is not None for one in chosen)
    after_attempts: str | None = OVER
    if attempts is not None:
        is_all = len(ids) == len(attempts.attempts)
        after_attempts = attempts.next or OVER if is_all else ids[-1] if ids else before[0]
    after_rows: str | None = OVER
    if rows is not None:
        is_all = number == len(rows.jobs)
        some = rows if is_all or not number else outbox.jobs(limit=number, after=before[1])
        after_rows = some.next or OVER if is_all or number else before[1]
    if after_attempts == after_rows == OVER:
        return None
    return f"{after_attempts or ''}~{after_rows or ''}"


def _viewing(number: int, after: str | None) -> str:
    if after is not None:
        return f"Viewing {number} more"
    return f"Viewing 1 to {number}" if number else "Viewing none"


def _counted(counts: StatusCounts) -> str:
    return f"{counts.total:,}" if counts.is_complete else f"~{counts.total:,} or more"
