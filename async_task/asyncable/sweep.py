"""The sweep of models that are their own jobs: it sees that each row that requires processing has one attempt, which is
due. It processes none: that is left to the attempt, so that sweeps only add what is missing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, inspect
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import chain_of, dispatch, name_of
from async_task.asyncable.columns import columns_of
from async_task.asyncable.registration import registered_asyncables
from async_task.asyncable.verbs import conditions
from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.chain import key_from
from async_task.database.clock import instant_in
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.queue.backlog import MOST_COUNTED
from async_task.schema.tables import table_of

logger = logging.getLogger("async_task")
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
    name, rows = name_of(model), _required(engine, model, max(limit, MOST_COUNTED))
    waiting = chain_of(model).without_attempt(engine, rows, due=True)
    chosen = waiting[:limit]
    left = len(waiting) - len(chosen)
    if is_dry:
        return ModelReport(name, len(chosen), len(rows) - len(waiting), left)
    dispatched, errors = 0, list[str]()
    for key in chosen:
        try:
            dispatched += _dispatched(engine, model, key, rows[key])
        except Exception as error:
            summary = describe(error).summary
            logger.warning("%s %s could not be given an attempt: %s", name, key, summary)
            errors.append(f"{key}: {summary}")
    is_open = len(rows) - left - dispatched - len(errors)
    return ModelReport(name, dispatched, is_open, left, tuple(errors[:MOST_ERRORS]))


def _dispatched(engine: Engine, model: type[Asyncable], key: Any, submitted_at: Any) -> bool:
    """In a transaction of its own: a row that cannot be helped blocks no other. Whether it still requires processing is
    asked again there."""
    with Session(engine) as session, session.begin():
        until, condition = submitted_at + model.processing.window, conditions(model).requires_processing()
        return dispatch(session, model, key, until, condition)


def _required(engine: Engine, model: type[Asyncable], limit: int) -> dict[Any, Any]:
    """When the rows that require processing were last submitted, by key, the oldest first."""
    with engine.begin() as connection:
        found = connection.execute(required(model).limit(limit)).all()
    return {key_from(identity): submitted_at for submitted_at, *identity in found}


def required(model: type[Asyncable]) -> Any:
    """The statement of the sweep: of the class itself, because the rows of a subclass have its own job."""
    mapper: Any = inspect(model)
    submitted_at = instant_in(columns_of(model)["last_submitted_at"])
    wanted: Any = model.requires_processing().with_only_columns(submitted_at, *mapper.primary_key)
    if mapper.polymorphic_on is None or mapper.polymorphic_identity is None:
        return wanted
    return wanted.where(mapper.polymorphic_on == mapper.polymorphic_identity)
