"""`async-task sweep`."""

import dataclasses
import json

import click

from async_task_cli.application import existing
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import is_watched, say


@click.command("sweep", context_settings=SETTINGS)
@as_json
@reaching
def sweep(wanted: Wanted, is_json: bool) -> None:
    """Recover attempts whose process died, then expire those that are too late. Performs no call.

    `run-batch` does the same before it begins. Any number of sweeps may run at once. Prints nothing without a terminal.
    """
    with existing(wanted) as app:
        report = app.sweep()
    if is_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    elif is_watched():
        say(
            f"{report.recovered:,} recovered, {report.crashed:,} failed at the crash limit, {report.expired:,} expired."
        )
