"""Settling: what the target answered becomes a committed outcome, fenced, together with the target's own writes.

1. Its writes are kept (it returned) or undone (it raised, or they cannot be kept).
2. What becomes of the attempt is decided, purely.
3. The outcome is written and committed. If that fails, nothing is guessed: the row is read again.
"""

import datetime as dt
import logging
import random
from typing import NamedTuple

from async_task.database.lanes import Raised
from async_task.database.transactions import LONG_PATIENCE, PATIENCE, retry_transient
from async_task.error_text import Failure, describe
from async_task.errors import ClaimLost, InvalidState
from async_task.execution.call import ExecutionContext, PreparedCall
from async_task.execution.faults import LOSSES, Fault, judged, lost_again, said_of
from async_task.execution.transaction import CallTransaction, CommittedInside
from async_task.outcomes import (
    Canceled,
    Decision,
    Expired,
    Failed,
    Outcome,
    Parked,
    Retried,
    Standing,
    Succeeded,
    Superseded,
    decide,
)
from async_task.queue import fenced_writes, ordering
from async_task.queue.claim import Claim
from async_task.schema.audit import last_start
from async_task.schema.states import Status

logger = logging.getLogger("async_task")


def settle(
    context: ExecutionContext,
    claim: Claim,
    call: PreparedCall,
    transaction: CallTransaction,
    answer: object,
    elapsed: dt.timedelta,
) -> "Settled":
    """Bring an answer to its outcome. Raises ClaimLost when somebody else was first."""
    return settle_kept(context, claim, call, transaction, kept_or_undone(transaction, answer), elapsed)


def settle_kept(
    context: ExecutionContext,
    claim: Claim,
    call: PreparedCall,
    transaction: CallTransaction,
    answer: object,
    elapsed: dt.timedelta,
) -> "Settled":
    """The same of an answer of `kept_or_undone`."""
    if transaction.is_lost:
        raise ClaimLost("its claim was lost before it wrote anything")
    if isinstance(answer, Raised) and isinstance(answer.error, CommittedInside):
        return _finish(
            context, claim, call, Decision(Status.FAILED, "committed_inside", charged=True, error=answer.error)
        )
    answer = judged(call, transaction, answer)
    if isinstance(answer, Fault):
        transaction.close()
        return settle_fault(context, claim, call, answer, elapsed)
    decision = decided(claim, call, answer, elapsed)
    problem = _write(context, claim, call, transaction, decision)
    if problem is not None:
        return _settle_anew(context, claim, call, transaction, decision, elapsed, problem)
    return settled(claim, call, decision)


def after_lost_claim(context: ExecutionContext, claim: Claim, call: PreparedCall) -> "Settled":
    """Superseded by somebody else; unless it was the target itself, whose change of its row is rolled back by now."""
    row = retry_transient(lambda: fenced_writes.read_state(context.engine, context.table, claim.id), LONG_PATIENCE)
    if row is None or row.claim_id != claim.claim_id:
        return Settled(Superseded(claim.id))
    error = InvalidState("the target changed the row of its own attempt: let it return, raise or Discard instead")
    return _finish(context, claim, call, Decision(Status.FAILED, "changed_itself", charged=True, error=error))


class Settled:
    """An outcome, and what was raised on the way to it (None: nothing, or nothing of the target's)."""

    __slots__ = ("error", "outcome")

    def __init__(self, outcome: Outcome, error: BaseException | None = None) -> None:
        self.outcome = outcome
        self.error = error


class Called(NamedTuple):
    """A claim whose call has answered, and what becomes of it."""

    claim: Claim
    call: PreparedCall
    decision: Decision


AT_REST = (Succeeded, Failed, Expired, Canceled, Superseded)
"""Superseded: perhaps by a COMMIT of ours whose answer was lost. If it is not at rest, nothing is released."""


