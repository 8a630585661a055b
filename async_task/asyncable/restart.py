"""Rows of one class that a person processes again from the beginning, each in a transaction of its own."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Engine, Uuid, inspect, select
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import name_of
from async_task.asyncable.columns import columns_of, own_rows
from async_task.asyncable.verbs import conditions
from async_task.attempts.chain import key_from
from async_task.database.index_order import order_after_nulls
from async_task.database.transactions import retry_transient
from async_task.errors import AsyncTaskError, ConfigurationError, UnknownTarget, near
from async_task.queue.backlog import MOST_COUNTED
from async_task.schema.jobs import key_text


@dataclass(frozen=True, slots=True)
class RestartReport:
    """`restarted`: the keys of the rows that are processed again, as text; of a dry run, that would be. `refused`: why
    others are not, by key. `left`: rows past the limit, of 10,000 that are looked at."""

    restarted: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    left: int = 0


def class_named(models: Sequence[type[Asyncable]], given: object) -> type[Asyncable]:
    """The class that is given, or that has this name. Raises UnknownTarget, ConfigurationError."""
    by_name = {name_of(one): one for one in models}
    if isinstance(given, str):
        if given in by_name:
            return by_name[given]
        raise UnknownTarget(f"no model that is its own job is called {given!r}{near(given, by_name)}")
    for one in models:
        if one is given:
            return one
    raise ConfigurationError("model is an Asyncable that this application's attempts process, or its name")


def restart_rows(
    engine: Engine, model: type[Asyncable], keys: Sequence[Any] | None, limit: int, reason: str, *, is_dry: bool
) -> RestartReport:
    """Restart these rows, or, without keys, those whose window is over, the oldest first. Rows that were never
    submitted are submitted."""
    wanted = _expired(engine, model) if keys is None else list(dict.fromkeys(key_meant(model, one) for one in keys))
    restarted, refused = list[str](), dict[str, str]()
    for key in wanted[:limit]:
        text = key_text(inspect(model).primary_key, key if isinstance(key, tuple) else (key,))
        why_not = retry_transient(partial(_restarted, engine, model, key, reason, is_dry=is_dry))
        if why_not is None:
            restarted.append(text)
        else:
            refused[text] = why_not
    return RestartReport(tuple(restarted), refused, max(0, len(wanted) - limit))


def _restarted(engine: Engine, model: type[Asyncable], key: Any, reason: str, *, is_dry: bool) -> str | None:
    """None if that is done, else why not."""
    with Session(engine) as session, session.begin() as transaction:
        row = session.get(model, key)
        if row is None or type(row) is not model:
            return f"there is no {model.__name__} with this key"
        try:
            if row.is_submitted:
                row.restart(session, reason=reason)
            else:
                row.submit_for_processing(session)
        except AsyncTaskError as error:
            transaction.rollback()
            return str(error)
        if is_dry:
            transaction.rollback()
        return None


def _expired(engine: Engine, model: type[Asyncable]) -> list[Any]:
    c = columns_of(model)
    oldest_first = order_after_nulls(c["processed_at"], c["canceled_at"], c["last_submitted_at"])
    wanted = own_rows(model, select(*inspect(model).primary_key).where(conditions(model).expired_without_processing()))
    with engine.begin() as connection:
        found = connection.execute(wanted.order_by(oldest_first).limit(MOST_COUNTED)).all()
    return [key_from(row) for row in found]


def key_meant(model: type[Asyncable], given: Any) -> Any:
    """The primary key that is given, or that a text says as `key_text` writes it: values of several columns with a
    comma between them. Raises ConfigurationError."""
    columns = inspect(model).primary_key
    if not isinstance(given, str):
        return given
    parts = [given] if len(columns) == 1 else list(_parts(columns, given))
    try:
        return key_from([_value(column, part) for column, part in zip(columns, parts, strict=True)])
    except ValueError:
        names = ", ".join(column.name for column in columns)
        raise ConfigurationError(f"{given!r} is no key of {model.__name__}: it has the columns {names}") from None


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
