"""PostgreSQL's COPY through psycopg: values as its text format has them, a line for each row, many lines at a time."""

import datetime as dt
import itertools
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

LINES = 500
"""So many are sent at a time: the server reads them while the next ones are made."""
_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_lines(connection: Connection, table: Table, columns: Sequence[str], lines: Iterable[str]) -> None:
    """Write rows down, each a line of `fields` in the order of these columns. Raises what SQLAlchemy would."""
    import psycopg

    preparer = connection.dialect.identifier_preparer
    names = ", ".join(map(preparer.quote, columns))
    statement = f"COPY {preparer.format_table(table)} ({names}) FROM STDIN"
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for block in _blocks(lines):
                copy.write(block)
    except psycopg.Error as error:
        raise DBAPIError.instance(
            statement, None, error, psycopg.Error, hide_parameters=True, dialect=connection.dialect
        ) from None


def fields(values: Iterable[object]) -> str:
    """A part of a line: None, texts, truth, whole numbers, UUIDs and aware datetimes, with tabs between them."""
    return "\t".join(["\\N" if value is None else _TEXTS[type(value)](value) for value in values])


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    ahead = iter(lines)
    while block := "".join(itertools.islice(ahead, LINES)):
        yield block


def _text(value: str) -> str:
    return value.translate(_ESCAPED) if _SPECIAL.search(value) else value


class _Texts(dict[type, Callable[[Any], str]]):
    def __missing__(self, kind: type) -> Callable[[Any], str]:
        """That of its nearest class: an enum of texts is a text, and one of numbers a number."""
        for base in kind.__mro__:
            if base in self:
                return self[base]
        raise TypeError(f"COPY: a {kind.__name__} is none of what a line is made of")


_TEXTS = _Texts(
    {
        str: _text,
        bool: lambda value: "t" if value else "f",
        int: int.__repr__,
        uuid.UUID: lambda value: value.hex,
        dt.datetime: lambda value: value.astimezone(dt.UTC).isoformat(),
    }
)
