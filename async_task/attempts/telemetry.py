"""What follows the calls of an application, for a tracer or a meter: `AsyncTask(telemetry=...)`."""

import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeVar

from sqlalchemy import Table

from async_task.attempts.draft import Draft
from async_task.queue.hooks import Observer
from async_task.targets.target import call_name

T = TypeVar("T")
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


_telemetry: dict[Table, Telemetry] = {}


def set_telemetry(attempts: Table, telemetry: Telemetry | None) -> None:
    """From now on this process tells it of the calls that are written into this table; None: nobody."""
    if telemetry is None:
        _telemetry.pop(attempts, None)
    else:
        _telemetry[attempts] = telemetry


def traced(attempts: Table, verb: Verb, drafts: Sequence[Draft], write: Callable[[Writing | None], T]) -> T:
    """`write(writing)`, which writes these calls; `writing` is None without telemetry."""
    telemetry = _telemetry.get(attempts)
    if telemetry is None or not drafts:
        return write(None)
    with telemetry.writing(CallsToWrite.of(verb, drafts)) as writing:
        return write(writing)