def park(context: ExecutionContext, claim: Claim, reason: str, *, started: bool) -> Outcome:
    """Give the attempt back uncharged: what it needs is missing (`started` False), or the database failed it."""
    shortest, longest = (1, 3) if started else (20, 40)
    after = dt.timedelta(seconds=random.uniform(shortest, longest))  # noqa: S311 - jitter is no secret
    logger.warning("attempt %s is parked: %s", claim.id, reason)
    patience = LONG_PATIENCE if started else PATIENCE
    hit = retry_transient(
        lambda: fenced_writes.park(context.engine, context.table, claim, after, reason, started=started), patience
    )
    return Parked(claim.id, after, reason) if hit else Superseded(claim.id)


def release_next(context: ExecutionContext, claim: Claim, outcome: Outcome) -> None:
    """If the attempt is at rest, let the next one of its key go; should that fail, a sweep does it."""
    if claim.order_key is None or not isinstance(outcome, AT_REST):
        return
    try:
        retry_transient(lambda: ordering.release(context.engine, context.table, [claim.order_key or ""]))
    except Exception as error:
        logger.warning("the next attempt of the key of %s waits for a sweep: %s", claim.id, type(error).__name__)


def settle_fault(
    context: ExecutionContext, claim: Claim, call: PreparedCall, fault: Fault, elapsed: dt.timedelta
) -> Settled:
    """Parked; or, where its connection is lost again and again, charged: most likely it is the call that ends it."""
    reason = said_of(fault.error, call)
    if fault.is_loss and _losses(context, claim, reason) >= LOSSES:
        return _finish(context, claim, call, decided(claim, call, Raised(lost_again(fault.error)), elapsed))
    return Settled(park(context, claim, reason, started=True))


def _losses(context: ExecutionContext, claim: Claim, reason: str) -> int:
    """How many starts in a row, up to the last one, were parked for this reason."""
    if claim.last_error != f"parked: {reason}":
        return 0
    first = retry_transient(lambda: _first_of_these(context, claim), LONG_PATIENCE)
    return 0 if first is None else claim.number - first


def _first_of_these(context: ExecutionContext, claim: Claim) -> int | None:
    # Each is written down when its reason is a new one: the last event is of the first start in this row.
    with context.engine.begin() as connection:
        return last_start(connection, context.table, claim.id, "parked")


def kept_or_undone(transaction: CallTransaction, answer: object) -> object:
    """The answer; `Raised` with what the database holds against the target's writes when they cannot be kept, and with
    CommittedInside when they cannot be undone."""
    if not isinstance(answer, Raised):
        try:
            transaction.keep()
            return answer
        except BaseException as error:
            answer = Raised(error)
    try:
        if not isinstance(answer.error, CommittedInside):
            transaction.undo()
        return answer
    except CommittedInside as found:
        found.__cause__ = answer.error
        return Raised(found)
    finally:
        if isinstance(answer.error, CommittedInside) or not transaction.is_usable:
            transaction.close()


def decided(claim: Claim, call: PreparedCall, answer: object, elapsed: dt.timedelta) -> Decision:
    """What becomes of an attempt whose call has answered, after so long."""
    left = None if claim.left is None else claim.left - elapsed
    standing = Standing(claim.age + elapsed, left, claim.num_errors, claim.max_attempts)
    return decide(answer.error if isinstance(answer, Raised) else answer, standing, call.method.policy.retry_or_default)


def _write(
    context: ExecutionContext, claim: Claim, call: PreparedCall, transaction: CallTransaction, decision: Decision
) -> Exception | None:
    """Write and commit the outcome. Answers what went wrong: then nobody knows whether it was committed.

    Raises ClaimLost when somebody else was first.
    """
    failure = failure_of(decision, call)
    try:
        if transaction.is_open:
            hit = fenced_writes.write_outcome(transaction.open(), context.table, claim, decision, failure)
            if hit:
                transaction.commit()
        else:
            hit = fenced_writes.write_outcome(context.engine, context.table, claim, decision, failure)
    except Exception as problem:
        logger.warning(
            "the outcome of attempt %s was not written at once: %s", claim.id, describe(problem, call.secrets).summary
        )
        return problem
    finally:
        # Before anything else is done: the next transaction may want this pool's last connection.
        transaction.close()
    if not hit:
        raise ClaimLost("somebody else was first")
    return None


