"""The hooks of an application: round each call (`around`), and of the outcomes of tries (`on_succeeded`, ...).

Whoever has committed an outcome reports it here once: a worker, a batch, `perform`, a sweep, or a supervisor. What a
hook of an outcome raises is logged, and changes nothing.
"""

import datetime as dt
import inspect
import logging
import signal
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from sqlalchemy import Table

from async_task.database.clock import UnreadInstant
from async_task.error_text import describe
from async_task.outcomes import Expired, Failed, Outcome, Retried, Succeeded
from async_task.queue.claim import Claim
from async_task.queue.final_failures import FinalFailure
from async_task.schema.states import Status
from async_task.targets.target import call_name

logger = logging.getLogger("async_task")
FACTS = (
    "id", "target", "method_name", "queue", "num_attempts", "created_at", "due_at", "trace_context", "attempted_at",
)  # fmt: skip
"""The columns of the facts of a call, in the order of `CallFacts`."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """The facts of a call, as a hook is given them; never its arguments. `number`: of its last try, 0 if it was never
    started. Instants are of the database's clock, in UTC. `trace_context`: the W3C traceparent of the transaction that
    wrote the call down; None if it had none. `started_at`: when the last try was claimed; None if it was never started.
    """

    id: uuid.UUID
    target: str
    method: str
    queue: str
    number: int
    created_at: dt.datetime
    due_at: dt.datetime
    trace_context: str | None = None
    started_at: dt.datetime | None = None

    @property
    def call(self) -> str:
        """What was called: `shop.orders.fulfill`."""
        return call_name(self.target, self.method)


Around: TypeAlias = Callable[
    [CallFacts], AbstractContextManager[Any, bool | None] | AbstractAsyncContextManager[Any, bool | None]
]
"""Makes the context manager in which a call is made."""
OnSucceeded: TypeAlias = Callable[[CallFacts, Succeeded], object]
OnRetried: TypeAlias = Callable[[CallFacts, Retried], object]
OnFailed: TypeAlias = Callable[[CallFacts, Failed], object]
OnExpired: TypeAlias = Callable[[CallFacts, Expired], object]
OnCrashed: TypeAlias = Callable[[CallFacts, Retried | Failed], object]


class Observer(Protocol):
    """What hears of each try and each outcome, outside of the hooks: telemetry."""

    def performing(self, facts: CallFacts) -> AbstractContextManager[object]:
        """A context manager in which a call is made, outside of the hooks and of its time limit. It is left with the
        error of the try, and must leave contextvars as they were."""
        ...

    def settled(self, facts: CallFacts, outcome: Outcome) -> None:
        """This outcome is committed: of a try, also one that is parked, superseded or canceled; or of a sweep."""

    def crashed(self, facts: CallFacts, outcome: Outcome) -> None:
        """A try was lost with its process: it is `Retried`, or `Failed`, of which `settled` is called too."""

    def flush(self) -> None:
        """Write what is buffered. Called before a child process ends, which runs no exit handlers, and in one that
        performs single calls after each of them; it is left alone after 2 s."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """`around`: the first is the outermost. The others are None where there is no hook. `performing`: of telemetry,
    outside of `around`; nothing of it raises."""

    around: tuple[Around, ...] = ()
    on_succeeded: OnSucceeded | None = None
    on_retried: OnRetried | None = None
    on_failed: OnFailed | None = None
    on_expired: OnExpired | None = None
    on_crashed: OnCrashed | None = None
    observer: Observer | None = None
    performing: Callable[[CallFacts], AbstractContextManager[object]] | None = None

    @property
    def are_round_calls(self) -> bool:
        return bool(self.around) or self.performing is not None

    def succeeded(self, claims: Sequence[Claim]) -> None:
        """These attempts have succeeded, and that is committed."""
        if self.on_succeeded is None and self.observer is None:
            return
        for claim in claims:
            self._tell("on_succeeded", self.on_succeeded, facts_of(claim), Succeeded(claim.id))

    def retried(self, claim: Claim, outcome: Retried) -> None:
        """This attempt is due again later, and that is committed."""
        if self.on_retried is not None or self.observer is not None:
            self._tell("on_retried", self.on_retried, facts_of(claim), outcome)

    def ended(self, final: FinalFailure) -> None:
        """This final failure is committed, and logged."""
        facts = _facts_of_final(final)
        if final.status is Status.FAILED:
            self._tell("on_failed", self.on_failed, facts, Failed(final.attempt_id, final.said))
        else:
            self._tell("on_expired", self.on_expired, facts, Expired(final.attempt_id, final.said))

    def given_up(self, final: FinalFailure) -> None:
        """The operation that this attempt polls is given up; the outcome of the attempt is another one."""
        if self.on_failed is not None:
            _call("on_failed", self.on_failed, _facts_of_final(final), Failed(final.attempt_id, final.said))

    def settled(self, claim: Claim, outcome: Outcome) -> None:
        """The try of this claim has an outcome of which no hook hears."""
        if self.observer is not None:
            _call("telemetry", self.observer.settled, facts_of(claim), outcome)

    def crashed(self, claim: Claim, outcome: Retried | Failed) -> None:
        """The call of this claim has killed a process of its own, and that is committed."""
        self._tell_of_crash(facts_of(claim), outcome)

    def lost(self, row: Any, how: str) -> None:
        """The try of the attempt of this row, which has the columns `FACTS`, was lost with its worker: it is due again
        at once, and that is committed. `how`: a sentence about the worker."""
        self._tell_of_crash(_facts_of_row(row), Retried(row.id, dt.timedelta(0), how))

    def flush(self) -> None:
        """Write what telemetry has buffered."""
        if self.observer is not None:
            self.observer.flush()

    def _tell(
        self, name: str, hook: Callable[[CallFacts, Any], object] | None, facts: CallFacts, outcome: Outcome
    ) -> None:
        if self.observer is not None:
            _call("telemetry", self.observer.settled, facts, outcome)
        if hook is not None:
            _call(name, hook, facts, outcome)

    def _tell_of_crash(self, facts: CallFacts, outcome: Retried | Failed) -> None:
        if self.observer is not None:
            _call("telemetry", self.observer.crashed, facts, outcome)
        if self.on_crashed is not None:
            _call("on_crashed", self.on_crashed, facts, outcome)


NO_HOOKS = Hooks()
_around: dict[Table, Hooks] = {}


def set_around(attempts: Table, hooks: Hooks) -> None:
    """From now on those of these that are round calls are for whoever performs these attempts without an application:
    the tests of a user."""
    _around[attempts] = Hooks(hooks.around, performing=hooks.performing)


def around_of(attempts: Table) -> Hooks:
    """Those that the last application of these attempts in this process has."""
    return _around.get(attempts, NO_HOOKS)


def facts_of(claim: Claim) -> CallFacts:
    """The facts of a claimed call."""
    created_at, due_at = UnreadInstant.read(claim.created_at), UnreadInstant.read(claim.due_at)
    return CallFacts(
        claim.id, claim.target, claim.method_name, claim.queue, claim.number, created_at, due_at, claim.trace_context,
        claim.claimed_at,
    )  # fmt: skip


def _facts_of_final(final: FinalFailure) -> CallFacts:
    return CallFacts(
        final.attempt_id, final.target, final.method_name, final.queue, final.tries, final.created_at, final.due_at,
        final.trace_context, final.started_at,
    )  # fmt: skip


def _facts_of_row(row: Any) -> CallFacts:
    return CallFacts(*(getattr(row, name) for name in FACTS))


def _call(name: str, hook: Callable[[CallFacts, Any], object], facts: CallFacts, outcome: Outcome) -> None:
    try:
        answer = hook(facts, outcome)
        if inspect.iscoroutine(answer):
            answer.close()
            logger.error("%s returned a coroutine for attempt %s, and takes a plain function", name, facts.id)
    except BaseException as raised:
        if is_interrupt(raised):
            raise
        logger.error("%s raised %s for attempt %s", name, describe(raised).summary, facts.id)


def is_interrupt(raised: BaseException) -> bool:
    """Whether a hook may have been interrupted by Ctrl-C, and not have raised this by itself: only the main thread is,
    and not while a handler of ours is in place, which raises nothing."""
    if not isinstance(raised, KeyboardInterrupt) or threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGINT)
    return callable(handler) and getattr(handler, "__module__", None) != "async_task.worker.signals"
