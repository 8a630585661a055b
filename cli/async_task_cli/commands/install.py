"""`async-task install` and `async-task upgrade`: the tables, in somebody's own Alembic tree or at once."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from sqlalchemy import make_url
from sqlalchemy.orm import DeclarativeBase

from async_task import AsyncTask, BaseAttempt, metadata
from async_task.schema import tables_of
from async_task.tables import SCHEMA_VERSION
from async_task.verbs import table_of
from async_task_cli.application import find_app, find_model, refuse_missing_file
from async_task_cli.faults import CONFIGURATION, USAGE, Refusal
from async_task_cli.migrations.body import Body, installing, upgrading
from async_task_cli.migrations.environment import Unknown, unseen
from async_task_cli.migrations.execution import as_sql, carry_out
from async_task_cli.migrations.tree import Place, Tree, find_tree
from async_task_cli.options import SETTINGS, Wanted, reaching
from async_task_cli.terminal import say

NO_TREE = (
    "there is no Alembic tree here, neither alembic.ini nor [tool.alembic] in pyproject.toml: begin one with "
    "`alembic init migrations`, make the tables at once with --apply, or print them with `async-task sql`"
)


@dataclass(frozen=True, slots=True)
class Writing:
    """How a revision shall be written: into which tree and where in it, or not at all."""

    config: Path | None
    place: Place
    is_dry: bool

    def tree(self) -> Tree:
        found = find_tree(self.config)
        if found is None:
            raise Refusal(NO_TREE, CONFIGURATION)
        return found


def writing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where a revision goes; the command is called with `writing=`."""

    @click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="Alembic's configuration.")
    @click.option("--head", metavar="REVISION", help="Behind this one, of several heads.")
    @click.option("--branch", is_flag=True, help="As a branch of its own, labelled async_task.")
    @click.option("--version-path", type=click.Path(path_type=Path), metavar="PATH", help="Into this of its folders.")
    @click.option("--engine", metavar="NAME", help="For this of the databases of a multidb tree.")
    @click.option("--dry-run", "is_dry", is_flag=True, help="Print the revision; write nothing.")
    @functools.wraps(command)
    def written(
        *args: Any, config: Path | None, head: str | None, branch: bool, version_path: Path | None, engine: str | None,
        is_dry: bool, **options: Any,
    ) -> Any:  # fmt: skip
        if head and branch:
            raise click.UsageError("--branch begins at the base: leave --head out, or --branch")
        place = Place(head, branch, version_path, engine)
        return command(*args, writing=Writing(config, place, is_dry), **options)

    return written


@click.command("install", context_settings=SETTINGS)
@click.option("--apply", "is_applied", is_flag=True, help="Make the tables in the database now, without Alembic.")
@click.option("--table", metavar="NAME", help="The attempts table's name; the application's model says it unless said.")
@click.option("--schema", metavar="NAME", help="The database schema of the tables; likewise.")
@writing
@reaching
def install(wanted: Wanted, writing: Writing, is_applied: bool, table: str | None, schema: str | None) -> None:
    """Write a revision that makes async-task's tables into your own Alembic tree, and run nothing.

    It is rendered by your script.py.mako and named as you name revisions; it is yours from then on.
    """
    if is_applied:
        _apply(wanted, table or schema, is_dry=writing.is_dry)
        return
    model = _model(wanted, table, schema)
    tree = writing.tree()
    installed = tree.installed()
    if installed is not None:
        say(f"Already installed in revision {installed[0]}; nothing was written.")
        return
    _write(tree, installing(tables_of(model), table_of(model)), writing, model)


