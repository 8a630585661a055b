"""The hooks of an application: round each call (`around`), and of the ends of attempts (`on_failed`, `on_expired`).

Whoever has committed the end of an attempt reports it here once: a worker, a batch, `perform`, or a sweep. The end is
logged, and then its hook is called. What a hook raises is logged, and changes nothing.
"""

import datetime as dt
import logging
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from async_task.database.clock import UnreadInstant
from async_task.error_text import describe
from async_task.outcomes import Expired, Failed
from async_task.queue.claim import Claim
from async_task.queue.final_failures import FinalFailure
from async_task.schema.states import Status
from async_task.targets.target import call_name

logger = logging.getLogger("async_task")


@dataclass(frozen=True, slots=True)
class CallFacts:
    """The facts of a call, as a hook is given them; never its arguments. `number`: of its last try, 0 if it was never
    started. Instants are of the database's clock, in UTC. `trace_context`: the W3C traceparent of the transaction that
    wrote the call down; None if it had none."""

    id: uuid.UUID
    target: str
    method: str
    queue: str
    number: int
    created_at: dt.datetime
    due_at: dt.datetime
    trace_context: str | None = None

    @property
    def call(self) -> str:
        """What was called: `shop.orders.fulfill`."""
        return call_name(self.target, self.method)


Around: TypeAlias = Callable[
    [CallFacts], AbstractContextManager[Any, bool | None] | AbstractAsyncContextManager[Any, bool | None]
]
"""Makes the context manager in which a call is made."""
OnFailed: TypeAlias = Callable[[CallFacts, Failed], object]
OnExpired: TypeAlias = Callable[[CallFacts, Expired], object]


@dataclass(frozen=True, slots=True)
class Hooks:
    """`around`: the first is the outermost. The others are None where there is no hook."""

    around: tuple[Around, ...] = ()
    on_failed: OnFailed | None = None
    on_expired: OnExpired | None = None

    def report(self, final: FinalFailure, error: BaseException | None = None) -> None:
        """Log a final failure that is committed, and call its hook. `error`: what its call raised."""
        final.log(error)
        self.call(final)

    def call(self, final: FinalFailure) -> None:
        """Call the hook of a final failure that is committed."""
        is_failed = final.status is Status.FAILED
        hook: Callable[[CallFacts, Any], object] | None = self.on_failed if is_failed else self.on_expired
        if hook is None:
            return
        outcome = (Failed if is_failed else Expired)(final.attempt_id, final.said)
        try:
            hook(_facts(final), outcome)
        except (Exception, SystemExit) as raised:
            name = "on_failed" if is_failed else "on_expired"
            logger.error("%s raised %s for attempt %s", name, describe(raised).summary, final.attempt_id)


NO_HOOKS = Hooks()


def facts_of(claim: Claim) -> CallFacts:
    """The facts of a claimed call."""
    created_at, due_at = UnreadInstant.read(claim.created_at), UnreadInstant.read(claim.due_at)
    return CallFacts(
        claim.id, claim.target, claim.method_name, claim.queue, claim.number, created_at, due_at, claim.trace_context
    )


def _facts(final: FinalFailure) -> CallFacts:
    return CallFacts(
        final.attempt_id, final.target, final.method_name, final.queue, final.tries, final.created_at, final.due_at,
        final.trace_context,
    )  # fmt: skip
