"""What follows the calls of an application, for a tracer or a meter: `AsyncTask(telemetry=...)`."""

import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, Literal, Protocol, Self, TypeVar

from sqlalchemy import Table

from async_task.attempts.draft import Draft
from async_task.attempts.tolerated import Tolerated
from async_task.outcomes import Outcome
from async_task.queue.hooks import CallFacts, Observer
from async_task.targets.target import call_name

T = TypeVar("T")
LONGEST_TRACE_CONTEXT = 64
"""Characters of the column."""
Verb = Literal["create", "ensure", "create_many"]


@dataclass(frozen=True, slots=True)
class CallsToWrite:
    """Calls that are written down together; never their arguments. `number`: how many. `target`, `method`, `queue`:
    those that all of them have, else None. `attempt_id`: None for `create_many`."""

    verb: Verb
    number: int
    target: str | None
    method: str | None
    queue: str | None
    attempt_id: uuid.UUID | None = None

    @classmethod
    def of(cls, verb: Verb, drafts: Sequence[Draft]) -> Self:
        """Those of the drafts. `verb`: by which they are written."""
        # By identity: `create_many` makes one form for all calls that are alike.
        forms = list({id(one.form): one.form for one in drafts}.values())
        targets = {one.method.target.name for one in forms}
        methods = {(one.method.target.name, one.method.name) for one in forms}
        queues = {one.queue for one in forms}
        return cls(
            verb,
            len(drafts),
            targets.pop() if len(targets) == 1 else None,
            methods.pop()[1] if len(methods) == 1 else None,
            queues.pop() if len(queues) == 1 else None,
            None if verb == "create_many" else drafts[0].id,
        )

    @property
    def call(self) -> str | None:
        """What is called: `shop.orders.fulfill`; None if they are several."""
        return None if self.target is None or self.method is None else call_name(self.target, self.method)


class Writing(Protocol):
    """One writing of calls."""

    @property
    def trace_context(self) -> str | None:
        """The W3C traceparent that the rows keep, of up to 64 characters."""
        ...

    def found(self, attempt_id: uuid.UUID) -> None:
        """Nothing was written: `ensure` has found this attempt."""

    def committed(self) -> None:
        """The transaction has committed. On a Core connection: they are written, and it may still roll back."""


class Telemetry(Observer, Protocol):
    """What `AsyncTask(telemetry=...)` takes, such as `async_task.integrations.opentelemetry.OpenTelemetry`."""

    def writing(self, calls: CallsToWrite) -> AbstractContextManager[Writing]:
        """A context manager in which these calls are written into the transaction of the caller."""
        ...


class GuardedTelemetry:
    """Telemetry that fails no call and no writing, whatever `telemetry` raises: they go on without its span."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._tolerated = Tolerated("telemetry")

    def writing(self, calls: CallsToWrite) -> "GuardedWriting":
        return GuardedWriting(partial(self._telemetry.writing, calls), self._tolerated)

    def performing(self, facts: CallFacts) -> "Guarded[object]":
        return Guarded(partial(self._telemetry.performing, facts), self._tolerated)

    def settled(self, facts: CallFacts, outcome: Outcome) -> None:
        with self._tolerated:
            self._telemetry.settled(facts, outcome)

    def crashed(self, facts: CallFacts, outcome: Outcome) -> None:
        with self._tolerated:
            self._telemetry.crashed(facts, outcome)

    def flush(self) -> None:
        with self._tolerated:
            self._telemetry.flush()


class Guarded(Generic[T]):
    """The context manager that `make` makes. Neither entering nor leaving it raises. It swallows nothing of what is
    raised inside of it."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]], tolerated: Tolerated) -> None:
        self._make, self._tolerated = make, tolerated
        self._entered: AbstractContextManager[T] | None = None
        self._given: T | None = None

    def __enter__(self) -> Self:
        with self._tolerated:
            manager = self._make()
            self._given = manager.__enter__()
            self._entered = manager
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._entered is None:
            return
        with self._tolerated:
            try:
                self._entered.__exit__(kind, error, trace)
            except BaseException as raised:
                if raised is not error:
                    raise


class GuardedWriting(Guarded[Writing]):
    """The same for a writing, and the writing that it is entered for."""

    @property
    def trace_context(self) -> str | None:
        with self._tolerated:
            found: object = None if self._given is None else self._given.trace_context
            if isinstance(found, str) and len(found) <= LONGEST_TRACE_CONTEXT:
                return found
            if found is not None:
                raise ValueError("a trace context that is no traceparent")
        return None

    def found(self, attempt_id: uuid.UUID) -> None:
        with self._tolerated:
            if self._given is not None:
                self._given.found(attempt_id)

    def committed(self) -> None:
        with self._tolerated:
            if self._given is not None:
                self._given.committed()


_telemetry: dict[Table, GuardedTelemetry] = {}


def set_telemetry(attempts: Table, telemetry: GuardedTelemetry | None) -> None:
    """From now on this process tells it of the calls that are written into this table; None: nobody."""
    if telemetry is None:
        _telemetry.pop(attempts, None)
    else:
        _telemetry[attempts] = telemetry


def is_traced(attempts: Table) -> bool:
    """Whether this process tells anybody of the calls that are written into this table."""
    return attempts in _telemetry


def traced(attempts: Table, verb: Verb, drafts: Sequence[Draft], write: Callable[[Writing | None], T]) -> T:
    """`write(writing)`, which writes these calls; `writing` is None without telemetry."""
    telemetry = _telemetry.get(attempts)
    if telemetry is None or not drafts:
        return write(None)
    with telemetry.writing(CallsToWrite.of(verb, drafts)) as writing:
        return write(writing)
