"""Performing one claimed attempt, from its row to its outcome.

1. Prepare: find the target, decrypt and check the arguments. What is missing here parks the attempt, uncharged.
2. Call: under the row's lock, in the transaction of the outcome (locked); or with no transaction open (leased).
3. Settle: decide what becomes of it, and write that down, fenced, together with the target's own writes.
4. Tell the user's `handle_perform_error` of an error, in a transaction of its own.
5. Let the next attempt of its order key go, if it is at rest.
"""

import datetime as dt
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.attempts.attempt import BaseAttempt
from async_task.database.lanes import Raised
from async_task.error_text import describe
from async_task.errors import AsyncTaskError, ClaimLost
from async_task.execution.call import ExecutionContext, PreparedCall, make, prepare
from async_task.execution.settle import Settled, after_lost_claim, park, release_next, settle
from async_task.execution.transaction import CallTransaction, Disconnected
from async_task.outcomes import Canceled, Expired, Failed, Outcome, Superseded
from async_task.queue.claim import Claim
from async_task.schema.states import Status

logger = logging.getLogger("async_task")


Settling = Callable[[ExecutionContext, Claim, PreparedCall], Settled]


class Holding(Protocol):
    """What keeps a claim alive while its call is made: the beat of its process."""

    def __call__(self, attempt_id: uuid.UUID) -> AbstractContextManager[None]: ...


def held_elsewhere(attempt_id: uuid.UUID) -> AbstractContextManager[None]:
    """For a process whose claims another one keeps alive."""
    return nullcontext()


def perform(context: ExecutionContext, claim: Claim, holding: Holding) -> Outcome:
    """Perform a claimed attempt to its outcome. Raises what the database raises when it stays away too long."""
    return context.lane.run(partial(_perform, context, claim, holding))


def perform_ended(context: ExecutionContext, claim: Claim, error: BaseException, elapsed: dt.timedelta) -> Outcome:
    """What becomes of a call that was made elsewhere, and ended from outside: as if it had raised `error`."""
    ended = partial(_settle_ended, error, elapsed)
    return context.lane.run(partial(_perform, context, claim, held_elsewhere, ended))


def _perform(context: ExecutionContext, claim: Claim, holding: Holding, settled_by: Settling | None = None) -> Outcome:
    call = prepared(context, claim)
    return call if isinstance(call, Outcome) else perform_prepared(context, claim, call, holding, settled_by)


def prepared(context: ExecutionContext, claim: Claim) -> PreparedCall | Outcome:
    """The call of a claim; or, where something for it is missing, its outcome: it is parked. Inside of `lane.run`."""
    try:
        return prepare(context, claim)
    except AsyncTaskError as error:
        return park(context, claim, f"{type(error).__name__}: {error}", started=False)
    except Exception as error:
        # An encryptor that cannot be loaded, a validator that breaks: what they say may quote what they were given.
        return park(context, claim, f"the call could not be prepared: {type(error).__name__}", started=False)


def perform_prepared(
    context: ExecutionContext, claim: Claim, call: PreparedCall, holding: Holding, settled_by: Settling | None = None
) -> Outcome:
    """Make the call and bring it to its outcome. Inside of `lane.run`."""
    with holding(claim.id):
        settled = (settled_by or _call_and_settle)(context, claim, call)
    return followed(context, claim, call, settled)


def followed(context: ExecutionContext, claim: Claim, call: PreparedCall, settled: Settled) -> Outcome:
    """The outcome, when what follows it is done: the user's `handle_perform_error` is told of an error, and the next
    attempt of the same key may go."""
    outcome = _told(context, claim, call, settled)
    release_next(context, claim, outcome)
    return outcome


def _told(context: ExecutionContext, claim: Claim, call: PreparedCall, settled: Settled) -> Outcome:
    if settled.error is None:
        return settled.outcome
    logger.info("attempt %s: try %d raised %s", claim.id, claim.number, type(settled.error).__qualname__)
    return _after_hook(context, claim, call, settled) or settled.outcome


def _call_and_settle(context: ExecutionContext, claim: Claim, call: PreparedCall) -> Settled:
    transaction = CallTransaction(
        context.lane, context.table, claim, call.limit, for_session=call.session_class is not None
    )
    try:
        context.lane.transaction = transaction
        if call.is_locked and (problem := _lock(transaction)) is not None:
            return _unlocked(context, claim, transaction, problem)
        began = time.monotonic()
        answer = make(context, claim, call, transaction)
        if transaction.is_disconnected:
            return Settled(Superseded(claim.id))
        return settle(context, claim, call, transaction, answer, dt.timedelta(seconds=time.monotonic() - began))
    except ClaimLost:
        transaction.close()
        return after_lost_claim(context, claim, call)
    finally:
        context.lane.transaction = None
        transaction.close()


def _settle_ended(
    error: BaseException, elapsed: dt.timedelta, context: ExecutionContext, claim: Claim, call: PreparedCall
) -> Settled:
    transaction = CallTransaction(context.lane, context.table, claim, call.limit, for_session=False)
    try:
        return settle(context, claim, call, transaction, Raised(error), elapsed)
    except ClaimLost:
        return after_lost_claim(context, claim, call)


def _lock(transaction: CallTransaction) -> Exception | None:
    try:
        transaction.open()
    except (DBAPIError, PoolTimeout, Disconnected) as problem:
        transaction.close()
        return problem
    return None


def _unlocked(context: ExecutionContext, claim: Claim, transaction: CallTransaction, problem: Exception) -> Settled:
    if transaction.is_disconnected:
        return Settled(Superseded(claim.id))
    return Settled(park(context, claim, f"its row could not be locked: {describe(problem).summary}", started=False))


def _after_hook(context: ExecutionContext, claim: Claim, call: PreparedCall, settled: Settled) -> Outcome | None:
    """Run the user's `handle_perform_error`; the outcome that it led to, None when it changed nothing."""
    if not _overrides_hook(context.model) or settled.error is None:
        return None
    try:
        with context.source.session(context.engine) as session, session.begin():
            attempt = session.get(context.model, claim.id)
            if attempt is None:
                return None
            before = attempt.status
            attempt.handle_perform_error(settled.error)
            session.flush()
            after, reason = attempt.status, attempt.last_error or ""
    except BaseException as error:
        logger.error("handle_perform_error of attempt %s raised %s", claim.id, describe(error, call.secrets).summary)
        return None
    ended = {
        Status.FAILED: Failed(claim.id, reason),
        Status.EXPIRED: Expired(claim.id, reason),
        Status.CANCELED: Canceled(claim.id),
    }
    return ended.get(after) if after is not before else None


def _overrides_hook(model: type[BaseAttempt]) -> bool:
    mapper: Any = inspect(model)
    mapped = [one.class_ for one in mapper.base_mapper.self_and_descendants]
    return any(cls.handle_perform_error is not BaseAttempt.handle_perform_error for cls in mapped)
