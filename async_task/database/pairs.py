"""Two texts of a row compared as one, with a list of pairs.

Not `tuple_`: SQLAlchemy 2.0 cannot send a list of tuples to SQLite or MySQL if the statement names it twice.
"""

from typing import Any

from sqlalchemy import String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

SEPARATOR = "\x1f"
"""Between the texts of a pair; no name holds it."""


def joined(pair: tuple[str, str]) -> str:
    """The text of a pair, as `paired` makes it of two columns."""
    return SEPARATOR.join(pair)


class paired(FunctionElement[str]):
    """Two columns, or expressions, as one text."""

    type = String()
    inherit_cache = True


@compiles(paired)
def _concatenated(element: paired, compiler: SQLCompiler, **kw: Any) -> str:
    first, second = (compiler.process(one, **kw) for one in element.clauses)
    return f"({first} || '{SEPARATOR}' || {second})"


@compiles(paired, "mysql", "mariadb")
def _as_bytes(element: paired, compiler: SQLCompiler, **kw: Any) -> str:
    # As bytes, because columns whose collations differ cannot be one text.
    first, second = (compiler.process(one, **kw) for one in element.clauses)
    return f"concat(cast({first} as binary), '{SEPARATOR}', cast({second} as binary))"
