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

from async_task.attempts.messages import FAILING_AFTER, has_message_hook, message_about_outcome
from async_task.error_text import describe
from async_task.execution.call import ExecutionContext
from async_task.execution.in_flight import Settlement
from async_task.outcomes import Failed, Retried, Succeeded
from async_task.queue.claim import Claim
from async_task.schema.audit import BEFORE, read_change
from async_task.schema.states import Status
from async_task.schema.tables import companion_tables

logger = logging.getLogger("async_task")
MOST_READ = 100
"""How many of the last retries by people are looked at for the one that submitted an attempt again."""


def tell_users(context: ExecutionContext, succeeded: Sequence[Claim]) -> None:
    """Send the message that a failing job has succeeded, for each of these that needs one."""
    if has_message_hook(context.table):
        for claim in succeeded:
            if claim.num_errors and claim.age >= FAILING_AFTER:
                _tell(context, claim, has_failed=False)


def tell_user(context: ExecutionContext, claim: Claim, settlement: Settlement) -> None:
    """Send the message about this outcome that its user needs, if any."""
    outcome = settlement.outcome
    if isinstance(outcome, Succeeded):
        tell_users(context, [claim])
        return
    has_failed = settlement.error is not None and isinstance(outcome, (Failed, Retried))
    if has_failed and has_message_hook(context.table) and claim.age >= FAILING_AFTER:
        _tell(context, claim, has_failed=True)


def _tell(context: ExecutionContext, claim: Claim, *, has_failed: bool) -> None:
    try:
        with Session(context.engine) as session, session.begin():
            attempt = _locked(session, context, claim)
            if attempt is not None:
                age = _age(session, context.table, claim)
                message_about_outcome(session, attempt, age, has_failed=has_failed)
    except Exception as error:  # the outcome is committed, and stays
        logger.error("attempt %s: no message is sent: %s", claim.id, describe(error).summary)


def _locked(session: Session, context: ExecutionContext, claim: Claim) -> Any:
    """The attempt, with its row locked. None if it is locked by others, as by the next try: that one sends what is to
    be sent."""
    key = context.table.c.id
    lock: Any = select(key).where(key == claim.id).with_for_update(skip_locked=True, key_share=True)
    return None if session.execute(lock).first() is None else session.get(context.model, claim.id)


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
