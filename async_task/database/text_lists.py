"""A list of texts as a relation, however long it is: a part of the statement's text, which is planned once."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, Text, cast, func, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class _texts_in(FunctionElement[str]):
    name = "texts_in"
    inherit_cache = True


def text_list(texts: Sequence[str]) -> Any:
    """A relation with a row for each of the texts, in its column `value`. PostgreSQL and SQLite."""
    return _texts_in(literal(json.dumps(texts), Text(), literal_execute=True)).table_valued("value")


@compiles(_texts_in, "postgresql")
def _postgresql_texts(element: _texts_in, compiler: SQLCompiler, **kw: Any) -> str:
    (texts,) = element.clauses
    return compiler.process(func.json_array_elements_text(cast(texts, JSON())), **kw)


@compiles(_texts_in, "sqlite")
def _sqlite_texts(element: _texts_in, compiler: SQLCompiler, **kw: Any) -> str:
    (texts,) = element.clauses
    return compiler.process(func.json_each(texts), **kw)
