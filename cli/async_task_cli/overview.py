"""The overview of `async-task top`: the figures of the dashboard's first page, by statements that only read."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from async_task import AsyncTask, EventInfo, FailureReport, OldestDue, Rates, Status, StatusCounts, WorkerInfo
from async_task_cli import figures
from async_task_cli.columns import Column, fitting_lines
from async_task_cli.commands import workers
from async_task_cli.terminal import counted, moment, plain, span

WITHIN = 2.0
"""Seconds after which the database ends a statement."""
SLOW_EVERY = 10.0
"""Seconds for which figures are kept that thousands of rows are read for."""
MOST_GROUPS, MOST_QUEUES, MOST_TARGETS, MOST_WORKERS, NUM_ERRORS = 5, 20, 10, 20, 5
ERROR_COLUMNS = Column("WHEN"), Column("ATTEMPT"), Column("LAST ERRORS", shortest=12)


@dataclass(frozen=True, slots=True)
class SlowFigures:
    """`counts`: of the newest attempts, by status. `failures`: errors in groups."""

    rates: Rates
    counts: StatusCounts
    failures: FailureReport


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that is shown. `errors`: the last ones, the newest first."""

    oldest: OldestDue
    busiest: figures.Figures
    slow: SlowFigures
    workers: Sequence[WorkerInfo]
    errors: Sequence[EventInfo]


class OverviewReader:
    """Reads the overview of an application, again and again."""

    def __init__(self, app: AsyncTask) -> None:
        self._app = app
        self._slow: SlowFigures | None = None
        self._slow_until = 0.0

    def read(self) -> Overview:
        """The figures of now. Raises ReadTimeout, and what the database raises."""
        with self._app.reading(within=WITHIN):
            slow = self._slow_figures()
            found = figures.busiest(figures.figures_of(self._app, slow.rates), MOST_QUEUES, MOST_TARGETS)
            attempts = self._app.attempts
            return Overview(attempts.oldest_due(), found, slow, self._app.workers(), attempts.errors(NUM_ERRORS))

    def _slow_figures(self) -> SlowFigures:
        if self._slow is None or time.monotonic() > self._slow_until:
            attempts = self._app.attempts
            self._slow = SlowFigures(attempts.rates(), attempts.counts(), attempts.failures())
            self._slow_until = time.monotonic() + SLOW_EVERY
        return self._slow


def head(found: Overview, address: str) -> list[Text]:
    """The figure to alarm on, the figures of all together, and what was read when."""
    return [
        Text(_oldest(found.oldest), style="bold"),
        plain(f"{_now(found)}."),
        plain(f"{_ended(found.slow)}."),
        plain(f"{address}, read at {moment(found.busiest.read_at)}"),
    ]


def parts(found: Overview, width: int) -> list[list[Text]]:
    """The tables below, the most urgent first, in lines of `width` cells."""
    return [
        _needs_you(found, width),
        fitting_lines(
            figures.QUEUE_COLUMNS, figures.queue_rows(found.busiest), width, dropped=("15 MIN", "RATE", "LATER")
        ),
        fitting_lines(
            figures.TARGET_COLUMNS,
            figures.target_rows(found.busiest),
            width,
            dropped=("15 MIN", "RATE", "LATER", "FAILED"),
        ),
        worker_lines(found.workers, width),
        error_lines(found.errors, width),
    ]


def worker_lines(found: Sequence[WorkerInfo], width: int) -> list[Text]:
    """The first workers as a table."""
    dropped = ("BEGAN", "LANES", "QUEUES", "LAST BEAT")
    return fitting_lines(workers.COLUMNS, workers.rows(found[:MOST_WORKERS]), width, dropped=dropped)


def error_lines(errors: Sequence[EventInfo], width: int) -> list[Text]:
    """Errors as a table."""
    rows = [
        (f"{one.created_at:%H:%M:%S}", one.attempt_id.hex[-8:], (one.message or "").partition("\n")[0])
        for one in errors
    ]  # fmt: skip
    return fitting_lines(ERROR_COLUMNS, rows, width)


def _oldest(oldest: OldestDue) -> str:
    if oldest.queue is None:
        return "Nothing is due."
    return plain(f"Oldest due: {span(oldest.age.total_seconds())}, in {oldest.queue}").plain


def _now(found: Overview) -> str:
    total, counts = found.busiest.total, found.slow.counts
    due_more = "" if found.busiest.is_counted else "+"
    more = "" if counts.is_complete else "+"
    failed, expired = (counts.by_status.get(one, 0) for one in (Status.FAILED, Status.EXPIRED))
    return (
        f"{total.due:,}{due_more} due, {total.running:,} running, {total.later:,}{due_more} later, "
        f"{failed:,}{more} failed, {expired:,}{more} expired"
    )


def _ended(slow: SlowFigures) -> str:
    done, failed = slow.rates.minute.ended * 60, slow.rates.minute.failed * 60
    return f"{done:,.0f} done per minute" + (f", {failed:,.0f} of them failed" if failed else "")


def _needs_you(found: Overview, width: int) -> list[Text]:
    report = found.slow.failures
    rows = figures.failure_rows(report, found.busiest.read_at, MOST_GROUPS)
    if not rows:
        return []
    left = len(report.groups) - len(rows)
    title = "Needs you" + (f", and {counted(left, 'other kind', 'other kinds')} of failure" if left > 0 else "")
    lines = fitting_lines(figures.FAILURE_COLUMNS, rows, width, dropped=("FIRST", "LAST", "TARGET", "FINGERPRINT"))
    return [Text(title, style="bold"), *lines]
