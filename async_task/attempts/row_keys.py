"""Keys of rows that are jobs, as people type them."""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Uuid, inspect

from async_task.attempts.chain import key_from
from async_task.errors import InvalidArguments


def key_meant(model: type[Any], given: Any) -> Any:
    """The primary key that is given, or that a text says as `key_text` writes it: values of several columns with a
    comma between them. Raises InvalidArguments."""
    columns = inspect(model).primary_key
    if not isinstance(given, str):
        return given
    parts = [given] if len(columns) == 1 else list(_parts(columns, given))
    try:
        return key_from([_value(column, part) for column, part in zip(columns, parts, strict=True)])
    except ValueError:
        names = ", ".join(column.name for column in columns)
        raise InvalidArguments(f"{given!r} is no key of {model.__name__}: it has the columns {names}") from None


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


def _value(column: Any, text: str) -> Any:
    kind = column.type.python_type
    return uuid.UUID(text) if kind is uuid.UUID else kind(text)
