"""Rows of one class that a person processes again from the beginning, each in a transaction of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Engine, inspect, select
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.columns import columns_of, own_rows
from async_task.asyncable.verbs import SUBMIT, conditions
from async_task.attempts.chain import key_from
from async_task.database.driver_errors import is_unavailable
from async_task.database.index_order import order_after_nulls
from async_task.database.sessions import routed_as_writes
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.errors import AsyncTaskError
from async_task.queue.backlog import MOST_COUNTED
from async_task.reading.row_keys import key_in_full, key_meant
from async_task.schema.audit import record_verb
from async_task.schema.jobs import job_of


@dataclass(frozen=True, slots=True)
class RestartReport:
    """`restarted`: the keys of the rows that are processed again, as text; of a dry run, that would be. `refused`: why
    others are not, by key. `left`: rows past the limit, of 10,000 that are looked at."""

    restarted: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    left: int = 0


def restart_rows(
    engine: Engine, model: type[Asyncable], keys: Sequence[Any] | None, limit: int, reason: str, *, is_dry: bool
) -> RestartReport:
    """Restart these rows, or, without keys, those whose window is over, the oldest first. Rows that were never
    submitted are submitted."""
    wanted = _expired(engine, model) if keys is None else list(dict.fromkeys(key_meant(model, one) for one in keys))
    restarted, refused = list[str](), dict[str, str]()
    for key in wanted[:limit]:
        text = key_in_full(model, key)
        why_not = _why_not(engine, model, key, reason, is_dry=is_dry)
        if why_not is None:
            restarted.append(text)
        else:
            refused[text] = why_not
    return RestartReport(tuple(restarted), refused, max(0, len(wanted) - limit))


def _why_not(engine: Engine, model: type[Asyncable], key: Any, reason: str, *, is_dry: bool) -> str | None:
    """None for a row that is restarted. Whatever stops one row stops no other, unless the database is away."""
    try:
        return retry_transient(partial(_restarted, engine, model, key, reason, is_dry=is_dry))
    except Exception as error:
        if is_unavailable(error):
            raise
        return describe(error).summary


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
                _record_submission(session, row, reason)
        except AsyncTaskError as error:
            transaction.rollback()
            return str(error)
        if is_dry:
            transaction.rollback()
        return None


def _record_submission(session: Session, row: Asyncable, reason: str) -> None:
    """A program that submits a row writes no event; a person who does it says why."""
    job = job_of(row)
    before, after = {"status": "not_yet_submitted"}, {"status": "submitted"}
    with routed_as_writes(session, job.mapper) as connection:
        record_verb(connection, job.attempts, (job.type, job.id), SUBMIT, reason, before, after, always=("status",))


def _expired(engine: Engine, model: type[Asyncable]) -> list[Any]:
    c = columns_of(model)
    oldest_first = order_after_nulls(c["processed_at"], c["canceled_at"], c["last_submitted_at"])
    wanted = own_rows(model, select(*inspect(model).primary_key).where(conditions(model).expired_without_processing()))
    with engine.begin() as connection:
        found = connection.execute(wanted.order_by(oldest_first).limit(MOST_COUNTED)).all()
    return [key_from(row) for row in found]
