"""`async-task upgrade`: tables of an earlier version, brought to the current one."""

import contextlib
import dataclasses

import click

from async_task import AsyncTask, BaseAttempt
from async_task_cli.application import find_app, find_model, refuse_missing_file
from async_task_cli.faults import CONFIGURATION, Refusal
from async_task_cli.migrations.body import Body, upgrading
from async_task_cli.migrations.comparison import differences
from async_task_cli.migrations.execution import as_sql, carry_out, dialect_of
from async_task_cli.migrations.schema import SCHEMA_VERSION, table_of, tables_of
from async_task_cli.migrations.writing import Writing, writing
from async_task_cli.options import SETTINGS, Wanted, reaching
from async_task_cli.terminal import say


@click.command("upgrade", context_settings=SETTINGS)
@click.option("--apply", "is_applied", is_flag=True, help="Change the tables in the database now, without Alembic.")
@writing
@reaching
def upgrade(wanted: Wanted, writing: Writing, is_applied: bool) -> None:
    """Upgrade tables that an earlier version of async-task created.

    Writes one more revision into your Alembic tree, or with --apply changes the database.
    """
    if is_applied:
        with contextlib.closing(find_app(wanted)) as app:
            _apply(app, is_dry=writing.is_dry)
    else:
        _write(writing, find_model(wanted))


def _write(writing: Writing, model: type[BaseAttempt]) -> None:
    tree = writing.tree()
    installed = tree.installed(table_of(model))
    if installed is None and tree.naming(table_of(model)) is not None:
        words = "a revision of your own names the tables: `async-task upgrade --apply` upgrades them in each database"
        raise Refusal(words, CONFIGURATION)
    if installed is None:
        raise Refusal("this tree has no revision of async-task: `async-task install` writes it", CONFIGURATION)
    if installed[1] == SCHEMA_VERSION:
        words = f"This tree is at version {SCHEMA_VERSION}, in revision {installed[0]}; nothing was written."
        say(f"{words} `{tree.tool.upgrade} head` brings the database there.")
        return
    placed = dataclasses.replace(writing, place=tree.place_after(installed[0], writing.place))
    placed.write(tree, _step_from(installed[1], model), ())


def _apply(app: AsyncTask, *, is_dry: bool) -> None:
    refuse_missing_file(app)
    found = app.schema_version()
    if found is None:  # what to do with tables that are missing, or have no version, the check says
        app.check_schema()
    elif found == SCHEMA_VERSION:
        _refuse_left_behind(app)
        say(f"Already at version {SCHEMA_VERSION}; nothing was changed.")
    elif is_dry:
        click.echo(as_sql(_step_from(found, app.model), dialect_of(app)), nl=False)
    else:
        body = _step_from(found, app.model)
        app.on_connection(lambda connection: carry_out(body, connection))
        say(f"The tables in {app.address} are of version {body.version} now.")


def _refuse_left_behind(app: AsyncTask) -> None:
    """A second table of attempts has the version of the first, and is not upgraded with it."""
    if wrong := app.on_connection(lambda connection: differences(connection, tables_of(app.model))):
        words = f"the tables are of version {SCHEMA_VERSION}, and {wrong[0]}; nothing was changed"
        raise Refusal(f"{words}: `async-task check` names all that is missing, for a migration of yours", CONFIGURATION)


def _step_from(version: int, model: type[BaseAttempt]) -> Body:
    if version > SCHEMA_VERSION:
        words = f"the tables are of version {version}, and this library knows {SCHEMA_VERSION}: upgrade the library"
        raise Refusal(words, CONFIGURATION)
    return upgrading(table_of(model), version)
