"""How long a stored text is, asked without reading it."""

from typing import Any

from sqlalchemy import Integer
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class octet_length(FunctionElement[int]):
    """How many bytes a text has; on SQLite, how many characters."""

    type = Integer()
    inherit_cache = True


@compiles(octet_length)
def _octet_length(element: octet_length, compiler: SQLCompiler, **kw: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **kw)})"


@compiles(octet_length, "sqlite")
def _length(element: octet_length, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite has octet_length since 3.43.
    return f"length({compiler.process(element.clauses, **kw)})"
