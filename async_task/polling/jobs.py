"""Operations as values, each with its attempt, and why one does not go on."""

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task.attempts.chain import with_key
from async_task.attempts.info import AttemptInfo
from async_task.attempts.messages import user_of
from async_task.database.clock import statement_now
from async_task.error_text import sanitized
from async_task.polling.chain import chain_of, name_of
from async_task.polling.pollable import Pollable
from async_task.polling.settings import Polling
from async_task.polling.states import TERMINAL, PollState
from async_task.reading.explanation import Reason, command, explained
from async_task.reading.jobs import JobExplanation, JobInfo
from async_task.reading.row_keys import key_in_full
from async_task.schema.states import Status
from async_task.schema.tables import table_of


class _Read(NamedTuple):
    row: Pollable
    job: JobInfo


def read_job(session: Session, model: type[Pollable], key: Any) -> JobInfo | None:
    """The operation with this key; None if there is none."""
    found = _read(session, model, key)
    return None if found is None else found.job


def explain_job(session: Session, model: type[Pollable], key: Any) -> JobExplanation | None:
    """Why the operation with this key does not go on; None if there is none."""
    found = _read(session, model, key)
    if found is None:
        return None
    attempt, attempts = found.job.attempt, table_of(model.polling.model)
    blocks = () if attempt is None else explained(session, attempts, attempt).reasons
    return JobExplanation(found.job, tuple(reasons_of(found.row, found.job, blocks)))


def reasons_of(row: Pollable, job: JobInfo, blocks: Sequence[Reason]) -> Iterator[Reason]:
    """`blocks`: the reasons of its attempt; none without one."""
    if row.status in TERMINAL and row.handler_dispatched_at is not None:
        yield Reason("processed", f"it is {row.status}, and its handler has returned")
        return
    if row.status == PollState.PENDING and row.submitted_at is None:
        yield Reason("not_submitted", "it was never submitted")
        return
    if _is_too_old(row, job):
        words = f"it is past its maximal age of {row.polling.max_age}: its next check is the last one"
        yield Reason("window_over", words)
    if job.attempt is None or job.attempt.status is not Status.PENDING:
        yield _no_attempt(row, job)
    yield from (one for one in blocks if one.kind != "ended")


def _is_too_old(row: Pollable, job: JobInfo) -> bool:
    if row.status in TERMINAL or row.submitted_at is None:
        return False
    return job.read_at - row.submitted_at > row.polling.max_age


def _no_attempt(row: Pollable, job: JobInfo) -> Reason:
    lost = "it has no attempt" if job.attempt is None else f"its attempt has ended as {job.attempt.status.value}"
    polling: Polling = row.polling
    late_at = None if row.next_poll_at is None else row.next_poll_at + polling.grace
    until = late_at if row.status not in TERMINAL and late_at is not None and late_at > job.read_at else None
    when = "the next sweep resumes it" if until is None else "a sweep resumes it when it is late"
    return Reason("no_attempt", f"{lost}: {when}", command("sweep"), until)


def _read(session: Session, model: type[Pollable], key: Any) -> _Read | None:
    wanted: Any = with_key(model, select(model, statement_now()), key)
    found: Any = session.execute(wanted).unique().first()
    if found is None or type(found[0]) is not model:  # the rows of a subclass have a job of their own
        return None
    row, read_at = found
    attempt = chain_of(model).last_attempts(session, [key], read_at).get(key)
    return _Read(row, _job(row, key_in_full(model, key), attempt, read_at))


def _job(row: Pollable, key: str, attempt: AttemptInfo | None, read_at: dt.datetime) -> JobInfo:
    model = type(row)
    return JobInfo(
        model=name_of(model), job_type=table_of(model).name, key=key, state=str(row.status),
        submitted_at=row.submitted_at, last_submitted_at=row.submitted_at,
        attempted_at=None if attempt is None else attempt.attempted_at, processed_at=row.handler_dispatched_at,
        canceled_at=row.ended_at if row.status == PollState.CANCELED else None,
        error=row.failure_reason or _error_of(attempt), user=user_of(row), attempt=attempt,
        verbs=_refusals(row, f"{model.__name__} {key}"), read_at=read_at,
    )  # fmt: skip


def _error_of(attempt: AttemptInfo | None) -> str | None:
    return None if attempt is None or attempt.error is None else sanitized(attempt.error)


def _refusals(row: Pollable, name: str) -> dict[str, str | None]:
    is_new = row.status == PollState.PENDING and row.submitted_at is None
    return {
        "submit": None if is_new else f"submit: {name} was submitted before, and is {row.status}",
        "fail": f"fail: {name} is {row.status}" if row.status in TERMINAL else None,
    }
