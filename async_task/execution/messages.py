"""Messages about the outcomes of attempts, each decided in a transaction of its own after that of the outcome.

Only the try that has written an outcome gets here, and a message that was sent is recorded under the row's lock: so
each is sent once. A process that dies before that sends none; the next failing try does.
"""

import datetime as dt
import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, select
from sqlalchemy.orm import Session

from async_task.attempts.messages import FAILING_AFTER, has_message_hook, message_about_outcome, row_target_named
from async_task.database.greenlets import sleep
from async_task.error_text import describe
from async_task.execution.in_flight import Settlement
from async_task.execution.prepared_call import ExecutionContext
from async_task.outcomes import Expired, Failed, Retried, Succeeded
from async_task.queue.claim import Claim
from async_task.schema.audit import BEFORE, read_change
from async_task.schema.states import Status
from async_task.schema.tables import companion_tables
from async_task.targets.row_target import RowTarget

logger = logging.getLogger("async_task")
MOST_LOOKS, PAUSE = 50, 0.02
"""How often a locked row is looked at again, and after how many seconds."""
MOST_READ = 100
"""How many of the last retries by people are looked at for the one that submitted an attempt again."""


def tell_users(context: ExecutionContext, succeeded: Sequence[Claim]) -> None:
    """Send the message that a failing job has succeeded, for each of these that needs one."""
    if has_message_hook(context.table):
        for claim in succeeded:
            if _may_need_message(claim):
                _tell(context, claim, has_failed=False)


def may_tell_user(context: ExecutionContext, succeeded: Claim) -> bool:
    """Whether `tell_users` may send a message about this success."""
    return has_message_hook(context.table) and _may_need_message(succeeded)


def _may_need_message(succeeded: Claim) -> bool:
    return succeeded.age >= FAILING_AFTER and _may_have_failed(succeeded)


def _may_have_failed(claim: Claim) -> bool:
    """A row stays the same job when its attempt is opened again, which counts its errors anew."""
    return claim.num_errors > 0 or row_target_named(claim.target) is not None


def tell_user(context: ExecutionContext, claim: Claim, settlement: Settlement) -> None:
    """Send the message about this outcome that its user needs, if any."""
    outcome = settlement.outcome
    if isinstance(outcome, Succeeded):
        tell_users(context, [claim])
        return
    is_given_up = settlement.given_up is not None
    has_failed = is_given_up or (settlement.error is not None and isinstance(outcome, (Failed, Expired, Retried)))
    if has_failed and has_message_hook(context.table) and claim.age >= FAILING_AFTER:
        _tell(context, claim, has_failed=True, is_last_error=is_given_up)


def _tell(context: ExecutionContext, claim: Claim, *, has_failed: bool, is_last_error: bool = False) -> None:
    target = row_target_named(claim.target)
    if target is not None and target.tells_users:
        return
    try:
        for _ in range(MOST_LOOKS):
            if _is_told(context, claim, target, has_failed=has_failed, is_last_error=is_last_error):
                return
            sleep(PAUSE)
        logger.warning("attempt %s: no message is sent, because its row stays locked", claim.id)
    except Exception as error:  # the outcome is committed, and stays
        logger.error("attempt %s: no message is sent: %s", claim.id, describe(error).summary)


def _is_told(
    context: ExecutionContext, claim: Claim, target: RowTarget | None, *, has_failed: bool, is_last_error: bool
) -> bool:
    """Send what is to be sent. False if that cannot be decided now: others have locked the row. A claim does that for a
    moment also with rows that it does not take. `is_last_error`: no later try tells it."""
    with Session(context.engine) as session, session.begin():
        # Nobody else reports a success: only a try that has failed may be followed by others.
        attempt = _locked(session, context, claim) if has_failed else session.get(context.model, claim.id)
        if attempt is None:
            return _is_left_to_others(session, context.table, claim, is_last_error=is_last_error)
        if target is None:
            age = _age(session, context.table, claim)
            message_about_outcome(session, attempt, age, has_failed=has_failed)
        else:  # it is submitted once
            row = target.row_to_tell_of(session, attempt.method_args["key"], has_failed=has_failed)
            if row is not None:
                message_about_outcome(session, row, claim.age, has_failed=has_failed)
        return True


def _locked(session: Session, context: ExecutionContext, claim: Claim) -> Any:
    key = context.table.c.id
    lock: Any = select(key).where(key == claim.id).with_for_update(skip_locked=True, key_share=True)
    return None if session.execute(lock).first() is None else session.get(context.model, claim.id)


def _is_left_to_others(session: Session, table: Table, claim: Claim, *, is_last_error: bool) -> bool:
    """Whether the attempt is gone, or is claimed for its next try, which sends what is to be sent if it fails too."""
    row = session.execute(select(table.c.claim_id).where(table.c.id == claim.id)).first()
    return row is None or (row.claim_id is not None and not is_last_error)


def _age(session: Session, table: Table, claim: Claim) -> dt.timedelta:
    """Since it was submitted: written down, wanted, or opened again by a person after it had ended."""
    c = companion_tables(table).events.c
    mine = (c.job_type == table.name, c.job_id == str(claim.id), c.kind == "retry_now")
    retries: Any = select(c.created_at, c.detail).where(*mine).order_by(c.id.desc()).limit(MOST_READ)
    found: Any = session.execute(retries)
    for created_at, detail in found:
        if read_change(detail, BEFORE).get("status", Status.PENDING) != Status.PENDING:
            again: dt.timedelta = claim.claimed_at - created_at
            return min(claim.age, again)
    return claim.age
