"""Performs one claimed attempt, from its row to its outcome.

1. Prepare: find the target, decrypt and check the arguments. If something is missing, the attempt is parked, uncharged.
   If the arguments do not fit, that is an error of the call, as if its target had raised it.
2. Call: in the transaction of the outcome, with the row locked (locked mode), or with no transaction open (leased).
3. Settle: decide what becomes of the attempt, and write that together with the target's own writes, or with what the
   user's error hook decides and writes.
4. Follow up: release the next attempt of the order key.
"""

import datetime as dt
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.answers import Raised
from async_task.errors import AsyncTaskError, ClaimLost, UnknownMethod, UnknownTarget
from async_task.execution.call import run_call
from async_task.execution.follow_up import follow_up
from async_task.execution.in_flight import Settlement, finish
from async_task.execution.outcome_writer import write_alone
from async_task.execution.prepared_call import ExecutionContext, PreparedCall, Unfit, prepare
from async_task.execution.release import leave_to_others, park, park_lapsed, park_unlocked
from async_task.execution.row_transaction import Disconnected
from async_task.execution.settle import settle, settle_lost_claim
from async_task.execution.starts import NotStarted
from async_task.execution.transaction import CallTransaction
from async_task.outcomes import Outcome, Superseded
from async_task.queue.claim import Claim


class Tracking(Protocol):
    """Extends the lease of a claim while its call runs: the heartbeat of its process."""

    def __call__(self, attempt_id: uuid.UUID) -> AbstractContextManager[None]: ...


def tracked_elsewhere(attempt_id: uuid.UUID) -> AbstractContextManager[None]:
    """In a child process: its parent extends the lease."""
    return nullcontext()


def perform_claim(context: ExecutionContext, claim: Claim, tracking: Tracking) -> Outcome:
    """Perform a claimed attempt. Raises what the database raises when it stays away too long."""

    def perform() -> Outcome:
        call = prepare_or_settle(context, claim)
        return call if isinstance(call, Outcome) else perform_call(context, claim, call, tracking)

    return context.lane.run(perform)


def settle_interrupted(context: ExecutionContext, claim: Claim, error: BaseException, elapsed: dt.timedelta) -> Outcome:
    """Settle a call that ran in another process and was ended there, as if it had raised `error`."""

    def settle_in_lane() -> Outcome:
        call = prepare_or_settle(context, claim)
        if isinstance(call, Outcome):
            return call
        transaction = CallTransaction(context.lane, context.table, claim, call.limit, for_session=False)
        settlement = settle(context, claim, call, transaction, Raised(error), elapsed.total_seconds())
        return follow_up(context, claim, settlement)

    return context.lane.run(settle_in_lane)


def prepare_or_settle(context: ExecutionContext, claim: Claim) -> PreparedCall | Outcome:
    """The call of a claim. If something is missing for it, the attempt is parked; if the arguments do not fit, it is
    settled with that error. Inside of `lane.run`."""
    try:
        return prepare(context, claim)
    except (UnknownTarget, UnknownMethod) as error:
        return leave_to_others(context, claim, f"{type(error).__name__}: {error}")
    except Unfit as unfit:
        return follow_up(context, claim, write_alone(context, finish(claim, unfit.call, Raised(unfit.error), 0.0)))
    except AsyncTaskError as error:
        return park(context, claim, f"{type(error).__name__}: {error}", started=False)
    except Exception as error:
        # An encryptor that cannot be loaded: its text may quote the arguments.
        return park(context, claim, f"the call could not be prepared: {type(error).__name__}", started=False)


def perform_call(context: ExecutionContext, claim: Claim, call: PreparedCall, tracking: Tracking) -> Outcome:
    """Run a prepared call by itself, settle it, and follow up. Inside of `lane.run`."""
    with tracking(claim.id):
        settlement = _run_and_settle(context, claim, call)
    return follow_up(context, claim, settlement)


def _run_and_settle(context: ExecutionContext, claim: Claim, call: PreparedCall) -> Settlement:
    transaction = _transaction_of(context, claim, call)
    try:
        context.lane.transaction = transaction
        if call.is_locked and (settlement := _lock(context, claim, call, transaction)) is not None:
            return settlement
        began = time.monotonic()
        answer = run_call(context, claim, call, transaction)
        if transaction.is_disconnected or context.is_abandoned():
            return Settlement(Superseded(claim.id))
        return settle(context, claim, call, transaction, answer, time.monotonic() - began)
    except NotStarted:
        transaction.close()
        return Settlement(park_lapsed(context, claim))
    except Exception:
        transaction.session.undo()  # the traceback keeps it, and it would count as an open transaction of this thread
        raise
    finally:
        if not transaction.locks_next:
            context.lane.transaction = None
            transaction.close()


def _transaction_of(context: ExecutionContext, claim: Claim, call: PreparedCall) -> CallTransaction:
    """The one in which the row of this claim is locked already, or else a new one."""
    before = context.lane.transaction
    if isinstance(before, CallTransaction) and before.continue_with(claim):
        return before
    has_session, isolation = call.session_class is not None, context.isolation_of(call)
    return CallTransaction(context.lane, context.table, claim, call.limit, for_session=has_session, isolation=isolation)


def _lock(
    context: ExecutionContext, claim: Claim, call: PreparedCall, transaction: CallTransaction
) -> Settlement | None:
    """Lock the row. If that fails, settle the attempt without a call."""
    try:
        transaction.open()
        if transaction.is_disconnected:  # its row was locked before, and it was abandoned since
            raise Disconnected
        return None
    except ClaimLost:
        transaction.close()
        return settle_lost_claim(context, claim, call)
    except (DBAPIError, PoolTimeout, Disconnected) as problem:
        transaction.close()
        if transaction.is_disconnected:
            return Settlement(Superseded(claim.id))
        return Settlement(park_unlocked(context, claim, problem))
