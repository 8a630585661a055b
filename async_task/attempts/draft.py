"""A call that is checked and sealed, and not yet in any table: what `create` and `create_many` are given, as values."""

import datetime as dt
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Table

from async_task.arguments.encoding import encode
from async_task.database.clock import statement_now
from async_task.database.numbering import numbered
from async_task.encryption.encryptors import (
    Encryptor,
    NullEncryptor,
    context_of,
    encryptor_named,
    register_encryptor,
    seal,
)
from async_task.errors import ConfigurationError, InvalidArguments
from async_task.schema.columns import uuid7
from async_task.schema.states import Status
from async_task.targets.call_settings import settings_text
from async_task.targets.keeping import Age, age
from async_task.targets.policies import check_priority, check_queue
from async_task.targets.registry import target_of
from async_task.targets.retry import Duration, Retry
from async_task.targets.target import Method


@dataclass(frozen=True, slots=True)
class Form:
    """What many calls may have in common, checked: their method, and the options by which they are written down."""

    method: Method
    sealer: Encryptor
    queue: str
    priority: int
    max_attempts: int | None
    call_settings: str | None

    @property
    def values(self) -> dict[str, Any]:
        """By column: the values that are the same for all of them."""
        return {
            "status": Status.PENDING,
            "target": self.method.target.name,
            "method_name": self.method.name,
            "encryptor": self.sealer.name,
            "queue": self.queue,
            "priority": self.priority,
            "num_attempts": 0,
            "num_errors": 0,
            "num_crashes": 0,
            "num_losses": 0,
            "max_attempts": self.max_attempts,
            "call_settings": self.call_settings,
        }


class Draft(NamedTuple):
    """An attempt that is checked and sealed, without what a table and the database's clock add."""

    form: Form
    id: uuid.UUID
    method_args: str
    idempotence_token: str | None
    scheduled_at: Any
    """With a `delay`, after `stamped`: the instant, or the expression by which the database's clock gives it."""
    expires_at: Any
    order_key: str | None
    delay: dt.timedelta | None = None
    seq: Any = None
    """With an order key: its number, or the expression by which the database gives it one."""
    columns: Mapping[str, Any] = {}
    """The values of the user's own columns, as they were given."""
    trace_context: str | None = None
    """The W3C traceparent that its row keeps. `create_many` gives all rows the same one beside these values."""

    @property
    def is_due_at_once(self) -> bool:
        return self.scheduled_at is None and not self.delay

    @property
    def values(self) -> dict[str, Any]:
        """All its values, by column; `due_at` is None where the database's clock gives it."""
        return self.form.values | self.own_values(None)

    @property
    def given_values(self) -> dict[str, Any]:
        """The same without None, for an INSERT of this row alone."""
        values = self.values | {"trace_context": self.trace_context}
        return {name: value for name, value in values.items() if value is not None}

    def own_values(self, now: object) -> dict[str, Any]:
        """By column, the values that are not in its form; `now`: the value for the instant at which it is written."""
        return {
            "id": self.id,
            "method_args": self.method_args,
            "idempotence_token": self.idempotence_token,
            "released": self.order_key is None,
            "scheduled_at": self.scheduled_at,
            "due_at": now if self.scheduled_at is None else self.scheduled_at,
            "expires_at": self.expires_at,
            "order_key": self.order_key,
            "arrived": None if self.order_key is None else True,
            "seq": self.seq,
        }

    def numbered(self, table: Table) -> "Draft":
        """With its number in the order of its key, if it has one: the order of insertion."""
        return self if self.order_key is None else self._replace(seq=numbered(table, self.order_key))

    def stamped(self, clock: Callable[[dt.timedelta], Any]) -> "Draft":
        """With the values that depend on the database's clock; `clock(d)` is the instant `d` from now."""
        delayed = self if self.delay is None else self._replace(scheduled_at=clock(self.delay))
        max_age = self.form.method.policy.max_age
        if max_age is None or self.expires_at is not None:
            return delayed
        if self.scheduled_at is not None:
            return self._replace(expires_at=_after(self.scheduled_at, max_age))
        return delayed._replace(expires_at=clock(max_age + (self.delay or NO_TIME)))


NO_TIME = dt.timedelta(0)
_NONE: Mapping[str, Any] = {}
Forms = dict[tuple[int, ...], tuple[Form, tuple[object, ...]]]
"""Forms of calls that are written down together, by the identities of the arguments; with the arguments, so that these
are not freed, and their identities not used again."""


