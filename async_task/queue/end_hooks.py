"""The hooks of an application that hear of final failures: `AsyncTask(on_failed=..., on_expired=...)`.

Whoever has committed the end of an attempt reports it here once: a worker, a batch, `perform`, or a sweep. The end is
logged, and then its hook is called. What a hook raises is logged, and changes nothing.
"""

import datetime as dt
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from async_task.error_text import describe
from async_task.outcomes import Expired, Failed
from async_task.queue.final_failures import FinalFailure
from async_task.schema.states import Status
from async_task.targets.target import call_name

logger = logging.getLogger("async_task")


@dataclass(frozen=True, slots=True)
class CallFacts:
    """The facts of a call, as a hook is given them; never its arguments. `number`: of its last try, 0 if it was never
    started. Instants are of the database's clock, in UTC."""

    id: uuid.UUID
    target: str
    method: str
    queue: str
    number: int
    created_at: dt.datetime
    due_at: dt.datetime

    @property
    def call(self) -> str:
        """What was called: `shop.orders.fulfill`."""
        return call_name(self.target, self.method)


OnFailed: TypeAlias = Callable[[CallFacts, Failed], object]
OnExpired: TypeAlias = Callable[[CallFacts, Expired], object]


@dataclass(frozen=True, slots=True)
class EndHooks:
    """None where there is no hook."""

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


NO_HOOKS = EndHooks()


def _facts(final: FinalFailure) -> CallFacts:
    return CallFacts(
        final.attempt_id, final.target, final.method_name, final.queue, final.tries, final.created_at, final.due_at
    )
