"""What follows a committed outcome.

1. After an error, the user's `handle_perform_error` is called, in a transaction of its own.
2. If the attempt has ended, the next attempt of its order key is released. That is another transaction, after the
   commit: only a new snapshot sees attempts that have arrived meanwhile.
3. The outcome is reported to the worker thread, which counts it.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy import inspect
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from async_task.attempts.attempt import BaseAttempt
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.execution.call import ExecutionContext, PreparedCall
from async_task.execution.finished_call import Settlement
from async_task.outcomes import Canceled, Expired, Failed, Outcome, Succeeded, Superseded
from async_task.queue import ordering
from async_task.queue.claim import Claim
from async_task.schema.states import Status

logger = logging.getLogger("async_task")
ENDED = (Succeeded, Failed, Expired, Canceled, Superseded)
"""Superseded: our own COMMIT may have won without an answer. If the attempt has not ended, nothing is released."""


def follow_up(context: ExecutionContext, claim: Claim, call: PreparedCall, settlement: Settlement) -> Outcome:
    """Call the error hook, and release the next attempt of the order key. Returns the outcome after the hook."""
    outcome, error = settlement
    if error is not None:
        logger.info("attempt %s: try %d raised %s", claim.id, claim.number, type(error).__qualname__)
        outcome = _call_hook(context, claim, call, error) or outcome
    _release_next(context, claim, outcome)
    return outcome


def release_next_of_all(context: ExecutionContext, claims: Sequence[Claim]) -> None:
    """Release the next attempt of each order key of these claims, whose attempts have succeeded."""
    by_key = {claim.order_key: claim for claim in claims if claim.order_key is not None}
    if not by_key:
        return
    try:
        retry_transient(lambda: ordering.release(context.engine, context.table, by_key))
    except Exception as error:
        # A sweep releases them; so it does after a crash here.
        logger.warning("%d order keys were not released at once: %s", len(by_key), describe(error).summary)
        if isinstance(error, (OperationalError, PoolTimeout)):  # the database is not reachable
            return
        # The database refuses one of them: that must not hold up the others.
        for claim in by_key.values():
            _release_next(context, claim, Succeeded(claim.id))


def _release_next(context: ExecutionContext, claim: Claim, outcome: Outcome) -> None:
    key = claim.order_key
    if key is None or not isinstance(outcome, ENDED):
        return
    try:
        retry_transient(lambda: ordering.release(context.engine, context.table, [key]))
    except Exception as error:
        logger.warning("attempt %s: a sweep releases the next of its key: %s", claim.id, type(error).__name__)


def _call_hook(context: ExecutionContext, claim: Claim, call: PreparedCall, raised: BaseException) -> Outcome | None:
    """Call the user's `handle_perform_error`. Returns the outcome that it chose, None if it changed no state."""
    if not _has_hook(context.model):
        return None
    try:
        with context.source.session(context.engine) as session, session.begin():
            attempt = session.get(context.model, claim.id)
            if attempt is None:
                return None
            before = attempt.status
            attempt.handle_perform_error(raised)
            session.flush()
            after, reason = attempt.status, attempt.last_error or ""
    except BaseException as error:
        logger.error("handle_perform_error of attempt %s raised %s", claim.id, describe(error, call.secrets).summary)
        return None
    chosen = {
        Status.FAILED: Failed(claim.id, reason),
        Status.EXPIRED: Expired(claim.id, reason),
        Status.CANCELED: Canceled(claim.id),
    }
    return chosen.get(after) if after is not before else None


def _has_hook(model: type[BaseAttempt]) -> bool:
    mapper: Any = inspect(model)
    mapped = [one.class_ for one in mapper.base_mapper.self_and_descendants]
    return any(cls.handle_perform_error is not BaseAttempt.handle_perform_error for cls in mapped)


class OutcomeSink(Protocol):
    """Counts the outcomes of a lane, on its thread."""

    def succeeded(self, claims: list[Claim]) -> None:
        """These attempts have succeeded, and the next ones of their order keys are released."""

    def ended(self, claim: Claim, outcome: Outcome) -> None:
        """This attempt has ended otherwise, or is due again later. Its error hook was called."""


class CommittedOutcomes:
    """Outcomes that are committed and not reported yet: reporting uses the database, and waits until the lane holds no
    lock and no transaction."""

    def __init__(self, context: ExecutionContext, sink: OutcomeSink) -> None:
        self._context = context
        self._sink = sink
        self._succeeded: list[Claim] = []
        self._others: list[tuple[Claim, PreparedCall, Settlement]] = []

    def add_succeeded(self, claims: list[Claim]) -> None:
        self._succeeded += claims

    def add(self, claim: Claim, call: PreparedCall, settlement: Settlement) -> None:
        if isinstance(settlement.outcome, Succeeded):
            self._succeeded.append(claim)
        else:
            self._others.append((claim, call, settlement))

    def report(self) -> None:
        """Follow up on all outcomes, and report them."""
        succeeded, self._succeeded = self._succeeded, []
        if succeeded:
            release_next_of_all(self._context, succeeded)
            self._sink.succeeded(succeeded)
        others, self._others = self._others, []
        for claim, call, settlement in others:
            self._sink.ended(claim, follow_up(self._context, claim, call, settlement))
