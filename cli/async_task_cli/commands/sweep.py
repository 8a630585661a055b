"""`async-task sweep`."""

import dataclasses
import datetime as dt
import json
import uuid
from collections.abc import Sequence

import click
from rich.text import Text

from async_task import MOST_COUNTED, AsyncTask, PlannedChange, SweepPreview
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.options import SETTINGS, Wanted, as_json, once_more, reaching
from async_task_cli.terminal import briefly, counted, is_watched, page, say

COLUMNS = (
    Column("ACTION"), Column("SINCE"), Column("KIND"), Column("ID"), Column("CALL", shortest=12),
    Column("QUEUE", shortest=6), Column("REASON", shortest=20),
)  # fmt: skip


@click.command("sweep", context_settings=SETTINGS)
@click.option(
    "--dry-run", "is_dry", is_flag=True, help="Show what would be done to which rows and why, and do nothing."
)
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, metavar="N",
    help="With --dry-run: show at most N rows.",
)  # fmt: skip
@as_json
@reaching
def sweep(wanted: Wanted, is_dry: bool, limit: int, is_json: bool) -> None:
    """Recover attempts whose process died, then expire those that are too late; resume lost polls. Performs no call.

    `run-batch` does the same before it begins. Any number of sweeps may run at once. Prints nothing without a terminal.

    With --dry-run, one line is one row that would be changed.

    \b
    ACTION:
      recovered  released; its process died in the call, and a loss is counted
      released   released uncharged: its call had not begun; or its turn has come
                 in its order key
      parked     released uncharged: its worker was stopped, or its call had returned
      expired    ended, past its expires_at
      resumed    an operation (Pollable) gets an attempt again
      hurried    an operation past its maximal age is polled a last time
      forgotten  the row of a worker without heartbeats for a day is deleted

    \b
    --json writes one object: recovered, expired, resumed. With --dry-run it writes
    one object a line:
      kind (attempt, operation, worker), id, target, method, queue, action,
      reason, since
    How many are left out after --limit lines is said on standard error.
    """
    with existing(wanted) as app:
        if is_dry:
            found = app.preview_sweep(limit)
            _print_json(found) if is_json else _print_table(app, found)
            _say_left_out(found)
            return
        report = app.sweep()
    if is_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    elif is_watched():
        resumed = f", {report.resumed:,} polls resumed" if report.resumed else ""
        say(f"{report.recovered:,} recovered, {report.expired:,} expired{resumed}.")


def _print_json(found: SweepPreview) -> None:
    for one in found.changes:
        click.echo(json.dumps(as_data(one)))


def _print_table(app: AsyncTask, found: SweepPreview) -> None:
    if found.changes:
        attempts = (uuid.UUID(one.id) for one in found.changes if one.kind == "attempt")
        ids = {str(whole): short for whole, short in app.attempts.short_ids(attempts).items()}
        now = app.now()
        print_table(page(), COLUMNS, [_cells(one, ids.get(one.id, one.id), now) for one in found.changes])
    rows = counted(len(found.changes), "row") if found.changes else "Nothing"
    say(f"{rows} would be changed. Nothing was done: this is a dry run.")


def _say_left_out(found: SweepPreview) -> None:
    if not found.left_out:
        return
    shown = len(found.changes)
    left = counted(found.left_out, "more row", "more rows")
    left = f"At least {left}" if shown + found.left_out >= MOST_COUNTED else left
    more = once_more(click.get_current_context(), "--limit", str(shown + found.left_out))
    say(f"{left} would be changed, and left out here: {more}")


def as_data(one: PlannedChange) -> dict[str, str | None]:
    since = None if one.since is None else one.since.isoformat()
    return {**dataclasses.asdict(one), "since": since}


def _cells(one: PlannedChange, short_id: str, now: dt.datetime) -> Sequence[Text | str]:
    since = "" if one.since is None else briefly(one.since, now)
    return one.action, since, one.kind, short_id, one.call or "", one.queue or "", one.reason
