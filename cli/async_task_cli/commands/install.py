"""`async-task install`: the tables, by a revision or at once; and a model and jobs to start with."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Column, Connection, Index, inspect
from sqlalchemy.orm import DeclarativeBase

from async_task import Asyncable, AsyncableSchema, Attempt, BaseAttempt, asyncable_schema
from async_task_cli.application import Named, find_app, find_asyncable, find_model, refuse_missing_file
from async_task_cli.faults import CONFIGURATION, USAGE, Refusal
from async_task_cli.migrations.body import completing, installing
from async_task_cli.migrations.execution import as_sql, dialect_of
from async_task_cli.migrations.schema import table_of, tables_of
from async_task_cli.migrations.tree import Tree
from async_task_cli.migrations.writing import Writing, brief, metadata_lines, metadata_lines_of, writing
from async_task_cli.options import SETTINGS, Wanted, reaching
from async_task_cli.scaffold import Planned, Wish, plan, write
from async_task_cli.scaffold.modules import module_at
from async_task_cli.terminal import say

PATH = click.Path(path_type=Path)


@click.command("install", context_settings=SETTINGS)
@click.option("--apply", "is_applied", is_flag=True, help="Create the tables in the database now, without Alembic.")
@click.option(
    "--table", metavar="NAME", help="The name of the attempts table [default: that of the application's model]."
)
@click.option("--schema", metavar="NAME", help="The database schema of the tables [default: likewise].")
@click.option("--model", "model_file", type=PATH, metavar="PATH", help="Also write a model of your own, to this file.")
@click.option("--base", metavar="MODULE:NAME", help="The declarative base of that model, where it cannot be found.")
@click.option("--jobs", "jobs_file", type=PATH, metavar="PATH", help="Also write the two job classes, to this file.")
@click.option(
    "--asyncable", metavar="MODULE:CLASS",
    help="Instead, add to the table of this model (Asyncable) the columns and the index that it lacks.",
)  # fmt: skip
@writing
@reaching
def install(
    wanted: Wanted, writing: Writing, is_applied: bool, table: str | None, schema: str | None, base: str | None,
    model_file: Path | None, jobs_file: Path | None, asyncable: str | None,
) -> None:  # fmt: skip
    """Write a revision that creates the tables of async-task into your own Alembic tree, and run nothing.

    It is rendered by your script.py.mako, and named as you name revisions. With --model and --jobs it also writes these
    modules, and their tests where the project has pytest. All files are yours from then on; none is overwritten.

    With --asyncable it looks into the database, and writes a revision for the table of that model alone.

    Run it before `alembic revision --autogenerate`, which otherwise writes the tables into a revision of its own,
    without their version. If that has happened and was carried out, run `async-task adopt`.
    """
    if asyncable is not None:
        if is_applied or table or schema or base or model_file or jobs_file:
            raise Refusal("--asyncable changes the table of one model: leave the other options out", USAGE)
        _complete(wanted, writing, find_asyncable(Named(asyncable, "--asyncable", USAGE)))
        return
    names = {"table": table} if table else {}
    planned = plan(Wish(Path.cwd(), model=model_file, jobs=jobs_file, schema=schema, base=base, **names))
    if is_applied:
        _apply(wanted, table or schema, is_dry=writing.is_dry)
    elif model_file is not None:
        module = module_at(model_file, Path.cwd().resolve())
        _install(writing, _model_named(table, schema), metadata_lines_of(module.name, "Attempt", writing.tree()))
    elif table or schema:
        _install(writing, _model_named(table, schema), _model_lines(table, schema, writing.tree()))
    else:
        model = find_model(wanted)
        _install(writing, model, metadata_lines(model, writing.tree()))
    _write_files(planned, is_dry=writing.is_dry)
    if model_file is not None and not writing.is_dry:
        name = module_at(model_file, Path.cwd().resolve()).name
        say("\nGive the model to the application, which else uses the ready-made one:\n")
        say(f"    from {name} import Attempt\n    outbox = AsyncTask(..., model=Attempt)\n")


def _apply(wanted: Wanted, other: str | None, *, is_dry: bool) -> None:
    if other is not None:
        raise Refusal("--apply creates the tables of the application's model: set the names there", USAGE)
    with contextlib.closing(find_app(wanted)) as app:
        if is_dry:
            body = installing(tables_of(app.model), table_of(app.model))
            click.echo(as_sql(body, dialect_of(app)), nl=False)
        else:
            app.create_schema()
            say(f"The tables of async-task are in {app.address}.")


def _install(writing: Writing, model: type[BaseAttempt], target_metadata: Sequence[str]) -> None:
    tree, attempts = writing.tree(), table_of(model)
    installed = tree.installed(attempts)
    if installed is not None:
        say(f"Already installed in revision {installed[0]}; no revision was written.")
        return
    if (other := tree.naming(attempts)) is not None:
        raise Refusal(
            f"{brief(other)} names these tables already, as autogenerate writes it; no revision was written: if it has "
            "run nowhere, delete it and install again; if it has, run `async-task adopt` in each database",
            CONFIGURATION,
        )
    made = tree.made()  # beside a second table of attempts, in the same schema
    missing = [table for table in tables_of(model) if table.fullname not in made]
    writing.write(tree, installing(missing, attempts), target_metadata)


def _complete(wanted: Wanted, writing: Writing, model: type[Asyncable]) -> None:
    needed, tree = asyncable_schema(model), writing.tree()
    columns, indexes = _missing(wanted, needed)
    if not columns and not indexes:
        say(f"{needed.table.fullname} has all that {model.__name__} needs; no revision was written.")
        return
    if (written := tree.installed(needed.table)) is not None:
        say(f"Revision {written[0]} is about {needed.table.fullname} already; no revision was written. Carry it out.")
        return
    writing.write(tree, completing(needed.table, columns, indexes), ())


def _missing(wanted: Wanted, needed: AsyncableSchema) -> tuple[list[Column[Any]], list[Index]]:
    """What the table in the database lacks. Raises Refusal if there is no such table."""
    table = needed.table

    def compare(connection: Connection) -> tuple[list[Column[Any]], list[Index]]:
        there = inspect(connection)
        if not there.has_table(table.name, table.schema):
            raise Refusal(
                f"the database has no table {table.fullname}: let autogenerate make it, with all that it needs",
                CONFIGURATION,
            )
        columns = {one["name"] for one in there.get_columns(table.name, table.schema)}
        indexes = {one["name"] for one in there.get_indexes(table.name, table.schema)}
        lacking = [one for one in needed.columns if one.name not in columns]
        return lacking, [] if needed.index.name in indexes else [needed.index]

    with contextlib.closing(find_app(wanted)) as app:
        refuse_missing_file(app)
        return app.on_connection(compare)


def _model_named(table: str | None, schema: str | None) -> type[BaseAttempt]:
    """A model like the ready-made one, with other names."""

    class Base(DeclarativeBase): ...

    names = {"__tablename__": table or Attempt.__tablename__, "__table_args__": {"schema": schema}}
    return type("Attempt", (BaseAttempt, Base), names)


def _model_lines(table: str | None, schema: str | None, tree: Tree) -> list[str]:
    """The lines of env.py for the tables of a model that the user has elsewhere, or has yet to write."""
    place = f", and __table_args__ = {{'schema': {schema!r}}}" if schema else ""
    return [
        f"# Your model, with __tablename__ = {table or Attempt.__tablename__!r}{place}; --model PATH writes it.",
        *metadata_lines_of("shop.attempt", "Attempt", tree),
    ]


def _write_files(planned: Sequence[Planned], *, is_dry: bool) -> None:
    if is_dry:
        for one in planned:
            say(f"{brief(one.path)}: {'exists, and would stay' if one.is_there else 'would be written'}")
        return
    for file in write(planned):
        click.echo(brief(file.path))
        if file.outcome == "kept":
            say(f"{brief(file.path)} existed, and stays as it is.")
