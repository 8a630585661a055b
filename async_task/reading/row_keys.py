"""Keys of rows that are jobs, as people and programs give them."""

import ast
import datetime as dt
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Uuid, inspect

from async_task.attempts.chain import key_from
from async_task.errors import InvalidArguments
from async_task.schema.jobs import whole_key_text

LARGEST = 2**63
"""No database has a whole number of that size as a key."""


def key_meant(model: type[Any], given: Any) -> Any:
    """The primary key that is given, or that a text says as `key_in_full` writes it: values of several columns with a
    comma between them. Raises InvalidArguments."""
    columns = inspect(model).primary_key
    try:
        values = _values(columns, given)
        if len(values) != len(columns) or any(map(_is_no_value, values)):
            raise ValueError
    except (ValueError, ArithmeticError):
        names = ", ".join(column.name for column in columns)
        raise InvalidArguments(f"{given!r} is no key of {model.__name__}: it has the columns {names}") from None
    return key_from(values)


def key_in_full(model: type[Any], key: Any) -> str:
    """The key as text, however long it is; in events, a long one is hashed."""
    return whole_key_text(inspect(model).primary_key, key if isinstance(key, tuple) else (key,))


def _values(columns: Sequence[Any], given: Any) -> list[Any]:
    if isinstance(given, str):
        texts = [given] if len(columns) == 1 else _parts(columns, given)
        return [_value(column, text) for column, text in zip(columns, texts, strict=True)]
    return list(given) if isinstance(given, Sequence) and not isinstance(given, bytes) else [given]


def _is_no_value(value: Any) -> bool:
    if isinstance(value, (Decimal, float)):
        return not math.isfinite(value)
    return value is None or (isinstance(value, int) and not -LARGEST <= value < LARGEST)


def _parts(columns: Sequence[Any], text: str) -> Sequence[str]:
    parts, left = list[str](), text
    for column in columns:
        if isinstance(column.type, Uuid):
            part, left = left[:32], left[32:]
        else:
            part, left = _until_comma(left)
        parts.append(part)
    return [*parts, left] if left else parts


def _until_comma(text: str) -> tuple[str, str]:
    """The text up to a comma that is not escaped, and what follows that."""
    part, place = "", 0
    while place < len(text) and text[place] != ",":
        place += text[place] == "\\"
        part += text[place : place + 1]
        place += 1
    return part, text[place + 1 :]


def _bytes(text: str) -> bytes:
    """What `str` has made of bytes."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError from None
    if not isinstance(value, bytes):
        raise ValueError
    return value


READ: Mapping[type[Any], Callable[[str], Any]] = {
    str: str, int: int, uuid.UUID: uuid.UUID, dt.date: dt.date.fromisoformat, dt.datetime: dt.datetime.fromisoformat,
    Decimal: Decimal, float: float, bytes: _bytes,
}  # fmt: skip
"""How a text is read as a value of a column. Of other kinds, such as booleans, the value itself is to be given."""


def _value(column: Any, text: str) -> Any:
    try:
        read = READ[column.type.python_type]
    except (KeyError, NotImplementedError):
        raise ValueError from None
    return read(text)
