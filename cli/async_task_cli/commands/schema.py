"""`async-task install`: the tables."""

import contextlib

import click

from async_task_cli.application import find_app
from async_task_cli.faults import USAGE, Refusal
from async_task_cli.options import SETTINGS, Wanted, reaching
from async_task_cli.terminal import say


@click.command("install", context_settings=SETTINGS)
@click.option("--apply", "is_applied", is_flag=True, help="Make the tables in the database now.")
@reaching
def install(wanted: Wanted, is_applied: bool) -> None:
    """Make the tables that async-task needs. What is there already is left as it is."""
    if not is_applied:
        raise Refusal(
            "writing a revision into an Alembic tree is not built yet: "
            "`async-task install --apply` makes the tables at once",
            USAGE,
        )
    with contextlib.closing(find_app(wanted)) as app:
        app.create_schema()
    say(f"The tables of async-task are in {app.address}.")
