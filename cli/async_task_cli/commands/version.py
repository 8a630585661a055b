"""`async-task version`: read from the metadata of packages, none of which is imported."""

import json
import platform
from importlib import metadata

import click

import async_task
from async_task_cli.options import SETTINGS, as_json, debugging

DRIVERS = ("psycopg", "psycopg2", "asyncpg", "PyMySQL", "mysqlclient", "aiomysql", "asyncmy", "aiosqlite")


@click.command("version", context_settings=SETTINGS)
@as_json
@debugging
def version(is_json: bool) -> None:
    """Show the versions of the library, Python, SQLAlchemy, and the database drivers that are installed."""
    drivers = {name: found for name in DRIVERS if (found := _version_of(name))}
    versions = {
        "async-task": async_task.__version__,
        "Python": platform.python_version(),
        "SQLAlchemy": _version_of("SQLAlchemy"),
    }
    if is_json:
        click.echo(json.dumps({**{name.lower(): found for name, found in versions.items()}, "drivers": drivers}))
        return
    for name, found in versions.items():
        click.echo(f"{name:<11} {found}")
    said = ", ".join(f"{name} {found}" for name, found in drivers.items())
    click.echo(f"{'drivers':<11} {said or 'none but sqlite3: install async-task[postgres] or async-task[mysql]'}")


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
