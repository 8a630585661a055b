"""Writes the outcomes of finished calls. Each write is fenced by its claim.

1. A group of outcomes is written in one commit.
2. If that fails, each is written by itself.
3. A failed COMMIT or a lost connection proves nothing: the row is read again.
"""

import logging
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.answers import Raised
from async_task.database.driver_errors import is_statement_timeout, is_unavailable, transient_error
from async_task.database.lanes import LOCKED_LIMIT
from async_task.database.transactions import LONG_PATIENCE, retry_transient
from async_task.error_text import Failure, describe
from async_task.errors import ClaimLost
from async_task.execution.error_hook import call_hook, is_hooked
from async_task.execution.in_flight import FinishedCall, Settlement, finish
from async_task.execution.prepared_call import ExecutionContext, PreparedCall
from async_task.execution.transaction import CallTransaction
from async_task.outcomes import SUCCESS, Superseded
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim
from async_task.queue.fenced_writes import OutcomeWrite
from async_task.schema.states import Status
from async_task.wakeup.after_commit import run_committed

logger = logging.getLogger("async_task")


# A group.


def write_group(context: ExecutionContext, calls: Sequence[FinishedCall], unstarted: Sequence[Claim] = ()) -> bool:
    """`commit_group`, and whether all of it is known to be committed. If not, the lane's connection is dropped, and
    `write_each` is next."""
    try:
        commit_group(context, calls, unstarted)
    except Exception as problem:
        _drop_connection(context, len(calls), problem)
        return False
    return True


def commit_group(context: ExecutionContext, calls: Sequence[FinishedCall], unstarted: Sequence[Claim] = ()) -> None:
    """Write these outcomes, release the claims of calls that were not started, and commit: in the transaction that the
    lane's connection is in, or else in a new one.

    Raises ClaimLost if one of the claims was lost, and what the database raises.
    """
    connection = context.lane.connection
    transaction = connection.get_transaction() or connection.begin()
    succeeded: defaultdict[uuid.UUID, list[Claim]] = defaultdict(list)
    others: list[OutcomeWrite] = []
    for one in calls:
        if one.decision is SUCCESS:
            succeeded[one.claim.claim_id].append(one.claim)
        else:
            others.append(OutcomeWrite(one.claim, one.decision, one.failure))
    # One statement serves one claim id. Calls of a lane have the same one; coroutines may have several.
    first, *more = succeeded.values() or ([],)
    is_written = fenced_writes.write_outcomes(connection, context.table, first, others, unstarted)
    if not (is_written and all(fenced_writes.write_outcomes(connection, context.table, claims) for claims in more)):
        raise ClaimLost("one of these claims was lost")
    transaction.commit()


def commit_and_lock(
    context: ExecutionContext, succeeded: Sequence[FinishedCall], claims: Sequence[Claim]
) -> tuple[bool, set[uuid.UUID] | None]:
    """Commit that these calls have succeeded, and lock the rows of `claims` in the next transaction, in one round trip.

    Returns whether all outcomes are known to be committed, and the ids of `claims` that were lost; None instead of ids
    if nothing is locked, and the lane's connection is dropped. Only where the connection `chains`.
    """
    connection, committed = context.lane.connection, [one.claim for one in succeeded]
    try:
        number, lost = fenced_writes.succeed_and_lock(connection, context.table, committed, claims, LOCKED_LIMIT)
    except Exception as problem:
        _drop_connection(context, len(succeeded), problem)
        return False, None
    return number == len(succeeded), lost


def _drop_connection(context: ExecutionContext, number: int, problem: BaseException) -> None:
    logger.warning("outcomes that were not written at once: %d: %s", number, describe(problem).summary)
    context.lane.drop_connection()


# One.


def write_each(
    context: ExecutionContext, calls: Sequence[FinishedCall]
) -> Iterator[tuple[FinishedCall, Settlement | None]]:
    """Write each outcome by itself, although it may be committed already. Yields None for one that cannot be written:
    it holds up no other, and a sweep recovers its claim."""
    for one in calls:
        yield one, settle_or_log(one.claim, one.call, partial(write_unless_written, context, one))


def settle_or_log(claim: Claim, call: PreparedCall, settle: Callable[[], Settlement | None]) -> Settlement | None:
    """What `settle` returns. If it raises, log the error and return None."""
    try:
        return settle()
    except Exception as problem:
        logger.error("attempt %s is not settled: %s", claim.id, call.describe(problem).summary)
        return None


def write_hooked(
    context: ExecutionContext, calls: Sequence[FinishedCall]
) -> Iterator[tuple[FinishedCall, Settlement | None]]:
    """Write the outcomes of calls that raised, each in one transaction with the user's error hook; otherwise as
    `write_each`."""
    for one in calls:
        yield one, settle_or_log(one.claim, one.call, partial(write_alone, context, one))


def write_unless_written(context: ExecutionContext, finished: FinishedCall) -> Settlement:
    """Write an outcome that may be committed already, in a transaction of its own."""
    return read_back(context, finished) or own_or(context, finished, write_alone(context, finished))


