"""Rows of an `Asyncable` as values, each with its attempt: one row, or those of a page at once."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task.asyncable.asyncable import Asyncable
from async_task.asyncable.chain import chain_of, name_of
from async_task.asyncable.job_reasons import reasons_of
from async_task.asyncable.job_rows import JobRow, columns_of_rows, read_rows
from async_task.asyncable.states import refusals, state_of
from async_task.attempts.chain import key_of, with_key, with_keys
from async_task.attempts.explanation import explained
from async_task.attempts.info import AttemptInfo
from async_task.attempts.jobs import JobExplanation, JobInfo
from async_task.attempts.messages import user_of
from async_task.attempts.row_keys import key_in_full
from async_task.schema.tables import table_of


def read_job(session: Session, model: type[Asyncable], key: Any) -> JobInfo | None:
    """The row with this key; None if there is none."""
    row = _row(session, model, key)
    return None if row is None else jobs_of(session, model, [row])[0]


def explain_job(session: Session, model: type[Asyncable], key: Any) -> JobExplanation | None:
    """What keeps the row with this key from being processed; None if there is none."""
    row = _row(session, model, key)
    if row is None:
        return None
    (job,) = jobs_of(session, model, [row])
    attempts = table_of(model.processing.model)
    blocks = () if job.attempt is None else explained(session, attempts, job.attempt).reasons
    return JobExplanation(job, tuple(reasons_of(job, row.said, model.processing, blocks)))


def jobs_of(session: Session, model: type[Asyncable], rows: Sequence[JobRow]) -> list[JobInfo]:
    """These rows as values, in a number of statements that does not depend on theirs, unless the user's own class
    executes some."""
    if not rows:
        return []
    keys = [row.key for row in rows]
    attempts = attempts_of(session, model, keys, rows[0].read_at)
    objects = objects_of(session, model, keys)
    return [_job(model, row, attempts.get(row.key), objects.get(row.key)) for row in rows]


def attempts_of(
    session: Session, model: type[Asyncable], keys: Collection[Any], read_at: dt.datetime
) -> Mapping[Any, AttemptInfo]:
    return chain_of(model).last_attempts(session, keys, read_at)


def objects_of(session: Session, model: type[Asyncable], keys: Collection[Any]) -> Mapping[Any, Any]:
    """The objects of these rows, by key."""
    found = session.scalars(with_keys(model, select(model), keys)).unique()
    return {key_of(one): one for one in found}


def _row(session: Session, model: type[Asyncable], key: Any) -> JobRow | None:
    return next(iter(read_rows(session, model, with_key(model, columns_of_rows(model), key))), None)


def _job(model: type[Asyncable], row: JobRow, attempt: AttemptInfo | None, found: Any) -> JobInfo:
    said, key = row.said, key_in_full(model, row.key)
    return JobInfo(
        model=name_of(model), job_type=table_of(model).name, key=key,
        state=state_of(said, is_performing=attempt is not None and attempt.is_performing),
        submitted_at=said.submitted_at.value, last_submitted_at=said.last_submitted_at.value,
        attempted_at=said.attempted_at.value, processed_at=said.processed_at.value,
        canceled_at=said.canceled_at.value, error=row.error, user=None if found is None else user_of(found),
        attempt=attempt, verbs=refusals(said, f"{model.__name__} {key}", row.read_at), read_at=row.read_at,
    )  # fmt: skip
