"""`async-task stuck`: what is stuck, by cause, each with the command that helps."""

import datetime as dt
import json
import uuid
from collections.abc import Mapping
from typing import Any, get_args

import click
from rich.text import Text

from async_task import AsyncTask, StuckCause, StuckGroup, StuckReport
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.faults import UNEXPECTED
from async_task_cli.fields import as_json_value
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import brief_span, counted, page, plain, print_sheet, print_whole, say

JOBS = (Column("ID"), Column("SINCE"), Column("CALL", shortest=12), Column("ERROR", shortest=12))


@click.command("stuck", context_settings=SETTINGS)
@click.option("--cause", type=click.Choice(get_args(StuckCause)), help="Only what is stuck for this cause.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N",
    help="Name the N oldest of each group.",
)  # fmt: skip
@as_json
@reaching
def stuck(wanted: Wanted, cause: StuckCause | None, limit: int, is_json: bool) -> int:
    """Say what is stuck, by cause, the oldest first, each with the command that helps and what that will do.

    Ends with 0 if nothing is stuck, and with 1 if something is, as `check` does, or if a model could not be looked at:
    standard error names it. A number with "or more" is a lower
    bound: of each priority of a queue the first attempts due, and the first due later, are looked at (10,000 in one
    queue), and what the newest 10,000 events name. Keys, targets and arguments are judged by what this process knows,
    so run it with the workers' application.

    \b
    A queue counts as run by nobody after 5 min without a worker, and a pause as
    long after 1 h; an error counts as the same again and again after 5 times, or
    if the attempt has failed for good.

    \b
    --json writes one object a line, one for each group:
      cause, subject, words, count, is_counted, oldest_since, remedy, effect
      jobs  the oldest: job_type, id, call, since, error
    Fields and causes may be added, and are not renamed.
    """
    with existing(wanted) as app:
        report = app.attempts.stuck(cause=cause, limit=limit)
        ids = {} if is_json else _short_ids(app, report)
    if is_json:
        for one in report.groups:
            click.echo(json.dumps(_as_data(one)))
    else:
        _print(report, ids)
    for words in report.unread:
        say(words)
    return UNEXPECTED if report.groups or report.unread else 0


def _short_ids(app: AsyncTask, report: StuckReport) -> dict[str, str]:
    named = [job.job_id for one in report.groups for job in one.jobs if job.job_type == app.table_name]
    return {str(one): short for one, short in app.attempts.short_ids(map(uuid.UUID, named)).items()}


def _as_data(one: StuckGroup) -> dict[str, Any]:
    jobs = [
        {
            "job_type": job.job_type, "id": job.job_id, "call": job.call, "since": as_json_value(job.since),
            "error": job.error,
        }
        for job in one.jobs
    ]  # fmt: skip
    return {
        "cause": one.cause, "subject": one.subject, "words": one.words, "count": one.count,
        "is_counted": one.is_counted, "oldest_since": as_json_value(one.jobs[0].since), "remedy": one.remedy,
        "effect": one.effect, "jobs": jobs,
    }  # fmt: skip


def _print(report: StuckReport, ids: Mapping[str, str]) -> None:
    console, before = page(), None
    for one in report.groups:
        if before is not None:
            console.print()
        if one.cause != before:
            console.print(Text(one.title, style="bold"))
        before = one.cause
        print_sheet(console, [("", plain(one.words))])
        print_whole(console, f"$ {one.remedy}", indent=2)
        print_sheet(console, [("", plain(one.effect))], indent=4)
        print_table(console, JOBS, [_cells(job, report.read_at, ids) for job in one.jobs])
    number = sum(one.count for one in report.groups)
    more = "" if report.is_complete else " Not everything was looked at."
    if report.groups:
        say(f"{counted(number, 'job is', 'jobs are')} stuck, for {counted(len(report.groups), 'reason')}.{more}")
    else:
        say(f"Nothing is stuck.{more}")


def _cells(job: Any, now: dt.datetime, ids: Mapping[str, str]) -> list[str]:
    since = "" if job.since is None else f"{brief_span(max(0.0, (now - job.since).total_seconds()))} ago"
    return [ids.get(job.job_id, job.job_id), since, job.call, job.error or ""]