def _settle_anew(
    context: ExecutionContext,
    claim: Claim,
    call: PreparedCall,
    transaction: CallTransaction,
    decision: Decision,
    elapsed: dt.timedelta,
    problem: Exception,
) -> Settled:
    """A failed COMMIT, or a lost connection, proves nothing: read the row again, and go on from there."""
    if call.session_class is None or decision.error is not None:
        return settle_alone(context, claim, call, decision)  # it was made, and its transaction held nothing of its own
    if (found := found_written(context, claim, call, decision)) is not None:
        return found
    answer = judged(call, transaction, Raised(problem))
    if isinstance(answer, Fault):
        return _or_written(context, claim, call, decision, settle_fault(context, claim, call, answer, elapsed))
    return _finish(context, claim, call, decided(claim, call, answer, elapsed))


def settle_alone(context: ExecutionContext, claim: Claim, call: PreparedCall, decision: Decision) -> Settled:
    """Write an outcome that may have been written already, in a transaction of its own."""
    found = found_written(context, claim, call, decision)
    return found or _or_written(context, claim, call, decision, _finish(context, claim, call, decision))


def _or_written(
    context: ExecutionContext, claim: Claim, call: PreparedCall, decision: Decision, result: Settled
) -> Settled:
    """The result; but where it was superseded by ourselves, as a COMMIT of ours was under way without an answer: what
    that has written."""
    is_told = decision.after is not None or not isinstance(result.outcome, Superseded)
    return result if is_told else found_written(context, claim, call, decision) or result


def found_written(context: ExecutionContext, claim: Claim, call: PreparedCall, decision: Decision) -> Settled | None:
    """What the row says when the claim is no longer ours: our outcome, or somebody else's."""
    row = retry_transient(lambda: fenced_writes.read_state(context.engine, context.table, claim.id), LONG_PATIENCE)
    if row is not None and row.claim_id == claim.claim_id:
        return None
    is_committed = row is not None and row.num_attempts == claim.number and row.status == decision.status
    return settled(claim, call, decision) if is_committed else Settled(Superseded(claim.id))


def _finish(context: ExecutionContext, claim: Claim, call: PreparedCall, decision: Decision) -> Settled:
    """Write the outcome in a transaction of its own, until the database takes it."""
    failure = failure_of(decision, call)
    try:
        hit = _settle_at_last(context, claim, decision, failure)
    except Exception as problem:
        # Not the weather: then it is the text, which this database has no characters for.
        logger.warning(
            "attempt %s: its error is written in ASCII: %s", claim.id, describe(problem, call.secrets).summary
        )
        hit = _settle_at_last(context, claim, decision, None if failure is None else failure.in_ascii())
    return settled(claim, call, decision) if hit else Settled(Superseded(claim.id))


def _settle_at_last(context: ExecutionContext, claim: Claim, decision: Decision, failure: Failure | None) -> bool:
    return retry_transient(
        lambda: fenced_writes.write_outcome(context.engine, context.table, claim, decision, failure), LONG_PATIENCE
    )


def failure_of(decision: Decision, call: PreparedCall) -> Failure | None:
    return None if decision.error is None else describe(decision.error, call.secrets)


def settled(claim: Claim, call: PreparedCall, decision: Decision) -> Settled:
    said = None if decision.error is None else describe(decision.error, call.secrets).summary
    match decision.status:
        case Status.SUCCEEDED:
            return Settled(Succeeded(claim.id))
        case Status.FAILED:
            return Settled(
                Failed(claim.id, ": ".join(part for part in (decision.reason, said) if part)), decision.error
            )
        case Status.EXPIRED:
            return Settled(Expired(claim.id, decision.reason), decision.error)
        case _:
            assert decision.after is not None
            return Settled(Retried(claim.id, decision.after, said), decision.error)
