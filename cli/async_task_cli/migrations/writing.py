"""How a command writes a revision: its options, the file, and what the user does next."""

import ast
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from async_task import BaseAttempt, metadata
from async_task_cli.faults import CONFIGURATION, Refusal
from async_task_cli.migrations.body import Body
from async_task_cli.migrations.schema import table_of
from async_task_cli.migrations.tree import Place, Tree, find_tree
from async_task_cli.terminal import say

NO_TREE = (
    "there is no Alembic tree here, neither alembic.ini nor [tool.alembic] in pyproject.toml: begin one with "
    "`alembic init migrations`, make the tables at once with --apply, or print them with `async-task sql`"
)

OURS = "async_task_metadata"
"""The name that env.py gives our metadata."""


@dataclass(frozen=True, slots=True)
class Writing:
    """How to write a revision: into the tree of which configuration, at which place, or only printed (`is_dry`)."""

    config: Path | None
    place: Place
    is_dry: bool

    def tree(self) -> Tree:
        """Raises Refusal if there is none."""
        found = find_tree(self.config)
        if found is None:
            raise Refusal(NO_TREE, CONFIGURATION)
        return found

    def write(self, tree: Tree, body: Body, target_metadata: Sequence[str]) -> None:
        """Write it, and print the next steps. `target_metadata`: the lines that env.py needs, if any."""
        if self.is_dry:
            click.echo(tree.text_of(body, self.place), nl=False)
            return
        click.echo(brief(tree.write(body, self.place)))
        if target_metadata:
            say(f"So that autogenerate leaves these tables alone, let {brief(tree.env)} say:\n")
            say("\n".join(f"    {line}" for line in target_metadata) + "\n")
        head = "heads" if self.place.branch or self.place.head else "head"
        say(f"Then `{tree.tool.upgrade} {head}` changes the database, and `async-task check` looks at it all.")


def writing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where a revision goes. The command is called with `writing=`."""

    @click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE", help="Alembic's configuration.")
    @click.option("--head", metavar="REVISION", help="Add it after this head, if there are several.")
    @click.option("--branch", is_flag=True, help="Add it as a branch of its own, labelled async_task.")
    @click.option(
        "--version-path", type=click.Path(path_type=Path), metavar="PATH", help="Write it into this version folder."
    )
    @click.option("--engine", metavar="NAME", help="The engine of a multidb tree that it is for.")
    @click.option("--dry-run", "is_dry", is_flag=True, help="Print the revision and write nothing.")
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


def metadata_lines(model: type[BaseAttempt], tree: Tree) -> list[str]:
    """The lines of env.py that show this model's tables to autogenerate, beside the metadata that it has already. None
    if it names ours by the name that these lines give it."""
    if OURS in _shown(tree):
        return []
    if (lines := tree.tool.lines) is not None:
        # Its env.py gives the metadata of the framework's base, which a model of the user's own is mapped on.
        return [*lines] if table_of(model).metadata is metadata else []
    if table_of(model).metadata is not metadata:
        return metadata_lines_of(model.__module__, model.__name__, tree)
    return [f"from async_task import metadata as {OURS}", f"target_metadata = {_with_ours(tree)}"]


def _with_ours(tree: Tree) -> str:
    shown = _shown(tree)
    if tree.has_several_databases:
        return '{..., "NAME OF THE ENGINE": async_task_metadata}'
    if shown == "None":
        return "[async_task_metadata]  # and that of your own tables"
    return f"[*{shown}, async_task_metadata]" if shown.startswith(("[", "(")) else f"[{shown}, async_task_metadata]"


def _shown(tree: Tree) -> str:
    """What env.py gives as its target_metadata, on one line."""
    text = tree.env.read_text(encoding="utf-8") if tree.env.is_file() else ""
    try:
        lines = ast.parse(text).body
    except SyntaxError:
        return "None"
    given = [
        one.value for one in lines if isinstance(one, ast.Assign) and "target_metadata" in map(ast.unparse, one.targets)
    ]
    return ast.unparse(given[0]) if given else "None"


def metadata_lines_of(module: str, name: str, tree: Tree) -> list[str]:
    """The same, for a model that need not exist yet."""
    shown, mine = _shown(tree), f"{name}.metadata"
    if tree.has_several_databases:
        mine = f'{{..., "NAME OF THE ENGINE": {mine}}}'
    elif shown not in ("None", mine):
        # A set: Alembic refuses the same metadata twice, and that of the model may be there already.
        listed = f"*{shown}" if shown.startswith(("[", "(")) else shown
        mine = f"[*{{{listed}, {mine}}}]"
    return [f"from {module} import {name}", f"target_metadata = {mine}"]


def brief(path: Path) -> Path:
    """The path relative to the working directory, if it is below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
