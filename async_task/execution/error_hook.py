"""The user's `handle_perform_error`: called after a try that raised, in the transaction that writes the outcome.

1. The outcome is written, and not committed: nobody can claim the attempt before the hook has returned.
2. The hook runs in a SAVEPOINT. What it raises is logged, its own writes are undone, and the outcome stays.
3. What it chose by `fail`, `expire` or `cancel` is the outcome. One COMMIT ends both.
"""

import datetime as dt
import inspect
import logging
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import inspect as mapper_of
from sqlalchemy.orm import Session

from async_task.attempts.actions import deciding
from async_task.attempts.attempt import BaseAttempt
from async_task.database.lanes import lend_lane
from async_task.database.sessions import is_async_session
from async_task.execution.in_flight import FinishedCall
from async_task.execution.prepared_call import ExecutionContext
from async_task.outcomes import Canceled, Expired, Failed, Outcome, Retried
from async_task.schema.states import Status

logger = logging.getLogger("async_task")


class HookNotUndone(Exception):
    """The hook has ended the transaction, or the server or the network did: the outcome is written again without it."""


def is_hooked(context: ExecutionContext, finished: FinishedCall) -> bool:
    """Whether the hook is to be called for this call."""
    return finished.decision.error is not None and _has_hook(context.model)


def call_hook(context: ExecutionContext, connection: Connection, finished: FinishedCall) -> FinishedCall:
    """Call the hook in the transaction of `connection`, in which the outcome was written. Returns the call with the
    outcome that the hook has chosen. Raises HookNotUndone."""
    before = connection.get_transaction()
    savepoint = connection.begin_nested()
    try:
        chosen = _chosen(context, connection, finished)
        savepoint.commit()
    except BaseException as error:
        summary = finished.call.describe(error).summary
        logger.error("handle_perform_error of attempt %s raised %s", finished.claim.id, summary)
        try:
            savepoint.rollback()
        except Exception as problem:  # MySQL's deadlock has rolled back everything
            raise HookNotUndone from problem
        if connection.invalidated or before is None or connection.get_transaction() is not before:
            raise HookNotUndone from error
        return finished
    return finished if chosen is None else finished._replace(chosen=chosen)


def _has_hook(model: type[BaseAttempt]) -> bool:
    mapper: Any = mapper_of(model)
    mapped = [one.class_ for one in mapper.base_mapper.self_and_descendants]
    return any(cls.handle_perform_error is not BaseAttempt.handle_perform_error for cls in mapped)


def _chosen(context: ExecutionContext, connection: Connection, finished: FinishedCall) -> Outcome | None:
    """The outcome that the hook has chosen; None if it left the attempt as it was."""
    made, own = _session_on(context, connection)
    try:
        with own.begin(), deciding(own, finished.claim.id):
            attempt = own.get(context.model, finished.claim.id)
            if attempt is None:
                return None
            before = (attempt.status, attempt.last_error)
            _run(context, attempt, finished.decision.error)
            own.flush()
            is_unchanged = (attempt.status, attempt.last_error) == before
            return None if is_unchanged else _outcome_of(attempt, is_new=attempt.status is not before[0])
    finally:
        own.close()
        del made  # an AsyncSession must live as long as its Session


def _session_on(context: ExecutionContext, connection: Connection) -> tuple[Any, Session]:
    """A session of the user's own class in the transaction of `connection`, and the Session behind it."""
    cls = context.source.session_class
    made = cls(**context.source.session_options, join_transaction_mode="create_savepoint")
    own: Any = made.sync_session if is_async_session(cls) else made
    own.get_bind = lambda *_, **__: connection
    lend_lane(own, context.lane)
    return made, own


def _run(context: ExecutionContext, attempt: BaseAttempt, error: BaseException | None) -> None:
    assert error is not None
    hook: Any = attempt.handle_perform_error
    answer = hook(error)
    if inspect.isawaitable(answer):
        context.lane.run_in_place(_awaited(answer))
    elif answer is not None:
        logger.warning(
            "handle_perform_error of attempt %s returned a %s, which is ignored: call self.fail(), self.expire() or "
            "self.cancel() instead", attempt.id, type(answer).__name__,
        )  # fmt: skip


async def _awaited(answer: Any) -> None:
    await answer


def _outcome_of(attempt: BaseAttempt, *, is_new: bool) -> Outcome | None:
    """The outcome that the row has; None if it stays as it was. `is_new`: its status was changed."""
    reason = attempt.last_error or ""
    match attempt.status:
        case Status.FAILED:
            return Failed(attempt.id, reason)
        case Status.EXPIRED:
            return Expired(attempt.id, reason)
        case Status.CANCELED:
            return Canceled(attempt.id)
        case _:  # pending again, by retry_now
            return Retried(attempt.id, dt.timedelta(0), attempt.last_error) if is_new else None
