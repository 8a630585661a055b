"""What the env.py of an Alembic tree tells autogenerate to look at: it is run up to the point where it says so."""

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
    """env.py could not be run so far; the text says why."""


class _Said(BaseException):
    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata


def unseen(tree: Tree, tables: Sequence[Table]) -> list[str]:
    """The names of those tables that autogenerate would drop, since no target_metadata of env.py has them. What env.py
    does before it says so, it does: nothing as a rule, offline. Raises Unknown."""
    seen = {table for metadata in _metadata_of(tree) for table in metadata.tables}
    return [table.fullname for table in tables if table.fullname not in seen]


def _metadata_of(tree: Tree) -> list[MetaData]:
    if tree.has_several_databases:
        raise Unknown("a tree of several databases writes files when its env.py is run: it was not")
    try:
        with _quietly(), EnvironmentContext(tree.config, tree.scripts, as_sql=True) as environment:
            vars(environment)["configure"] = _listen  # what env.py calls, by way of alembic.context
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
    """env.py sets logging up for a program of its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