def own_or(context: ExecutionContext, finished: FinishedCall, settlement: Settlement) -> Settlement:
    """`settlement`; but if our own earlier COMMIT of `finished` won after all, what that wrote."""
    # A retry leaves the row pending, where our own write cannot be told from another.
    if finished.status is Status.PENDING or not isinstance(settlement.outcome, Superseded):
        return settlement
    return read_back(context, finished) or settlement


def read_back(context: ExecutionContext, finished: FinishedCall) -> Settlement | None:
    """What the row says after a COMMIT that may have succeeded: our outcome, or Superseded if another worker has it.
    None if the claim is still ours: nothing was committed."""
    claim = finished.claim
    row = retry_transient(lambda: fenced_writes.read_state(context.engine, context.table, claim.id), LONG_PATIENCE)
    if row is not None and row.claim_id == claim.claim_id:
        return None
    is_ours = row is not None and row.num_attempts == claim.number and row.status == finished.status
    return finished.settlement if is_ours else Settlement(Superseded(claim.id))


def write_alone(context: ExecutionContext, finished: FinishedCall) -> Settlement:
    """Write the outcome in a transaction of its own, with the error hook, and repeat that while the database is away.
    If the two cannot be written together, the outcome is written alone."""
    if is_hooked(context, finished):
        try:
            return retry_transient(lambda: write_outside(context, finished), LONG_PATIENCE).settlement
        except ClaimLost:
            return Settlement(Superseded(finished.claim.id))
        except Exception as problem:
            summary = finished.call.describe(problem).summary
            logger.error("handle_perform_error of attempt %s is undone: %s", finished.claim.id, summary)
    return _write_without_hook(context, finished)


def write_outside(context: ExecutionContext, finished: FinishedCall) -> FinishedCall:
    """Write the outcome in a new transaction, and commit it; otherwise as `write_on`."""
    with context.engine.begin() as connection:
        written = write_on(connection, context, finished)
    run_committed(connection)
    return written


def _write_without_hook(context: ExecutionContext, finished: FinishedCall) -> Settlement:
    """What the database refuses is written again: with its text in ASCII, and then as an error of the call, which would
    otherwise be made again for ever."""
    try:
        return _write(context, finished, finished.failure)
    except Exception as problem:
        refused = _refusal(problem)
    if finished.failure is not None:  # perhaps this database cannot store the characters of the error's text
        summary = finished.call.describe(refused).summary
        logger.warning("attempt %s: its error is stored in ASCII: %s", finished.claim.id, summary)
        try:
            return _write(context, finished, finished.failure.in_ascii())
        except Exception as problem:
            refused = _refusal(problem)
    summary = finished.call.describe(refused).summary
    logger.error("attempt %s: its outcome is refused, and counts as an error: %s", finished.claim.id, summary)
    charged = finish(finished.claim, finished.call, Raised(refused), 0.0)
    return _write(context, charged, charged.failure)


def _refusal(problem: Exception) -> Exception:
    """Raises it if the database is away, or late."""
    is_late = isinstance(problem, DBAPIError) and is_statement_timeout(problem.orig)
    if is_late or isinstance(problem, PoolTimeout) or is_unavailable(problem) or transient_error(problem) is not None:
        raise problem
    return problem


def _write(context: ExecutionContext, finished: FinishedCall, failure: Failure | None) -> Settlement:
    claim = finished.claim
    is_written = retry_transient(
        lambda: fenced_writes.write_outcome(context.engine, context.table, claim, finished.decision, failure),
        LONG_PATIENCE,
    )
    return finished.settlement if is_written else Settlement(Superseded(claim.id))


def write_in(
    transaction: CallTransaction, context: ExecutionContext, finished: FinishedCall, *, commits: bool = False
) -> FinishedCall:
    """Write the outcome in the transaction of its call, which is open and not committed; otherwise as `write_on`.

    `commits`: only its commit follows, and the COMMIT may be sent along, with the lock of the next claim's row after it
    (`ExecutionContext.following`). Raises NotReleased if the target's writes were to be kept with this outcome, and
    cannot be.
    """
    if not transaction.keeps_with_success:
        return write_on(transaction.open(), context, finished)
    assert finished.decision is SUCCESS
    can_lock_next = commits and transaction.can_lock_next
    following = context.following(finished.claim, finished.call) if can_lock_next else None
    if following is None:
        transaction.succeed(commits=commits)
    else:
        transaction.succeed_and_lock(following)
    return finished


def write_on(connection: Connection, context: ExecutionContext, finished: FinishedCall) -> FinishedCall:
    """Write the outcome, and call the error hook, in the transaction of `connection`, which the caller commits. Returns
    the call with the outcome that the hook has chosen. Raises ClaimLost, HookNotUndone."""
    written = (finished.claim, finished.decision, finished.failure)
    if not fenced_writes.write_outcome(connection, context.table, *written):
        raise ClaimLost("the claim was lost, or the target changed the row of its own attempt")
    return call_hook(context, connection, finished) if is_hooked(context, finished) else finished
