"""`async-task sql`: what `install` and `upgrade` do, as SQL."""

import click

from async_task_cli.application import find_model
from async_task_cli.migrations.body import FIRST_VERSION, installing, upgrading
from async_task_cli.migrations.execution import DIALECTS, as_sql
from async_task_cli.migrations.schema import SCHEMA_VERSION, table_of, tables_of
from async_task_cli.options import SETTINGS, Wanted, reaching

dialect = click.option(
    "--dialect", type=click.Choice(DIALECTS), required=True, help="The database; for MariaDB give mariadb."
)


@click.group("sql", context_settings=SETTINGS)
def sql() -> None:
    """Print the SQL that creates or changes the tables, and nothing else."""


@sql.command("install", context_settings=SETTINGS)
@dialect
@reaching
def install(wanted: Wanted, dialect: str) -> None:
    """Print the SQL that creates the tables, as this version of async-task needs them."""
    model = find_model(wanted)
    click.echo(as_sql(installing(tables_of(model), table_of(model)), dialect), nl=False)


@sql.command("upgrade", context_settings=SETTINGS)
@dialect
@click.option(
    "--from", "since", type=click.IntRange(FIRST_VERSION, SCHEMA_VERSION - 1), default=SCHEMA_VERSION - 1,
    show_default=True, metavar="VERSION", help="The version of the existing tables.",
)  # fmt: skip
@reaching
def upgrade(wanted: Wanted, dialect: str, since: int) -> None:
    """Print the SQL that upgrades tables of an earlier version."""
    click.echo(as_sql(upgrading(table_of(find_model(wanted)), since), dialect), nl=False)
