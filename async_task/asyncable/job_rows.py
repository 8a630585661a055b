"""Rows of a class as what their six columns say, by the database's clock; without loading their objects."""

import datetime as dt
from typing import Any, NamedTuple

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.columns import columns_of, own_rows
from async_task.asyncable.scopes import Known, Scopes, of_values
from async_task.attempts.chain import key_from
from async_task.database.clock import instant_in, statement_now
from async_task.error_text import sanitized


class JobRow(NamedTuple):
    """A row as it was at `read_at`."""

    key: Any
    said: Scopes[Known]
    read_at: dt.datetime

    @property
    def error(self) -> str | None:
        """The first word of its error alone."""
        text = self.said.error.value
        return None if text is None else sanitized(text)


def columns_of_rows(model: type[Asyncable]) -> Any:
    """The select of everything that `read_rows` needs, of the rows of this class."""
    columns = {name: one if name == "error" else instant_in(one) for name, one in columns_of(model).items()}
    labelled = (one.label(name) for name, one in columns.items())
    return own_rows(model, select(*inspect(model).primary_key, *labelled, statement_now().label("read_at")))


def read_rows(session: Session, model: type[Asyncable], wanted: Any) -> list[JobRow]:
    names, processing = list(columns_of(model)), model.processing
    rows: list[JobRow] = []
    for found in session.execute(wanted):
        *identity_and_values, read_at = found
        identity = identity_and_values[: -len(names)]
        values = dict(zip(names, identity_and_values[-len(names) :], strict=True))
        said = of_values(values, processing.interval, processing.window, read_at)
        rows.append(JobRow(key_from(identity), said, read_at))
    return rows
