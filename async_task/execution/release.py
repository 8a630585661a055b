"""Releases claims whose calls are not to be made now: parked for later with a reason, or as they were before the claim.
Neither charges the attempt."""

import datetime as dt
import logging
import random
from collections.abc import Sequence
from functools import partial

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.database.driver_errors import is_statement_timeout, is_unusable, transient_error
from async_task.database.transactions import LONG_PATIENCE, PATIENCE, retry_transient
from async_task.error_text import describe
from async_task.execution.prepared_call import ExecutionContext
from async_task.outcomes import Outcome, Parked, Superseded
from async_task.queue import fenced_writes
from async_task.queue.claim import Claim

logger = logging.getLogger("async_task")


def park(
    context: ExecutionContext, claim: Claim, reason: str, *, started: bool, is_transient: bool = False
) -> Outcome:  # fmt: skip
    """Release the claim for later: 1 to 3 s if the infrastructure failed it (`started`: in the middle of its call;
    `is_transient`: before), 20 to 40 s if something that it needs is missing.

    `num_attempts` is reduced only if the call had not started: a deadlock in the middle of a call charges no error, but
    the call was made, and other systems may have seen it. A reason is logged once for each call, not for each row.
    """
    shortest, longest = (1, 3) if started or is_transient else (20, 40)
    after = dt.timedelta(seconds=random.uniform(shortest, longest))  # noqa: S311 - jitter is no secret
    level = logging.WARNING if context.parked_reasons.is_new(claim, reason) else logging.DEBUG
    logger.log(level, "%s: attempt %s is parked: %s", claim.call, claim.id, reason)
    patience = LONG_PATIENCE if started else PATIENCE
    is_parked = retry_transient(
        lambda: fenced_writes.park(context.engine, context.table, claim, after, reason, started=started), patience
    )
    return Parked(claim.id, after, reason) if is_parked else Superseded(claim.id)


def leave_to_others(context: ExecutionContext, claim: Claim, reason: str) -> Outcome:
    """Release the claim of a call that this process does not know, uncharged and where it stood: another process can
    make the call now."""
    logger.warning("%s: attempt %s is left to other processes: %s", claim.call, claim.id, reason)
    retry_transient(lambda: fenced_writes.release_to_others(context.engine, context.table, [claim]))
    return Parked(claim.id, dt.timedelta(0), reason)


def park_lapsed(context: ExecutionContext, claim: Claim) -> Outcome:
    """Park an attempt whose call was not started, because its claim may be lost."""
    return park(context, claim, "its process had no heartbeat for a lease", started=False, is_transient=True)


def park_unlocked(context: ExecutionContext, claim: Claim, problem: BaseException) -> Outcome:
    """Park an attempt whose row could not be locked, so that its call was not started."""
    reason = f"its row could not be locked: {describe(problem).summary}"
    return park(context, claim, reason, started=False, is_transient=_is_transient(problem))


def _is_transient(problem: BaseException) -> bool:
    """Whether it is a transient error or a lost connection, or none could be had: others of its order key wait."""
    if isinstance(problem, (OperationalError, InterfaceError)) and is_unusable(problem.orig):
        return True
    return isinstance(problem, PoolTimeout) or transient_error(problem) is not None


def release_unlocked(context: ExecutionContext, claims: Sequence[Claim], problem: BaseException) -> None:
    """Release calls whose rows could not be locked together, after a transient error or a lock timeout; park them after
    any other error."""
    is_timeout = isinstance(problem, DBAPIError) and is_statement_timeout(problem.orig)
    if not (is_timeout or isinstance(problem, PoolTimeout) or transient_error(problem) is not None):
        for claim in claims:
            park_unlocked(context, claim, problem)
        return
    # One by one, without waiting for locks: one statement for all would wait for the same lock again, and meanwhile
    # keep the other rows locked. Twice: on MariaDB another claim or heartbeat locks neighbouring rows for a moment.
    left = claims
    for _ in range(2):
        released = retry_transient(
            partial(fenced_writes.release_abandoned, context.engine, context.table, left, started=False)
        )
        left = [claim for claim in left if claim.id not in released]


def release_unstarted(context: ExecutionContext, claims: Sequence[Claim]) -> None:
    """Release claims of one claim id, whose calls were not started."""
    if claims:
        retry_transient(lambda: fenced_writes.release_claims(context.engine, context.table, claims))
