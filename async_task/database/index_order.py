"""The order of rows as each database finds it along an index."""

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class order_after_nulls(FunctionElement[Any]):
    """The order of the last of these columns, for rows in which the others are null: along an index of them all.

    PostgreSQL does not see that a column that IS NULL needs no order, and would sort. MariaDB would sort if they were
    named.
    """

    name = "order_after_nulls"
    inherit_cache = True


@compiles(order_after_nulls)
def _ordered_by_last(element: order_after_nulls, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process([*element.clauses][-1], **kw)


@compiles(order_after_nulls, "postgresql")
def _ordered_by_all(element: order_after_nulls, compiler: SQLCompiler, **kw: Any) -> str:
    return ", ".join(compiler.process(column, **kw) for column in element.clauses)