@click.command("upgrade", context_settings=SETTINGS)
@click.option("--apply", "is_applied", is_flag=True, help="Change the tables in the database now, without Alembic.")
@writing
@reaching
def upgrade(wanted: Wanted, writing: Writing, is_applied: bool) -> None:
    """Bring tables that an earlier version of async-task made to the version that this one needs.

    Writes one more revision into your Alembic tree, or with --apply changes the database.
    """
    if is_applied:
        _upgrade_now(wanted, is_dry=writing.is_dry)
        return
    model, tree = find_model(wanted), writing.tree()
    installed = tree.installed()
    if installed is None:
        raise Refusal("this tree has no revision of async-task's: `async-task install` writes it", CONFIGURATION)
    if installed[1] == SCHEMA_VERSION:
        say(f"Already at version {SCHEMA_VERSION}, in revision {installed[0]}; nothing was written.")
        return
    _write(tree, _step_from(installed[1], model), writing, model)


def _apply(wanted: Wanted, other: str | None, *, is_dry: bool) -> None:
    if other is not None:
        raise Refusal("--apply makes the tables of the application's model: name them there", USAGE)
    with contextlib.closing(find_app(wanted)) as app:
        if is_dry:
            _print_sql(app, installing(tables_of(app.model), table_of(app.model)))
        else:
            app.create_schema()
            say(f"The tables of async-task are in {app.address}.")


def _upgrade_now(wanted: Wanted, *, is_dry: bool) -> None:
    with contextlib.closing(find_app(wanted)) as app:
        refuse_missing_file(app)
        found = app.schema_version()
        if found is None:
            raise Refusal("the database has no tables of async-task: `async-task install` makes them", CONFIGURATION)
        if found == SCHEMA_VERSION:
            say(f"Already at version {SCHEMA_VERSION}; nothing was changed.")
        elif is_dry:
            _print_sql(app, _step_from(found, app.model))
        else:
            _carry_out(app, _step_from(found, app.model))


def _carry_out(app: AsyncTask, body: Body) -> None:
    app.read(lambda session: carry_out(body, session.connection()))
    say(f"The tables in {app.address} are of version {body.version} now.")


def _print_sql(app: AsyncTask, body: Body) -> None:
    click.echo(as_sql(body, make_url(app.address).get_backend_name()), nl=False)


def _step_from(version: int, model: type[BaseAttempt]) -> Body:
    if version > SCHEMA_VERSION:
        words = f"the tables are of version {version}, and this library knows {SCHEMA_VERSION}: upgrade the library"
        raise Refusal(words, CONFIGURATION)
    return upgrading(table_of(model), version)


def _model(wanted: Wanted, table: str | None, schema: str | None) -> type[BaseAttempt]:
    """The application's, or one that is like the ready-made one but for its names."""
    if table is None and schema is None:
        return find_model(wanted)

    class Base(DeclarativeBase): ...

    names = {"__tablename__": table or "async_task_attempts", "__table_args__": {"schema": schema}}
    return type("Attempt", (BaseAttempt, Base), names)


def _write(tree: Tree, body: Body, writing: Writing, model: type[BaseAttempt]) -> None:
    if writing.is_dry:
        click.echo(tree.text_of(body, writing.place), nl=False)
    else:
        click.echo(brief(tree.write(body, writing.place)))
        _say_next(tree, model, "heads" if writing.place.branch else "head")


def _say_next(tree: Tree, model: type[BaseAttempt], head: str) -> None:
    if not _is_seen(tree, model):
        say(f"So that autogenerate leaves these tables alone, let {brief(tree.env)} say:\n")
        say("\n".join(f"    {line}" for line in _target_metadata(model)) + "\n")
    say(f"Then `alembic upgrade {head}` makes the tables, and `async-task check` looks at it all.")


def _is_seen(tree: Tree, model: type[BaseAttempt]) -> bool:
    try:
        return not unseen(tree, tables_of(model))
    except Unknown:
        return False


def _target_metadata(model: type[BaseAttempt]) -> list[str]:
    """The lines of env.py that show these tables to autogenerate."""
    if table_of(model).metadata is metadata:
        return [
            "from async_task import metadata as async_task_metadata",
            "target_metadata = [Base.metadata, async_task_metadata]",
        ]
    return [f"from {model.__module__} import {model.__name__}", f"target_metadata = {model.__name__}.metadata"]


def brief(path: Path) -> Path:
    """As one would write it from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
