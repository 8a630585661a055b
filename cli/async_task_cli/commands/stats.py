"""`async-task stats`: what waits, runs, ends and fails."""

import json

import click
from rich.text import Text

from async_task_cli.application import existing
from async_task_cli.columns import print_table
from async_task_cli.figures import (
    FAILURE_COLUMNS,
    QUEUE_COLUMNS,
    TARGET_COLUMNS,
    as_data,
    failure_rows,
    failures_as_data,
    figures_of,
    headlines,
    queue_rows,
    target_rows,
)
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import counted, page, say

MOST_GROUPS = 10
"""Of failures, on a page with other figures."""


@click.command("stats", context_settings=SETTINGS)
@as_json
@reaching
def stats(wanted: Wanted, is_json: bool) -> None:
    """Show what is due, running and ending, by queue and by target, and the latest failures.

    DUE: a worker may start it now. LATER: it is due later. RUNNING: a worker has claimed it. OLDEST: for how long the
    oldest one has been due. RATE and 15 MIN: how many ended in the last minute, and in the last 15. FAILED: of the
    latter, those that failed for good. What waits for an earlier attempt of its order key is in none of these.

    The rates are those of the newest 10,000 attempts, and of about 10,000 that were created before those due. In a
    number with a + not all are counted. Failures are the errors and crashes among the newest 10,000 events, whether
    they were retried or not; numbers, UUIDs and quoted texts in their messages are left out.

    \b
    --json writes one object:
      read_at
      due, later, running, oldest_due_seconds (null if nothing is due),
      ended_per_second, failed_per_second (in the last minute),
      ended_per_second_15min, failed_per_second_15min
      queues    the same of each: queue, due, ..., paused
      targets   the same of each: target, due, ...
      failures  as `failures list --json`
      is_complete  whether everything was counted: depths, rates, failures
    Fields may be added, and are not renamed.
    """
    with existing(wanted) as app:
        figures, report = figures_of(app), app.attempts.failures()
    if is_json:
        parts = {"depths": figures.is_counted, "rates": figures.is_rated, "failures": report.is_complete}
        queues = [as_data(one, "queue") for one in figures.queues]
        targets = [as_data(one, "target") for one in figures.targets]
        data = {"queues": queues, "targets": targets, "failures": failures_as_data(report), "is_complete": parts}
        click.echo(json.dumps({"read_at": figures.read_at.isoformat(), **as_data(figures.total, ""), **data}))
        return
    console = page()
    for line in headlines(figures):
        console.print(Text(line), soft_wrap=True)
    for columns, rows in (
        (QUEUE_COLUMNS, queue_rows(figures)),
        (TARGET_COLUMNS, target_rows(figures)),
        (FAILURE_COLUMNS, failure_rows(report, figures.read_at, MOST_GROUPS)),
    ):
        if rows:
            console.print()
            print_table(console, columns, rows)
    if (left := len(report.groups) - MOST_GROUPS) > 0:
        say(f"{counted(left, 'other kind', 'other kinds')} of failure: async-task failures list")
