"""The chain of polls of one operation: one attempt, found by a token that only depends on the operation.

An attempt that has ended although the operation goes on is opened again. One that has succeeded cannot be: then a
second one follows, whose token names the first. So whoever continues a chain, and how often, finds the same attempt.
"""

import datetime as dt
import hashlib
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, inspect, select
from sqlalchemy.orm import Session

from async_task.attempts.attempt import BaseAttempt
from async_task.database.clock import statement_now
from async_task.errors import InvalidState
from async_task.polling.settings import Polling
from async_task.schema.states import Status

METHOD = "poll"
LONGEST_TOKEN = 200
MOST_FOLLOWERS = 1_000


def key_of(row: Any) -> Any:
    """The primary key of a row; a tuple where it has several columns."""
    identity = inspect(type(row)).primary_key_from_instance(row)
    return identity[0] if len(identity) == 1 else tuple(identity)


def token_of(key: Any) -> str:
    """The token of the first attempt of the operation with this key."""
    text = repr(key) if isinstance(key, tuple) else str(key)
    is_short = 0 < len(text) <= LONGEST_TOKEN and text.isprintable()
    return text if is_short else hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def name_of(model: type[Any]) -> str:
    """The name of the target that polls the operations of this class."""
    polling: Polling = model.polling
    return polling.name or f"{model.__module__}:{model.__qualname__}"


class Link(NamedTuple):
    """Where a chain goes on. `token`: of its last attempt, which is there as `attempt`, or is to be created."""

    token: str
    attempt: BaseAttempt | None


def last_link(session: Session, model: type[Any], key: Any) -> Link:
    """Where the chain of this operation goes on. Reads only."""
    token = first = token_of(key)
    for _ in range(MOST_FOLLOWERS):
        before = _attempt(session, model, token)
        is_spent = before is not None and (before.status is Status.SUCCEEDED or before.is_pruned)
        if before is None or not is_spent:
            return Link(token, before)
        token = f"{first}+{before.id}"
    raise RuntimeError(f"{name_of(model)} {first}: {MOST_FOLLOWERS} attempts have polled it; prune some")


def can_hurry(session: Session, attempt: BaseAttempt) -> bool:
    """Whether a pending attempt waits, and is not due yet."""
    now: dt.datetime = session.execute(select(statement_now())).scalar_one()
    return not attempt.is_performing and attempt.due_at > now


def continue_chain(
    session: Session, model: type[Any], key: Any, *, at_once: bool = False, only_if: ColumnElement[bool] | None = None
) -> bool:
    """See that an attempt polls this operation, in the transaction of `session`. Returns whether that took a change.

    `at_once`: if it waits, it is due now. `only_if`: no attempt is added or opened unless the row still says this.
    """
    link = last_link(session, model, key)
    if link.attempt is not None and link.attempt.status is Status.PENDING:
        is_hurried = at_once and can_hurry(session, link.attempt)
        return is_hurried and _retry(session, link.attempt, "the operation that it polls is to be ended")
    # After the attempt was read: if that has ended by the last step, then the row says so too.
    if only_if is not None and not _says(session, model, key, only_if):
        return False
    if link.attempt is not None:
        return _retry(session, link.attempt, "the operation that it polls has not ended")
    polling: Polling = model.polling
    polling.model.ensure(
        session, target=name_of(model), method_name=METHOD, method_args={"key": key}, idempotence_token=link.token,
        queue=polling.queue, priority=polling.priority,
    )  # fmt: skip
    return True


def _says(session: Session, model: type[Any], key: Any, condition: ColumnElement[bool]) -> bool:
    """Whether the condition holds for the row now."""
    columns = inspect(model).primary_key
    mine = (column == value for column, value in zip(columns, key if len(columns) > 1 else (key,), strict=True))
    return session.execute(select(*columns).select_from(model).where(*mine, condition)).first() is not None


def _attempt(session: Session, model: type[Any], token: str) -> BaseAttempt | None:
    attempts: Any = model.polling.model
    mine = (attempts.target == name_of(model), attempts.method_name == METHOD, attempts.idempotence_token == token)
    found: BaseAttempt | None = session.scalars(select(attempts).where(*mine)).first()
    return found


def _retry(session: Session, attempt: BaseAttempt, reason: str) -> bool:
    try:
        attempt.retry_now(session, reason=reason)
    except InvalidState:  # a worker or another sweep was first, and the operation is looked at
        return False
    return True
