"""`async-task sweep`."""

import dataclasses
import json

import click

from async_task import AsyncTask
from async_task_cli.application import existing
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import is_watched, say


@click.command("sweep", context_settings=SETTINGS)
@click.option("--dry-run", "is_dry", is_flag=True, help="Show what is to be recovered and expired, and do nothing.")
@as_json
@reaching
def sweep(wanted: Wanted, is_dry: bool, is_json: bool) -> None:
    """Recover attempts whose process died, then expire those that are too late; resume lost polls. Performs no call.

    `run-batch` does the same before it begins. Any number of sweeps may run at once. Prints nothing without a terminal.
    """
    with existing(wanted) as app:
        if is_dry:
            _preview(app, is_json=is_json)
            return
        report = app.sweep()
    if is_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    elif is_watched():
        resumed = f", {report.resumed:,} polls resumed" if report.resumed else ""
        say(f"{report.recovered:,} recovered, {report.expired:,} expired{resumed}.")


def _preview(app: AsyncTask, *, is_json: bool) -> None:
    found = app.preview_batch()
    if is_json:
        click.echo(json.dumps({"dry_run": True, "to_recover": found.to_recover, "to_expire": found.to_expire}))
    else:
        say(f"{found.to_recover:,} would be recovered, {found.to_expire:,} would expire.")