def draft(
    forms: Forms,
    /,
    *,
    target: object,
    method_name: str | None = None,
    method_args: Mapping[str, Any] | None = None,
    idempotence_token: str | None = None,
    scheduled_at: dt.datetime | None = None,
    delay: Age | None = None,
    expires_at: dt.datetime | None = None,
    queue: str | None = None,
    priority: int | None = None,
    order_key: str | None = None,
    encryptor: Encryptor | str | None = None,
    max_attempts: int | None = None,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    columns: Mapping[str, Any] | None = None,
) -> Draft:
    """The arguments of `Attempt.create`, checked. Raises before anything is written."""
    common = (target, method_name, queue, priority, encryptor, max_attempts, retry, timeout)
    key = tuple(map(id, common))
    if key in forms:
        form = forms[key][0]
    else:
        form = _form(*common)
        forms[key] = form, common
    arguments = _mapping(method_args)
    form.method.signature.check(arguments)
    _check_own(idempotence_token, scheduled_at, expires_at, order_key)
    after = None if delay is None else _delay(delay, scheduled_at)
    attempt_id = uuid7()
    text = encode(arguments)
    if form.sealer.name != NullEncryptor.name:
        text = seal(text, form.sealer, context_of(attempt_id, form.method.target.name, form.method.name))
    return Draft(
        form, attempt_id, text, idempotence_token, scheduled_at, expires_at, order_key, after, columns=columns or _NONE
    )


def _form(
    target: object, method_name: object, queue: str | None, priority: int | None,
    encryptor: Encryptor | str | None, max_attempts: int | None, retry: Retry | None, timeout: Duration | None,
) -> Form:  # fmt: skip
    if method_name is not None and not isinstance(method_name, str):
        raise InvalidArguments(f"method_name: takes a text, not {type(method_name).__name__}")
    method = target_of(target).method(method_name)
    policy = method.policy
    _check_common(queue, priority, max_attempts)
    sealer = _encryptor(encryptor if encryptor is not None else policy.encryptor)
    if policy.only_encrypted and sealer.name == NullEncryptor.name:
        raise InvalidArguments(f"encryptor: {method.signature.label} takes encrypted arguments only, and none is given")
    return Form(
        method,
        sealer,
        queue if queue is not None else policy.queue or "default",
        priority if priority is not None else policy.priority or 0,
        max_attempts,
        settings_text(method, retry, timeout),
    )


def named_draft(verb: str, arguments: Mapping[str, Any], forms: Forms | None = None) -> Draft:
    """`draft(**arguments)`; raises InvalidArguments for an argument that it does not take, too."""
    try:
        return draft({} if forms is None else forms, **arguments)
    except TypeError as error:
        raise InvalidArguments(f"{verb}: {str(error).removeprefix('draft() ')}") from None


def from_now(after: dt.timedelta) -> Any:
    """`after` the instant at which the row is written, by the database's clock: the same in all columns of the row."""
    return statement_now(after.total_seconds())


def aware(moment: object, name: str) -> dt.datetime:
    """`moment`. Raises InvalidArguments unless it is an aware datetime."""
    if not isinstance(moment, dt.datetime):
        raise InvalidArguments(f"{name}: takes an aware datetime, not {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise InvalidArguments(
            f"{name}: a naive datetime names no instant; give it a time zone: .replace(tzinfo=...) or datetime.now(UTC)"
        )
    try:
        moment.astimezone(dt.UTC)
    except OverflowError:
        raise InvalidArguments(f"{name}: in UTC it is outside the years 1 to 9999") from None
    return moment


def _check_own(token: object, scheduled_at: object, expires_at: object, key: object) -> None:
    if token is not None:
        _check_text(token, "idempotence_token")
    if scheduled_at is not None:
        aware(scheduled_at, "scheduled_at")
    if expires_at is not None:
        aware(expires_at, "expires_at")
    if key is not None:
        _check_text(key, "order_key")


def _delay(delay: object, scheduled_at: object) -> dt.timedelta:
    if scheduled_at is not None:
        raise InvalidArguments("delay: give a delay or scheduled_at, not both")
    return length(delay, "delay")


def length(given: Any, name: str) -> dt.timedelta:
    """A duration that may be a text, like "2h". Raises InvalidArguments, naming `name`."""
    try:
        return age(given, name=name)
    except ConfigurationError as error:
        raise InvalidArguments(str(error)) from None


def _check_text(text: object, name: str) -> None:
    if not (isinstance(text, str) and 0 < len(text) <= 255 and text.isprintable()):
        raise InvalidArguments(f"{name}: takes a printable text of 1 to 255 characters")


def _check_common(queue: object, priority: object, max_attempts: object) -> None:
    if max_attempts is not None and (type(max_attempts) is not int or not 1 <= max_attempts <= 32767):
        raise InvalidArguments("max_attempts: takes a whole number from 1 to 32767")
    try:
        check_queue(queue)
        check_priority(priority)
    except ConfigurationError as error:
        raise InvalidArguments(str(error)) from None


def _encryptor(given: Encryptor | str | None) -> Encryptor:
    if given is None:
        return encryptor_named(NullEncryptor.name)
    return encryptor_named(given) if isinstance(given, str) else register_encryptor(given)


def _mapping(method_args: object) -> dict[str, Any]:
    if method_args is None:
        return {}
    if not isinstance(method_args, Mapping):
        raise InvalidArguments(f"method_args: takes a mapping of names to values, not {type(method_args).__name__}")
    return dict(method_args)


def _after(since: dt.datetime, age: dt.timedelta) -> dt.datetime:
    try:
        return since + age
    except OverflowError:
        raise InvalidArguments("scheduled_at: the target's max_age after it is past the year 9999") from None
