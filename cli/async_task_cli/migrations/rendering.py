"""Tables as the text of Alembic operations, rendered by Alembic itself."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal

from alembic.autogenerate import render_python_code
from alembic.operations import ops
from sqlalchemy import Column, Index, Table, Uuid, text
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.sql.elements import ClauseElement

from async_task.schema.columns import HiddenText, Instant

DIALECTS = {"postgresql_where": postgresql.dialect, "sqlite_where": sqlite.dialect}


def creating(table: Table) -> tuple[str, set[str]]:
    """The operations that create this table and its indexes, and the import lines that they need."""
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    imports: set[str] = set()
    return _rendered([ops.CreateTableOp.from_table(table), *map(_creating_index, indexes)], imports), imports


def adding(table: Table, columns: Sequence[Column[Any]], indexes: Sequence[Index]) -> tuple[str, set[str]]:
    """The operations that add these columns and indexes to a table, and the import lines that they need."""
    imports: set[str] = set()
    added = [ops.AddColumnOp(table.name, column, schema=table.schema) for column in columns]
    return _rendered([*added, *map(_creating_index, indexes)], imports), imports


def removing(table: Table, columns: Sequence[Column[Any]], indexes: Sequence[Index]) -> str:
    """The operations that drop them again."""
    name, schema = quoted(table.name), schema_of(table)
    undone = [f"op.drop_index({quoted(str(one.name))}, table_name={name}{schema})" for one in indexes]
    undone += [f"op.drop_column({name}, {quoted(one.name)}{schema})" for one in reversed(columns)]
    return "\n".join(undone)


def dropping(table: Table) -> str:
    """The operation that drops this table and its indexes."""
    return f"op.drop_table({quoted(table.name)}{schema_of(table)})"


def quoted(value: str | None) -> str:
    """A Python string literal in double quotes, or None."""
    return "None" if value is None else json.dumps(value, ensure_ascii=False)


def quoted_all(values: Iterable[str]) -> str:
    """A Python list of such literals."""
    return f"[{', '.join(quoted(one) for one in values)}]"


def schema_of(table: Table) -> str:
    """The argument that names its schema; empty without one."""
    return "" if table.schema is None else f", schema={quoted(table.schema)}"


def _rendered(operations: list[Any], imports: set[str]) -> str:
    spelled = partial(_spelled, imports)
    shown = render_python_code(ops.UpgradeOps(operations), render_item=spelled)
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    return "\n".join(_in_order([line for line in lines if not line.startswith("# ###")]))


def _in_order(lines: list[str]) -> Iterator[str]:
    """Indent what is inside a table, and sort its constraints, which Alembic renders in no fixed order."""
    for is_constraint, group in groupby(lines, key=lambda line: re.match(r"sa\.\w+Constraint\(", line) is not None):
        for line in sorted(group) if is_constraint else group:
            yield f"    {line.removesuffix(',')}," if line.startswith("sa.") else line


def _creating_index(index: Index) -> ops.CreateIndexOp:
    operation = ops.CreateIndexOp.from_index(index)
    for option, dialect in DIALECTS.items():
        if isinstance(condition := operation.kw.get(option), ClauseElement):
            # Each in the form of its database: SQLite uses the index only for a query with the very same text.
            compiled = condition.compile(
                dialect=dialect(), compile_kwargs={"literal_binds": True, "include_table": False}
            )
            operation.kw[option] = text(str(compiled))
    return operation


def _spelled(imports: set[str], kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """How a column's type is written: ours by the names that a revision begins with, others as Alembic does."""
    if kind != "type":
        return False
    if ours := _of_ours(item):
        return ours
    module = type(item).__module__
    if not module.startswith("sqlalchemy."):
        imports.add(f"import {module}")
    return False


def _of_ours(item: Any) -> str | None:
    variant = item._variant_mapping.get("mysql")
    if isinstance(item, Instant):
        return "instant"
    if isinstance(item, Uuid) and isinstance(variant, Uuid):
        return "identifier"
    if isinstance(item, HiddenText) or isinstance(variant, mysql.LONGTEXT):
        return "text"
    return f"name({item.length})" if isinstance(variant, mysql.VARCHAR) else None
