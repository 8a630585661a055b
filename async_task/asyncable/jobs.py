"""Rows of an `Asyncable` as values, each with its attempt: one row, or those of a page at once."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import chain_of, name_of
from async_task.asyncable.job_reasons import reasons_of
from async_task.asyncable.job_rows import JobRow, columns_of_rows, read_rows
from async_task.asyncable.states import STATES, refusals, state_of
from async_task.attempts.chain import key_of, with_key, with_keys
from async_task.attempts.info import AttemptInfo
from async_task.attempts.messages import user_of
from async_task.reading.explanation import explained
from async_task.reading.jobs import JobExplanation, JobInfo
from async_task.reading.row_keys import key_in_full
from async_task.schema.tables import table_of


def read_job(session: Session, model: type[Asyncable], key: Any) -> JobInfo | None:
    """The row with this key; None if there is none."""
    row = _row(session, model, key)
    return None if row is None else jobs_of(session, model, [row])[row.key]


def explain_job(session: Session, model: type[Asyncable], key: Any) -> JobExplanation | None:
    """What keeps the row with this key from being processed; None if there is none."""
    row = _row(session, model, key)
    if row is None:
        return None
    job, attempts = jobs_of(session, model, [row])[row.key], table_of(model.processing.model)
    blocks = () if job.attempt is None else explained(session, attempts, job.attempt).reasons
    return JobExplanation(job, tuple(reasons_of(job, row.said, model.processing, blocks)))


def jobs_of(
    session: Session, model: type[Asyncable], rows: Sequence[JobRow], states: Collection[str] = STATES
) -> dict[Any, JobInfo]:
    """Those of these rows that are in one of `states`, by key. The number of statements does not depend on that of the
    rows, unless the user's own class executes some."""
    if not rows:
        return {}
    attempts = chain_of(model).last_attempts(session, [row.key for row in rows], rows[0].read_at)
    by_key = {row.key: row for row in rows if _state(row, attempts.get(row.key)) in states}
    objects = _objects(session, model, by_key)
    return {key: _job(model, row, attempts.get(key), objects.get(key)) for key, row in by_key.items()}


def _state(row: JobRow, attempt: AttemptInfo | None) -> str:
    return state_of(row.said, is_performing=attempt is not None and attempt.is_performing)


def _objects(session: Session, model: type[Asyncable], keys: Collection[Any]) -> Mapping[Any, Any]:
    found = session.scalars(with_keys(model, select(model), keys)).unique() if keys else ()
    return {key_of(one): one for one in found}


def _row(session: Session, model: type[Asyncable], key: Any) -> JobRow | None:
    return next(iter(read_rows(session, model, with_key(model, columns_of_rows(model), key))), None)


def _job(model: type[Asyncable], row: JobRow, attempt: AttemptInfo | None, found: Any) -> JobInfo:
    said, key = row.said, key_in_full(model, row.key)
    return JobInfo(
        model=name_of(model), job_type=table_of(model).name, key=key,
        state=_state(row, attempt),
        submitted_at=said.submitted_at.value, last_submitted_at=said.last_submitted_at.value,
        attempted_at=said.attempted_at.value, processed_at=said.processed_at.value,
        canceled_at=said.canceled_at.value, error=row.error, user=None if found is None else user_of(found),
        attempt=attempt, verbs=refusals(said, f"{model.__name__} {key}", row.read_at), read_at=row.read_at,
    )  # fmt: skip
