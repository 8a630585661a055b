"""The sweep of models that are their own jobs: it sees that each row that requires processing has one attempt, which is
due. It processes none: that is left to the attempt, so that sweeps only add what is missing.
"""

import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, inspect
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import chain_of, dispatch, name_of
from async_task.asyncable.columns import columns_of, own_rows
from async_task.asyncable.registration import registered_asyncables
from async_task.asyncable.verbs import conditions
from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.chain import PAGE, key_from, with_keys
from async_task.database.clock import instant_in
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.queue.backlog import MOST_COUNTED
from async_task.schema.tables import table_of

logger = logging.getLogger("async_task")
Rows = Mapping[Any, dt.datetime]
"""When rows were last submitted, by their keys."""
MOST_ERRORS = 10
"""Errors of one model that a report has."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a sweep did for the rows of one class that require processing.

    `dispatched`: were given an attempt, or theirs was opened again or made due. `open`: have one that is due or being
    performed. `left`: left to a later sweep, because of the limit; from 10,000 rows on, at least so many. `errors`: of
    rows that could not be helped, or of the whole class, as text.
    """

    model: str
    dispatched: int = 0
    open: int = 0
    left: int = 0
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """What a sweep did, class by class."""

    models: tuple[ModelReport, ...] = ()

    @property
    def dispatched(self) -> int:
        return sum(one.dispatched for one in self.models)

    @property
    def open(self) -> int:
        return sum(one.open for one in self.models)

    @property
    def left(self) -> int:
        return sum(one.left for one in self.models)

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(error for one in self.models for error in one.errors)


def asyncables_of(model: type[BaseAttempt]) -> list[type[Asyncable]]:
    """The classes whose rows are processed by attempts of this model's table."""
    return [one for one in registered_asyncables() if table_of(one.processing.model) is table_of(model)]


def process_models(
    engine: Engine, models: Sequence[type[Asyncable]], limit: int, *, is_dry: bool = False
) -> ProcessReport:
    """Sweep these classes, each up to `limit` rows. A class that cannot be swept stops no other."""
    return ProcessReport(tuple(_swept(engine, one, limit, is_dry=is_dry) for one in models))


def _swept(engine: Engine, model: type[Asyncable], limit: int, *, is_dry: bool) -> ModelReport:
    try:
        return retry_transient(lambda: _sweep(engine, model, limit, is_dry=is_dry))
    except Exception as error:
        logger.warning("%s could not be swept: %s", name_of(model), describe(error).summary)
        return ModelReport(name_of(model), errors=(describe(error).summary,))


def _sweep(engine: Engine, model: type[Asyncable], limit: int, *, is_dry: bool) -> ModelReport:
    name, chain, rows = name_of(model), chain_of(model), _required(engine, model, max(limit, MOST_COUNTED))
    waiting = chain.without_attempt(engine, rows, due=True)
    chosen = waiting[:limit]
    left = len(waiting) - len(chosen)
    if is_dry:
        return ModelReport(name, len(chosen), len(rows) - len(waiting), left)
    begun = set[Any]()
    for start in range(0, len(chosen), PAGE):
        begun |= _begun(engine, model, {key: rows[key] for key in chosen[start : start + PAGE]})
    others = chain.without_attempt(engine, [key for key in chosen if key not in begun], due=True)
    opened, errors = _opened(engine, model, {key: rows[key] for key in others})
    dispatched = len(begun) + opened
    return ModelReport(name, dispatched, len(rows) - left - dispatched - len(errors), left, errors[:MOST_ERRORS])


def _begun(engine: Engine, model: type[Asyncable], rows: Rows) -> set[Any]:
    """The keys of the rows of this page to which this has given their first attempt. None if that fails."""
    for _ in range(2):  # another sweep may be first
        try:
            with Session(engine) as session, session.begin():
                found = session.execute(with_keys(model, required(model), rows))
                still = [key_from(identity) for _, *identity in found]
                options = {key: {"expires_at": rows[key] + model.processing.window} for key in still}
                return set(chain_of(model).begin_all(session, still, options))
        except Exception as error:  # raised again for the row whose fault it is
            logger.debug("%s: a page is dispatched row by row: %s", name_of(model), describe(error).summary)
    return set()


def _opened(engine: Engine, model: type[Asyncable], rows: Rows) -> tuple[int, tuple[str, ...]]:
    """Give each of these rows its attempt, in a transaction of its own: one that cannot be helped blocks no other.
    Returns how many took a change, and the errors."""
    opened, errors = 0, list[str]()
    for key, submitted_at in rows.items():
        try:
            opened += _dispatched(engine, model, key, submitted_at)
        except Exception as error:
            summary = describe(error).summary
            logger.warning("%s %s could not be given an attempt: %s", name_of(model), key, summary)
            errors.append(f"{key}: {summary}")
    return opened, tuple(errors)


def _dispatched(engine: Engine, model: type[Asyncable], key: Any, submitted_at: dt.datetime) -> bool:
    """Whether the row still requires processing is asked again here."""
    with Session(engine) as session, session.begin():
        until, condition = submitted_at + model.processing.window, conditions(model).requires_processing()
        return dispatch(session, model, key, until, condition)


def _required(engine: Engine, model: type[Asyncable], limit: int) -> Rows:
    """When the rows that require processing were last submitted, by key, the oldest first."""
    with engine.begin() as connection:
        found = connection.execute(required(model).limit(limit)).all()
    return {key_from(identity): submitted_at for submitted_at, *identity in found}


def required(model: type[Asyncable]) -> Any:
    """The statement of the sweep."""
    submitted_at = instant_in(columns_of(model)["last_submitted_at"])
    return own_rows(model, model.requires_processing().with_only_columns(submitted_at, *inspect(model).primary_key))
