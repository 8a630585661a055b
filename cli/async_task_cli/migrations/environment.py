"""Which metadata the env.py of an Alembic tree gives to autogenerate. env.py is run up to where it configures it."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from alembic.runtime.environment import EnvironmentContext
from sqlalchemy import MetaData, Table

from async_task_cli.faults import first_line
from async_task_cli.migrations.tree import Tree


class Unknown(Exception):
    """env.py could not be run up to that point; the text says why."""


class _Said(BaseException):
    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata


def unseen(tree: Tree, tables: Sequence[Table]) -> list[str]:
    """The names of the tables that no target_metadata of env.py has, so that autogenerate would drop them. env.py runs
    offline up to `context.configure`, with whatever it does before that. Raises Unknown."""
    seen = {table for metadata in _metadata_of(tree) for table in metadata.tables}
    return [table.fullname for table in tables if table.fullname not in seen]


def _metadata_of(tree: Tree) -> list[MetaData]:
    # `check` alone runs env.py, and `install` never does. Alembic's template for several databases opens files for
    # writing before it configures anything, so that one is not run at all.
    if tree.has_several_databases:
        raise Unknown("a tree of several databases writes files when its env.py is run: it was not")
    for name in tree.tool.settings:  # None: those of the default database
        vars(tree.config).setdefault(name, None)
    try:
        with _quietly(), EnvironmentContext(tree.config, tree.scripts, as_sql=True) as environment:
            vars(environment)["configure"] = _listen  # env.py calls it as alembic.context.configure
            tree.scripts.run_env()
    except _Said as said:
        given = said.metadata
        return list(given) if isinstance(given, (list, tuple)) else [given] if given is not None else []
    except (Exception, SystemExit) as error:
        raise Unknown(f"{tree.env} could not be run: {type(error).__name__}: {first_line(str(error))}") from error
    raise Unknown(f"{tree.env} configures no context when it is run offline")


def _listen(*_: Any, target_metadata: Any = None, **__: Any) -> None:
    raise _Said(target_metadata)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Undo the logging set-up of env.py, and keep its output away from standard output."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
