"""Settles a call: its answer becomes a committed outcome, fenced by its claim, together with the target's own writes.

1. The target's writes are kept if it returned, and undone if it raised or the database refuses them.
2. What becomes of the attempt is decided.
3. The outcome is written and committed. If that fails, nothing is guessed: the row is read again.
"""

import logging

from sqlalchemy.exc import IntegrityError

from async_task.database.answers import Raised
from async_task.database.transactions import LONG_PATIENCE, retry_transient
from async_task.errors import ClaimLost, InvalidState
from async_task.execution.faults import MAX_LOSSES, Fault, classify, fault_summary, repeated_loss_error
from async_task.execution.in_flight import FinishedCall, Settlement, finish
from async_task.execution.outcome_writer import (
    own_or,
    read_back,
    write_alone,
    write_in,
    write_outside,
    write_unless_written,
)
from async_task.execution.prepared_call import ExecutionContext, PreparedCall
from async_task.execution.release import park
from async_task.execution.transaction import CallTransaction, CommittedInside
from async_task.outcomes import Decision, Superseded
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import NotReleased
from async_task.schema.audit import last_start
from async_task.schema.states import Status

logger = logging.getLogger("async_task")


def settle(
    context: ExecutionContext,
    claim: Claim,
    call: PreparedCall,
    transaction: CallTransaction,
    answer: object,
    seconds: float,
) -> Settlement:
    """Settle a call that took `seconds`: in its transaction, or in a new one if that is closed.

    `answer`: what the target returned, or `Raised`.
    """
    try:
        answer = transaction.keep_or_undo(answer)
        if transaction.is_claim_lost:
            raise ClaimLost("its claim was lost before it wrote anything")
        return _settle_answer(context, claim, call, transaction, answer, seconds)
    except ClaimLost:
        transaction.close()
        return settle_lost_claim(context, claim, call)


def settle_fault(
    context: ExecutionContext, claim: Claim, call: PreparedCall, fault: Fault, seconds: float
) -> Settlement:
    """Park an attempt that the infrastructure failed. But charge it if it loses its connection again and again: then
    the call itself most likely ends it."""
    reason = fault_summary(fault.error, call)
    # Only losses are counted: a bound for all faults would charge every call while a server is read-only for an hour.
    if fault.is_loss and _num_losses(context, claim, reason) >= MAX_LOSSES:
        raised = Raised(repeated_loss_error(fault.error))
        return write_alone(context, finish(claim, call, raised, seconds))
    return Settlement(park(context, claim, reason, started=True))


def settle_lost_claim(context: ExecutionContext, claim: Claim, call: PreparedCall) -> Settlement:
    """Superseded if another worker has changed the row. If the target itself changed it, that is rolled back by now,
    and the attempt fails."""
    row = retry_transient(lambda: fenced_writes.read_state(context.engine, context.table, claim.id), LONG_PATIENCE)
    if row is None or row.claim_id != claim.claim_id:
        return Settlement(Superseded(claim.id))
    error = InvalidState("the target changed the row of its own attempt: let it return, raise or Discard instead")
    return write_alone(context, FinishedCall(claim, call, _failed("changed_itself", error)))


def _settle_answer(
    context: ExecutionContext,
    claim: Claim,
    call: PreparedCall,
    transaction: CallTransaction,
    answer: object,
    seconds: float,
) -> Settlement:
    if isinstance(answer, Raised) and isinstance(answer.error, CommittedInside):
        return write_alone(context, FinishedCall(claim, call, _failed("committed_inside", answer.error)))
    answer = classify(call, transaction, answer)
    if isinstance(answer, Fault):
        transaction.close()
        return settle_fault(context, claim, call, answer, seconds)
    try:
        finished, problem = _commit(context, transaction, finish(claim, call, answer, seconds))
    except NotReleased as unkept:
        undone = transaction.undo(Raised(unkept.error))
        return _settle_answer(context, claim, call, transaction, undone, seconds)
    if problem is None:
        return finished.settlement
    return _settle_unanswered(context, transaction, finished, problem, seconds)


def _failed(reason: str, error: BaseException) -> Decision:
    return Decision(Status.FAILED, reason, charged=True, error=error)


def _commit(
    context: ExecutionContext, transaction: CallTransaction, finished: FinishedCall
) -> tuple[FinishedCall, Exception | None]:
    """Write and commit the outcome. Returns the call with the outcome that the error hook has chosen, and an error
    after which nobody knows whether it was committed.

    Then the transaction is closed, unless it has become that of the next claim. Raises ClaimLost if another worker has
    the claim, and NotReleased.
    """
    try:
        if transaction.is_open:
            finished = write_in(transaction, context, finished, commits=True)
            transaction.commit()
        else:
            finished = write_outside(context, finished)
    except (ClaimLost, NotReleased):
        raise
    except Exception as problem:
        if not transaction.is_past_limit:  # then its limit has ended it, and its error says so
            summary = finished.call.describe(problem).summary
            logger.warning("the outcome of attempt %s was not written at once: %s", finished.claim.id, summary)
        # Unless a row was refused, the call may have left the connection in another schema or role.
        transaction.close(is_reusable=isinstance(problem, IntegrityError))
        return finished, problem
    if not transaction.locks_next:
        # Before anything else is done: the next transaction may need this pool's last connection.
        transaction.close()
    return finished, None


def _settle_unanswered(
    context: ExecutionContext,
    transaction: CallTransaction,
    finished: FinishedCall,
    problem: Exception,
    seconds: float,
) -> Settlement:
    """A failed COMMIT, or a lost connection, proves nothing: read the row again."""
    claim, call = finished.claim, finished.call
    if call.session_class is None or finished.decision.error is not None or not transaction.was_opened:
        # The call was made, and its transaction held no writes of its own: the outcome is written, not called again.
        return write_unless_written(context, finished)
    if (settlement := read_back(context, finished)) is not None:
        return settlement
    answer = classify(call, transaction, Raised(problem))
    if isinstance(answer, Fault):
        return own_or(context, finished, settle_fault(context, claim, call, answer, seconds))
    return write_alone(context, finish(claim, call, answer, seconds))


def _num_losses(context: ExecutionContext, claim: Claim, reason: str) -> int:
    """How many of the last tries in a row were parked for this reason."""
    if claim.last_error != f"parked: {reason}":
        return 0
    first = retry_transient(lambda: _first_of_last_reason(context, claim), LONG_PATIENCE)
    return 0 if first is None else claim.number - first


def _first_of_last_reason(context: ExecutionContext, claim: Claim) -> int | None:
    # An event is written only when the reason changes: the last event belongs to the first try of this row.
    with context.engine.begin() as connection:
        return last_start(connection, context.table, claim.id, "parked")
