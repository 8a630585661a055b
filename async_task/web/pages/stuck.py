"""`/stuck`: what is stuck, by cause, each with the command that helps and what that will do."""

from itertools import groupby

from async_task.reading.stuck_groups import CAUSES, TITLES, StuckCause, StuckGroup
from async_task.web.view import Asked, Page, View

COLUMNS = ("cause", "subject", "count", "type", "id", "call", "since", "error", "remedy")


def read(asked: Asked) -> View:
    cause = _cause(asked)
    report = asked.outbox.attempts.stuck(cause=cause, limit=asked.query.number("limit", 5, 1, 200))
    by_cause = [(TITLES[one], one, list(some)) for one, some in groupby(report.groups, key=_cause_of)]
    rows = [
        (
            group.cause,
            group.subject,
            group.count,
            job.job_type,
            job.job_id,
            job.call,
            job.since,
            job.error,
            group.remedy,
        )
        for group in report.groups
        for job in group.jobs
    ]
    values = {
        "by_cause": by_cause, "report": report, "now": report.read_at, "cause": cause,
        "models": asked.outbox.job_models, "table_name": asked.outbox.table_name,
        "total": sum(one.count for one in report.groups),
    }  # fmt: skip
    command = "async-task stuck" + (f" --cause {cause}" if cause else "")
    return View(values, report, COLUMNS, rows, command)


def _cause_of(group: StuckGroup) -> StuckCause:
    return group.cause


def _cause(asked: Asked) -> StuckCause | None:
    if asked.query.text("cause") is None:
        return None
    return asked.query.choice("cause", CAUSES, CAUSES[0])


PAGE = Page("Stuck", "/stuck", "stuck.html", read)
