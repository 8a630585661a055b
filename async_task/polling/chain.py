"""The chain of polls of one operation."""

from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.chain import Chain, can_hurry, says, target_name
from async_task.errors import InvalidState
from async_task.polling.settings import Polling
from async_task.schema.states import Status

METHOD = "poll"


def name_of(model: type[Any]) -> str:
    """The name of the target that polls the operations of this class. Raises ConfigurationError."""
    return target_name(model, model.polling.name, "polling = Polling(name=...)")


def chain_of(model: type[Any]) -> Chain:
    """The polls of the operations of this class."""
    polling: Polling = model.polling
    return Chain(name_of(model), METHOD, polling.model, polling.queue, polling.priority)


def continue_chain(
    session: Session, model: type[Any], key: Any, *, at_once: bool = False, only_if: ColumnElement[bool] | None = None
) -> bool:
    """See that an attempt polls this operation, in the transaction of `session`. Returns whether that took a change.

    `at_once`: if it waits, it is due now. `only_if`: no attempt is added or opened unless the row still says this.
    """
    chain = chain_of(model)
    link = chain.last_link(session, key)
    if link.attempt is not None and link.attempt.status is Status.PENDING:
        is_hurried = at_once and can_hurry(session, link.attempt)
        return is_hurried and _retry(session, link.attempt, "the operation that it polls is to be ended")
    # After the attempt was read: if that has ended by the last step, then the row says so too.
    if only_if is not None and not says(session, model, key, only_if):
        return False
    if link.attempt is not None:
        return _retry(session, link.attempt, "the operation that it polls has not ended")
    chain.begin(session, link, key)
    return True


def _retry(session: Session, attempt: BaseAttempt, reason: str) -> bool:
    try:
        attempt.retry_now(session, reason=reason)
    except InvalidState:  # a worker or another sweep was first, and the operation is looked at
        return False
    return True
