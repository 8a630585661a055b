"""`async-task adopt`: tables that something else has made, taken over."""

import contextlib

import click
from sqlalchemy import Connection, inspect

from async_task import AsyncTask
from async_task_cli.application import find_app, refuse_missing_file
from async_task_cli.faults import CONFIGURATION, Refusal
from async_task_cli.migrations.body import Body, adopting
from async_task_cli.migrations.comparison import differences
from async_task_cli.migrations.execution import as_sql, carry_out, dialect_of
from async_task_cli.migrations.schema import SCHEMA_VERSION, companion_tables, table_of, tables_of
from async_task_cli.options import SETTINGS, Wanted, reaching
from async_task_cli.terminal import say


@click.command("adopt", context_settings=SETTINGS)
@click.option("--dry-run", "is_dry", is_flag=True, help="Print the SQL and change nothing.")
@reaching
def adopt(wanted: Wanted, is_dry: bool) -> None:
    """Take over tables that are in the database without a version, as Alembic's autogenerate makes them.

    Compares them with those that this library needs. If nothing else is missing, it makes what autogenerate does not
    see (a sequence and storage parameters on PostgreSQL), and writes their version. Run it in each database.
    """
    with contextlib.closing(find_app(wanted)) as app:
        refuse_missing_file(app)
        version = app.schema_version()
        if version == SCHEMA_VERSION:
            say(f"Already at version {SCHEMA_VERSION}; nothing was changed.")
            return
        if version is not None:
            app.check_schema()
        body = app.on_connection(lambda connection: _body(connection, app))
        if is_dry:
            click.echo(as_sql(body, dialect_of(app)), nl=False)
            return
        app.on_connection(lambda connection: carry_out(body, connection))
        say(f"The tables in {app.address} are adopted, as version {SCHEMA_VERSION}.")


def _body(connection: Connection, app: AsyncTask) -> Body:
    """What is left to do. Raises Refusal unless these tables are as this library needs them."""
    attempts = table_of(app.model)
    stamp = companion_tables(attempts).version
    found = inspect(connection)
    if not found.has_table(attempts.name, attempts.schema):
        raise Refusal("the database has no tables of async-task: `async-task install` creates them", CONFIGURATION)
    has_version = found.has_table(stamp.name, stamp.schema)
    others = [table for table in tables_of(app.model) if has_version or table is not stamp]
    wrong = [words for words in differences(connection, others) if not words.startswith("the sequence ")]
    if wrong:
        words = "these tables are not as this library needs them, and are not adopted"
        raise Refusal(f"{words}: {'; '.join(wrong)}", CONFIGURATION)
    return adopting(attempts, has_version=has_version)
