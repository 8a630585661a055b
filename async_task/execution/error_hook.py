"""What hears of a try that raised, in the transaction that writes the outcome: a target that records errors in rows of
its own (`ErrorRecorder`), and then the user's `handle_perform_error`.

1. The outcome is written, and not committed: nobody can claim the attempt before the hook has returned.
2. Each runs in a SAVEPOINT. What it raises is logged, its own writes are undone, and the outcome stays.
3. What the hook chose by `fail`, `expire` or `cancel` is the outcome. One COMMIT ends all.
"""

import datetime as dt
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy import inspect as mapper_of
from sqlalchemy.orm import Session

from async_task.attempts.actions import deciding
from async_task.attempts.attempt import BaseAttempt
from async_task.database.clock import statement_now
from async_task.database.lanes import lend_lane
from async_task.database.sessions import is_async_session
from async_task.execution.in_flight import FinishedCall
from async_task.execution.prepared_call import ExecutionContext
from async_task.outcomes import Canceled, Expired, Failed, Outcome, Retried
from async_task.schema.states import Status, restarting
from async_task.targets.context import ErrorRecorder

logger = logging.getLogger("async_task")
HOOK = "handle_perform_error"


class HookNotUndone(Exception):
    """The hook has ended the transaction, or the server or the network did: the outcome is written again without it."""


def is_hooked(context: ExecutionContext, finished: FinishedCall) -> bool:
    """Whether anything is to be called for this call."""
    if finished.decision.error is None:
        return False
    return _has_hook(context.model) or _recorder(finished) is not None


def call_hook(context: ExecutionContext, connection: Connection, finished: FinishedCall) -> FinishedCall:
    """Call them in the transaction of `connection`, in which the outcome was written. Returns the call with the outcome
    that was chosen. Raises HookNotUndone."""
    recorder = _recorder(finished)
    if recorder is not None:
        record = partial(_recorded, context, connection, finished, recorder)
        finished = _in_savepoint(connection, finished, "record_error", record)
    if _has_hook(context.model):
        finished = _in_savepoint(connection, finished, HOOK, partial(_chosen, context, connection, finished))
    return finished


def _in_savepoint(
    connection: Connection, finished: FinishedCall, name: str, call: Callable[[], Outcome | None]
) -> FinishedCall:
    before = connection.get_transaction()
    savepoint = connection.begin_nested()
    try:
        chosen = call()
        savepoint.commit()
    except BaseException as error:
        summary = finished.call.describe(error).summary
        logger.error("%s of attempt %s raised %s", name, finished.claim.id, summary)
        try:
            savepoint.rollback()
        except Exception as problem:  # MySQL's deadlock has rolled back everything
            raise HookNotUndone from problem
        if connection.invalidated or before is None or connection.get_transaction() is not before:
            raise HookNotUndone from error
        return finished
    return finished if chosen is None else finished._replace(chosen=chosen)


def _recorder(finished: FinishedCall) -> ErrorRecorder | None:
    thing = finished.call.method.target.thing
    return thing if isinstance(thing, ErrorRecorder) else None


def _recorded(
    context: ExecutionContext, connection: Connection, finished: FinishedCall, recorder: ErrorRecorder
) -> Outcome | None:
    """Record the error. Returns the outcome if another try is wanted at once."""
    error, failure, table = finished.decision.error, finished.failure, context.table
    assert error is not None
    assert failure is not None
    restarted = recorder.record_error(connection, context.lane, finished.call.arguments, error, failure.summary)
    if restarted is None:
        return None
    values = restarting(table, None, restarted.expires_at)
    connection.execute(update(table).ordered_values(*values.items()).where(table.c.id == finished.claim.id))
    return Retried(finished.claim.id, dt.timedelta(0), failure.summary)


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
            before = _state_of(attempt)
            _run(context, attempt, finished.decision.error)
            own.flush()
            return None if _state_of(attempt) == before else _outcome_of(own, attempt, was_due_at=before[2])
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


def _state_of(attempt: BaseAttempt) -> tuple[Status, str | None, dt.datetime]:
    return attempt.status, attempt.last_error, attempt.due_at


def _outcome_of(session: Session, attempt: BaseAttempt, *, was_due_at: dt.datetime) -> Outcome | None:
    """The outcome that the row has; None if it is due as it was."""
    reason = attempt.last_error or ""
    match attempt.status:
        case Status.FAILED:
            return Failed(attempt.id, reason)
        case Status.EXPIRED:
            return Expired(attempt.id, reason)
        case Status.CANCELED:
            return Canceled(attempt.id)
        case _:  # by retry_now or reschedule
            if attempt.due_at == was_due_at:
                return None
            now: dt.datetime = session.execute(select(statement_now())).scalar_one()
            return Retried(attempt.id, max(dt.timedelta(0), attempt.due_at - now), attempt.last_error)
