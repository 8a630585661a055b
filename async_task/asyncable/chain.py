"""The attempts that process the rows of one class."""

import datetime as dt
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from async_task.asyncable.settings import Processing
from async_task.attempts import actions
from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.chain import MOST_FOLLOWERS, Chain, can_hurry, says, target_name
from async_task.errors import InvalidState
from async_task.schema.states import Status

METHOD = "process"
WHY = "the row requires processing"
"""The reason in the events of an attempt that a sweep opens or hurries."""


def name_of(model: type[Any]) -> str:
    """The name of the target that processes the rows of this class. Raises ConfigurationError."""
    return target_name(model, model.processing.name, "processing = Processing(name=...)")


def chain_of(model: type[Any]) -> Chain:
    """The attempts of the rows of this class."""
    processing: Processing = model.processing
    return Chain(name_of(model), METHOD, processing.model, processing.queue, processing.priority)


def enqueue(
    session: Session, model: type[Any], key: Any, *, at: dt.datetime | None, expires_at: dt.datetime, reason: str
) -> None:
    """See that one attempt processes this row, due `at` (None: now), with fresh counters, in the transaction of
    `session`. One that is being performed is left alone: before it ends it sees that the row has changed."""
    chain = chain_of(model)
    link = chain.last_link(session, key)
    for _ in range(MOST_FOLLOWERS):
        attempt = link.attempt
        if attempt is None:
            attempt = chain.begin(session, link, key, scheduled_at=at, expires_at=expires_at)
            if attempt.status is Status.PENDING and attempt.num_attempts == 0:
                return
        if _restarted(session, attempt, at, expires_at, reason):
            return
        # On MySQL the chain is longer by now than this transaction first read.
        if actions.status_now(attempt, session) is not Status.SUCCEEDED:
            return
        link = chain.link_after(key, attempt)


def _restarted(
    session: Session, attempt: BaseAttempt, at: dt.datetime | None, expires_at: dt.datetime, reason: str
) -> bool:
    try:
        actions.restart(attempt, session, at=at, expires_at=expires_at, reason=reason)
    except InvalidState:
        return False
    return True


def dispatch(
    session: Session, model: type[Any], key: Any, expires_at: dt.datetime, only_if: ColumnElement[bool]
) -> bool:
    """See that one attempt processes this row now, unless the row no longer says `only_if`. Returns whether that took
    a change."""
    chain = chain_of(model)
    link = chain.last_link(session, key)
    if not says(session, model, key, only_if):
        return False
    if link.attempt is None:
        chain.begin(session, link, key, expires_at=expires_at)
        return True
    if link.attempt.status is Status.PENDING:
        return can_hurry(session, link.attempt) and _hurried(session, link.attempt)
    return _restarted(session, link.attempt, None, expires_at, WHY)


def _hurried(session: Session, attempt: BaseAttempt) -> bool:
    """Unlike a restart this keeps its counters."""
    try:
        attempt.retry_now(session, reason=WHY)
    except InvalidState:  # a worker or another sweep was first
        return False
    return True


def give_up(session: Session, model: type[Any], key: Any, reason: str | None) -> None:
    """Cancel the attempt that waits for this row, if one does and is not being performed."""
    attempt = chain_of(model).last_link(session, key).attempt
    if attempt is None or attempt.status is not Status.PENDING:
        return
    try:
        attempt.cancel(session, reason=reason or "the row that it processes was canceled")
    except InvalidState:  # it is being performed: it finishes, and leaves the row canceled
        return
