"""`async-task clock`."""

import contextlib
import datetime as dt
import json
import logging
import sys
import time

import click

import async_task
from async_task import AsyncTask, Clock
from async_task_cli.application import existing
from async_task_cli.logs import Lines, log_lines, logged
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.signals import Leave, end
from async_task_cli.terminal import counted

logger = logging.getLogger("async_task")
STATUSES = ("enqueued", "skipped", "missed")
STOPPING = ("stopping the clock",)


@click.command("clock", context_settings=SETTINGS)
@logged
@as_json
@reaching
def clock(wanted: Wanted, is_json: bool, log_format: str | None, service: str | None) -> int:
    """Enqueue the calls of the schedule at their times, until SIGTERM or SIGINT. Workers perform them.

    Any number of clocks may run, on any machines: each time is enqueued once. A clock calls no code of the application
    but when=. An error of one entry is logged, and the others go on.

    The exit code is 143 after SIGTERM and 130 after SIGINT. It is 69 if the database is away at the start, and 78 if
    there is no schedule, or tables or entries do not fit. If the database goes away later, the clock waits for it.

    \b
    --json writes one object at the end:
      seconds   how long the clock ran
      enqueued, skipped, missed
                number of times of which this clock decided that
    --log-format json writes one object a line, as `async-task worker` does.
    """
    if log_format is not None:
        log_lines(log_format, service or "clock")
    with existing(wanted) as app:
        lines = log_lines(log_format, service or "clock")
        made = app.clock()
        started_at = time.monotonic()
        leave = Leave(made.stop, lines.said, STOPPING)
        with leave.listening(), contextlib.redirect_stdout(sys.stderr):
            tally = made.run(began=lambda name: _begin(app, made, lines))
    seconds = time.monotonic() - started_at
    if is_json:
        click.echo(json.dumps({"seconds": round(seconds, 3), **{one: tally[one] for one in STATUSES}}))
    numbers = ", ".join(f"{tally[one]:,} {one}" for one in STATUSES if tally[one])
    logger.info("ended after %s: %s", dt.timedelta(seconds=round(seconds)), numbers or "nothing was due")
    return end(leave.exit_code or 0)


def _begin(app: AsyncTask, made: Clock, lines: Lines) -> None:
    lines.worker = made.name
    entries = counted(len(made.entries), "entry", "entries")
    logger.info("async-task %s: clock %s on %s, %s", async_task.__version__, made.name, app.address, entries)
