"""Jobs: the rows that events and notes belong to. A job is an attempt, or a row of a model that attempts perform.

An event names its job by `job_type`, the name of the job's table, and `job_id`, the text of its key. The text of a key
is made here in Python, and in SQL for relationships; both are the same.
"""

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, String, Table, Uuid, cast, func, inspect, literal
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper

from async_task.error_text import storable
from async_task.errors import InvalidArguments
from async_task.schema.tables import companion_tables, table_of

LONGEST_KEY = 64
"""Characters of `job_id`."""
HEX_GROUPS = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
"""Where the parts of a UUID begin among its 32 digits, and how long they are."""


class Job(NamedTuple):
    """What the events of a job are written with. `attempts`: the table of the attempts that perform it, or its own."""

    attempts: Table
    mapper: Mapper[Any]
    type: str
    id: str

    @property
    def events(self) -> Table:
        return companion_tables(self.attempts).events


def job_of(row: Any) -> Job:
    """The job that this mapped row is. Raises InvalidArguments for what is no job, or has no key yet."""
    model = type(row)
    attempts = attempts_of(model)
    state: Any
    mapper: Mapper[Any]
    state, mapper = inspect(row), inspect(model).base_mapper
    # The identity first: it is there after a commit too, when an AsyncSession must not load the key.
    values = state.identity or mapper.primary_key_from_instance(row)
    if any(value is None for value in values):
        raise InvalidArguments(f"this {model.__name__} has no key yet: flush it first")
    return Job(attempts, mapper, table_of(row).name, key_text(mapper.primary_key, values))


def attempts_of(model: type[Any]) -> Table:
    """The table of the attempts that perform the rows of this model, as its classmethod `__attempts_model__` names it;
    or its own, if it is a model of attempts. Raises InvalidArguments for other models."""
    named = getattr(model, "__attempts_model__", None)
    if named is not None:
        return table_of(named())
    try:
        table = table_of(model)
    except NoInspectionAvailable:
        raise _no_job(model) from None
    if "claim_id" not in table.c:
        raise _no_job(model)
    return table


def _no_job(model: type[Any]) -> InvalidArguments:
    return InvalidArguments(f"{model.__name__} is not a job: a job is an attempt, a Pollable or an Asyncable")


def key_text(columns: Sequence[Any], values: Sequence[Any]) -> str:
    """The key as text of up to LONGEST_KEY characters: a longer one is hashed."""
    return fitting(whole_key_text(columns, values))


def whole_key_text(columns: Sequence[Any], values: Sequence[Any]) -> str:
    """The key as text. A UUID has its hyphens; in a key of several columns it has none, so that two of them fit."""
    if len(columns) == 1:
        return str(_uuid(values[0])) if _is_uuid(columns[0]) else str(values[0])
    parts = []
    for column, value in zip(columns, values, strict=True):
        is_last = column is columns[-1]
        parts.append(_uuid(value).hex if _is_uuid(column) else _escaped(str(value)) + ("" if is_last else ","))
    return "".join(parts)


def key_in_sql(columns: Sequence[Any]) -> ColumnElement[str]:
    """The same of columns of integers, UUIDs and texts; not hashed, so that it equals no `job_id` if it is longer."""
    if len(columns) == 1:
        return _hyphened(columns[0]) if _is_uuid(columns[0]) else _text(columns[0])
    parts: list[Any] = []
    for column in columns:
        is_last = column is columns[-1]
        text: Any = _digits(column) if _is_uuid(column) else _escaped_in_sql(_text(column))
        parts.append(text if is_last or _is_uuid(column) else text + literal(","))
    return _joined(parts)


def fitting(text: str) -> str:
    """`text` as a `job_id`: hashed if it is too long."""
    if len(text) <= LONGEST_KEY and text == storable(text):
        return text
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _is_uuid(column: Any) -> bool:
    return isinstance(column.type, Uuid)


def _uuid(value: Any) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _escaped_in_sql(text: Any) -> Any:
    once = func.replace(text, "\\", "\\\\", type_=String())
    return func.replace(once, ",", "\\,", type_=String())


def _text(column: Any) -> Any:
    return column if isinstance(column.type, String) else cast(column, String())


def _digits(column: Any) -> Any:
    """The 32 digits of a UUID, however the database stores it."""
    return func.lower(func.replace(cast(column, String()), "-", "", type_=String()), type_=String())


def _hyphened(column: Any) -> ColumnElement[str]:
    digits = _digits(column)
    first, *others = (func.substr(digits, start, length, type_=String()) for start, length in HEX_GROUPS)
    return _joined([first, *(literal("-") + one for one in others)])


def _joined(parts: Sequence[Any]) -> ColumnElement[str]:
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + part
    return joined  # type: ignore[no-any-return]
