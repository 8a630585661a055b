"""What follows a committed outcome.

1. If the attempt has ended, the next attempt of its order key is released. That is another transaction, after the
   commit: only a new snapshot sees attempts that have arrived meanwhile.
2. The user of the job gets a message, if there is something to tell.
3. The hook of the outcome is called.
4. The outcome is reported to the worker thread, which counts it.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.execution.in_flight import Settlement
from async_task.execution.messages import may_tell_user, tell_user, tell_users
from async_task.execution.prepared_call import ExecutionContext, PreparedCall
from async_task.outcomes import Canceled, Expired, Failed, Outcome, Retried, Succeeded, Superseded
from async_task.queue import ordering
from async_task.queue.claim import Claim
from async_task.queue.hooks import Hooks
from async_task.wakeup.notify import may_notify, notify_sleepers

logger = logging.getLogger("async_task")
ENDED = (Succeeded, Failed, Expired, Canceled, Superseded)
"""Superseded: our own COMMIT may have won without an answer. If the attempt has not ended, nothing is released."""


def follow_up(context: ExecutionContext, claim: Claim, settlement: Settlement) -> Outcome:
    """Log the error, release the next attempt of the order key, and tell the user and the hooks. Returns the
    outcome."""
    _log(claim, settlement)
    if settlement.error is not None:
        context.heard(claim, settlement.error)
    _release_next(context, claim, settlement.outcome)
    tell_user(context, claim, settlement)
    _call_hooks(context.hooks, claim, settlement)
    return settlement.outcome


def has_follow_up(context: ExecutionContext, claim: Claim) -> bool:
    """Whether something may follow a success of this claim that takes long, or needs a connection."""
    hooks = context.hooks
    is_heard = hooks.on_succeeded is not None or hooks.observer is not None
    return is_heard or claim.order_key is not None or may_tell_user(context, claim)


def _log(claim: Claim, settlement: Settlement) -> None:
    outcome, error, final = settlement.outcome, settlement.error, settlement.final
    if final is not None:
        final.log(error)
    elif error is not None:
        raised = type(error).__qualname__
        fields = {
            "attempt_id": str(claim.id), "target": claim.target, "method": claim.method_name, "queue": claim.queue,
            "outcome": type(outcome).__name__.lower(), "try": claim.number, "error": raised,
        }  # fmt: skip
        logger.info("%s: try %d of attempt %s raised %s", claim.call, claim.number, claim.id, raised, extra=fields)


def _call_hooks(hooks: Hooks, claim: Claim, settlement: Settlement) -> None:
    outcome = settlement.outcome
    if settlement.given_up is not None:
        hooks.given_up(settlement.given_up)  # it was logged by the poll
    if settlement.final is not None:
        hooks.ended(settlement.final)
    elif isinstance(outcome, Succeeded):
        hooks.succeeded([claim])
    elif not isinstance(outcome, Retried):
        hooks.settled(claim, outcome)
    elif hooks.on_retried is not None or hooks.observer is not None:
        hooks.retried(claim, _without_values(outcome, settlement))


def _without_values(outcome: Retried, settlement: Settlement) -> Retried:
    """The outcome without the value of any argument: a hook may send it anywhere."""
    if settlement.error is None or settlement.call is None:
        return outcome
    return replace(outcome, error=settlement.call.describe_for_log(settlement.error).summary)


def release_next_of_all(context: ExecutionContext, claims: Sequence[Claim]) -> None:
    """Release the next attempt of each order key of these claims, whose attempts have succeeded."""
    keyed = [claim for claim in claims if claim.order_key is not None]
    if not keyed:
        return
    try:
        _release_next_of(context, keyed)
    except Exception as error:
        # A sweep releases them; so it does after a crash here.
        logger.warning("%d order keys were not released at once: %s", len(keyed), describe(error).summary)


def _release_next(context: ExecutionContext, claim: Claim, outcome: Outcome) -> None:
    if claim.order_key is None or not isinstance(outcome, ENDED):
        return
    try:
        _release_next_of(context, [claim])
    except Exception as error:
        logger.warning("attempt %s: a sweep releases the next of its key: %s", claim.id, type(error).__name__)


def _release_next_of(context: ExecutionContext, claims: Sequence[Claim]) -> None:
    """Workers that sleep are notified of queues that this process does not serve."""
    engine, table = context.engine, context.table
    keys = {claim.order_key for claim in claims if claim.order_key is not None}
    released = retry_transient(lambda: ordering.release(engine, table, keys))
    # A sweep may have been faster: then it is most likely in the queue of the attempt before it.
    elsewhere = context.released({*released, *(claim.queue for claim in claims)})
    notified = Counter(queue for queue in released if queue in elsewhere)
    if notified and may_notify(engine, table):
        _notify(context, notified)


def _notify(context: ExecutionContext, counts: Counter[str]) -> None:
    try:
        with context.engine.begin() as connection:
            notify_sleepers(connection, context.table, counts)
    except Exception as error:  # they poll
        logger.warning("sleeping workers were not notified: %s", describe(error).summary)


def tell_of_child(context: ExecutionContext, claim: Claim) -> None:
    """A child process has performed this claim, or died of it, and the next attempt of its order key may be
    released."""
    if claim.order_key is None:
        return
    key, queues = claim.order_key, {claim.queue}
    try:
        queue = retry_transient(lambda: ordering.queue_of_released(context.engine, context.table, key))
        queues |= {queue} if queue is not None else set()
    except Exception as error:  # a poll finds it
        logger.warning("attempt %s: the next of its key is not looked for: %s", claim.id, type(error).__name__)
    context.released(queues)


class OutcomeSink(Protocol):
    """Counts the outcomes of a lane, on its thread."""

    def succeeded(self, claims: list[Claim]) -> None:
        """These attempts have succeeded, and the next ones of their order keys are released."""

    def released(self, claims: list[Claim]) -> None:
        """The calls of these claims were not started. The claims are released, parked, or left to a sweep."""

    def ended(self, claim: Claim, outcome: Outcome) -> None:
        """This attempt has ended otherwise, or is due again later."""


class CommittedOutcomes:
    """Outcomes that are committed and not reported yet: reporting uses the database, and waits until the lane holds no
    lock and no transaction."""

    def __init__(self, context: ExecutionContext, sink: OutcomeSink) -> None:
        self._context = context
        self._sink = sink
        self._succeeded: list[Claim] = []
        self._others: list[tuple[Claim, Settlement]] = []
        self._released: list[Claim] = []

    def add_succeeded(self, claims: list[Claim]) -> None:
        self._succeeded += claims

    def add_released(self, claims: Sequence[Claim]) -> None:
        """The calls of these claims were not started."""
        self._released += claims

    def add(self, claim: Claim, call: PreparedCall, settlement: Settlement) -> None:
        if isinstance(settlement.outcome, Succeeded):
            self._succeeded.append(claim)
        else:
            self._others.append((claim, settlement))

    def report(self) -> None:
        """Follow up on all outcomes, and report them."""
        released, self._released = self._released, []
        if released:
            self._sink.released(released)
        succeeded, self._succeeded = self._succeeded, []
        if succeeded:
            release_next_of_all(self._context, succeeded)
            tell_users(self._context, succeeded)
            self._context.hooks.succeeded(succeeded)
            self._sink.succeeded(succeeded)
        others, self._others = self._others, []
        for claim, settlement in others:
            self._sink.ended(claim, follow_up(self._context, claim, settlement))
