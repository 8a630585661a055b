"""`async-task process-models`."""

import dataclasses
import json

import click

from async_task import ModelReport, ProcessReport
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import is_watched, page, say

COLUMNS = (
    Column("MODEL", shortest=12), Column("DISPATCHED", is_number=True), Column("OPEN", is_number=True),
    Column("LEFT", is_number=True), Column("ERRORS", is_number=True),
)  # fmt: skip


@click.command("process-models", context_settings=SETTINGS)
@click.option(
    "--limit", type=click.IntRange(0, 1_000_000), default=100, show_default=True, metavar="N",
    help="Dispatch at most N rows of each model.",
)  # fmt: skip
@click.option("--dry-run", "is_dry", is_flag=True, help="Show what would be dispatched, and do nothing.")
@as_json
@reaching
def process_models(wanted: Wanted, limit: int, is_dry: bool, is_json: bool) -> int:
    """See that each row of a model (Asyncable) that requires processing has a job that is due. Performs no call.

    Run it every hour, by cron or as an entry of the schedule; any number may run at once. It prints nothing without a
    terminal if all went well. Rows that could not be helped are named on standard error, and it ends with 1.

    \b
    DISPATCHED  got an attempt, or theirs was opened again or made due
    OPEN        have an attempt that is due or being performed
    LEFT        are left to a later sweep, because of --limit

    \b
    --json writes one object a line: model, dispatched, open, left, errors.
    """
    with existing(wanted) as app:
        report = app.process_models(limit, dry_run=is_dry)
    if is_json:
        for one in report.models:
            click.echo(json.dumps(dataclasses.asdict(one)))
    elif is_dry or is_watched():
        _print(report, is_dry=is_dry)
    for one in report.models:
        for error in one.errors:
            say(f"{one.model}: {error}")
    return 1 if report.errors else 0


def _print(report: ProcessReport, *, is_dry: bool) -> None:
    if not report.models:
        say("The application knows no model that is its own job.")
        return
    print_table(page(), COLUMNS, [_cells(one) for one in report.models])
    if is_dry:
        say("Nothing was done: this is a dry run.")


def _cells(one: ModelReport) -> list[str]:
    return [one.model, f"{one.dispatched:,}", f"{one.open:,}", f"{one.left:,}", f"{len(one.errors):,}"]
