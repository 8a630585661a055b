"""Writing a call down: checked, encoded, sealed, and added to the caller's own transaction. Nothing here awaits."""

import datetime as dt
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Table, inspect, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Mapper, Session

from async_task.arguments.encoding import encode
from async_task.attempts.ambient import ambient_session, hold
from async_task.database.clock import clock_now
from async_task.database.dialects import MYSQL, numbered
from async_task.database.sessions import blocking_session, sync_session
from async_task.encryption.encryptors import (
    Encryptor,
    NullEncryptor,
    context_of,
    encryptor_named,
    register_encryptor,
    seal,
)
from async_task.errors import AsyncTaskError, ConfigurationError, InvalidArguments
from async_task.schema.columns import uuid7
from async_task.schema.states import Status
from async_task.targets.policies import check_priority, check_queue
from async_task.targets.registry import target_of
from async_task.targets.target import Method
from async_task.wakeup.commit_hooks import wake_after_commit

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Form:
    """What many calls may have in common, checked: their method, and how they are written down."""

    method: Method
    sealer: Encryptor
    queue: str
    priority: int
    max_attempts: int | None

    @property
    def values(self) -> dict[str, Any]:
        """By column: what is the same for all of them."""
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
            "max_attempts": self.max_attempts,
        }


class Draft(NamedTuple):
    """An attempt that is checked and sealed, but on no table yet, and on no clock."""

    form: Form
    id: uuid.UUID
    method_args: str
    idempotence_token: str | None
    scheduled_at: dt.datetime | None
    expires_at: dt.datetime | None
    order_key: str | None
    seq: Any = None
    """With an order key: its place, or what asks the database for it."""

    @property
    def is_due_at_once(self) -> bool:
        return self.scheduled_at is None

    @property
    def values(self) -> dict[str, Any]:
        """All that is said of it, by column; due_at is None where the database's clock shall say it."""
        return self.form.values | self.own_values(None)

    @property
    def given_values(self) -> dict[str, Any]:
        """The same without what is None, for an INSERT of this row alone."""
        return {name: value for name, value in self.values.items() if value is not None}

    def own_values(self, now: object) -> dict[str, Any]:
        """By column, what its form does not say; `now`: what stands for the instant at which it is written."""
        return {
            "id": self.id,
            "method_args": self.method_args,
            "idempotence_token": self.idempotence_token,
            "released": self.order_key is None,
            "scheduled_at": self.scheduled_at,
            "due_at": self.scheduled_at or now,
            "expires_at": self.expires_at,
            "order_key": self.order_key,
            "arrived": None if self.order_key is None else True,
            "seq": self.seq,
        }

    def numbered(self, table: Table) -> "Draft":
        """With its place in the order of its key, if it has one: that in which rows are inserted."""
        return self if self.order_key is None else self._replace(seq=numbered(table, self.order_key))

    def stamped(self, clock: Callable[[dt.timedelta], Any]) -> "Draft":
        """With what depends on the database's clock; `clock(d)` is the instant `d` from now."""
        max_age = self.form.method.policy.max_age
        if max_age is None or self.expires_at is not None:
            return self
        since = self.scheduled_at
        return self._replace(expires_at=clock(max_age) if since is None else _after(since, max_age))


Forms = dict[tuple[int, ...], tuple[Form, tuple[object, ...]]]
"""Of the calls that are written down together, by the identity of what each was made of; held, so that it stays."""


def draft(
    forms: Forms,
    /,
    *,
    target: object,
    method_name: str | None = None,
    method_args: Mapping[str, Any] | None = None,
    idempotence_token: str | None = None,
    scheduled_at: dt.datetime | None = None,
    expires_at: dt.datetime | None = None,
    queue: str | None = None,
    priority: int | None = None,
    order_key: str | None = None,
    encryptor: Encryptor | str | None = None,
    max_attempts: int | None = None,
) -> Draft:
    """What `Attempt.create` takes, checked. Raises before anything is written."""
    common = (target, method_name, queue, priority, encryptor, max_attempts)
    key = tuple(map(id, common))
    if key in forms:
        form = forms[key][0]
    else:
        form = _form(*common)
        forms[key] = form, common
    arguments = _mapping(method_args)
    form.method.signature.check(arguments)
    _check_own(idempotence_token, scheduled_at, expires_at, order_key)
    attempt_id = uuid7()
    text = encode(arguments)
    if form.sealer.name != NullEncryptor.name:
        text = seal(text, form.sealer, context_of(attempt_id, form.method.target.name, form.method.name))
    return Draft(form, attempt_id, text, idempotence_token, scheduled_at, expires_at, order_key)


def _form(
    target: object, method_name: str | None, queue: str | None, priority: int | None,
    encryptor: Encryptor | str | None, max_attempts: int | None,
) -> Form:  # fmt: skip
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
    )


def add(model: type[M], made: Draft, session: object | None) -> M:
    """A new row of `model` in the caller's session: `session`, or the one transaction that is open here."""
    own = ambient_session() if session is None else sync_session(session)
    mapper: Any = inspect(model)
    values = made.numbered(mapper.base_mapper.local_table).stamped(from_now).given_values
    values["encoded_args"] = values.pop("method_args")
    attempt = model(**values)
    own.add(attempt)
    if session is None:
        hold(own)
    if made.is_due_at_once:
        wake_after_commit(own, mapper, {made.form.queue: 1})
    return attempt


def ensure(model: type[Any], arguments: Mapping[str, Any], session: object | None) -> Any:
    """The attempt with this target, method and token, created unless it exists. The caller's transaction lives on."""
    made = named_draft("ensure", {name: value for name, value in arguments.items() if name != "session"})
    if made.idempotence_token is None:
        raise InvalidArguments("ensure: without idempotence_token= nothing says which attempt is the same one")
    mapper, table = single_table(model, "ensure")
    asked = session if session is not None else arguments.get("session")
    own = ambient_session() if asked is None else blocking_session(asked)
    own.flush()
    there = _insert_unless_there(own, mapper, table, made)
    if there.id == made.id:
        if asked is None:
            hold(own)
        if made.is_due_at_once:
            wake_after_commit(own, mapper, {made.form.queue: 1})
    return there


def _insert_unless_there(own: Session, mapper: Mapper[Any], table: Table, made: Draft) -> Any:
    token = ("target", "method_name", "idempotence_token")
    # Of any class in the table: it is the table that knows a token once.
    given = made.values
    find: Any = select(mapper.base_mapper.class_).where(*(table.c[name] == given[name] for name in token))
    if (there := _under_a_former_name(own, mapper, table, made)) is not None:
        return there
    values = made.numbered(table).stamped(from_now).given_values | discriminator(mapper)
    connection = own.connection(bind_arguments={"mapper": mapper})
    if connection.dialect.name in MYSQL:
        # ON DUPLICATE KEY waits for whoever performs the row; a plain look does not.
        if (there := own.scalars(find).first()) is not None:
            return there
        connection.execute(mysql.insert(table).values(values).on_duplicate_key_update(id=table.c.id))
        return own.scalars(find.with_for_update(read=True)).one()
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    unless_there = insert(table).values(values).on_conflict_do_nothing(
        index_elements=token, index_where=table.c.idempotence_token.is_not(None)
    )  # fmt: skip
    for _ in range(3):  # the winner may be pruned between our insert and our look
        connection.execute(unless_there)
        if (there := own.scalars(find).first()) is not None:
            return there
    raise AsyncTaskError("ensure: the attempt with this token appeared and vanished three times; try again")


def _under_a_former_name(own: Session, mapper: Mapper[Any], table: Table, made: Draft) -> Any:
    """The attempt with this method and token from before its target was renamed; None without one."""
    method = made.form.method
    former = method.target.aliases
    if not former:
        return None
    same = (table.c.method_name == method.name, table.c.idempotence_token == made.idempotence_token)
    return own.scalars(select(mapper.base_mapper.class_).where(table.c.target.in_(former), *same)).first()


def named_draft(verb: str, arguments: Mapping[str, Any], forms: Forms | None = None) -> Draft:
    """`draft(**arguments)`, where a name that it does not take is InvalidArguments too."""
    try:
        return draft({} if forms is None else forms, **arguments)
    except TypeError as error:
        raise InvalidArguments(f"{verb}: {str(error).removeprefix('draft() ')}") from None


def from_now(after: dt.timedelta) -> Any:
    """So long after the instant at which it is written, by the database's clock."""
    return clock_now(after.total_seconds())


def given(session: object | None) -> Session | None:
    """As `blocking_session`, where it may be left out."""
    return None if session is None else blocking_session(session)


def aware(moment: object, name: str) -> dt.datetime:
    """`moment`, refused with InvalidArguments when it is no datetime, or a naive one."""
    if not isinstance(moment, dt.datetime):
        raise InvalidArguments(f"{name}: takes an aware datetime, not {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise InvalidArguments(
            f"{name}: a naive datetime names no instant; give it a time zone: .replace(tzinfo=...) or datetime.now(UTC)"
        )
    try:
        moment.astimezone(dt.UTC)
    except OverflowError:
        raise InvalidArguments(f"{name}: in UTC it lies outside of the years 1 to 9999") from None
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


def single_table(model: type[Any], verb: str) -> tuple[Mapper[Any], Table]:
    """The model's mapper and its one table. Raises ConfigurationError where there are two."""
    mapper: Mapper[Any] = inspect(model)
    table = mapper.local_table
    if table is not mapper.base_mapper.local_table:
        raise ConfigurationError(
            f"{verb}: {model.__name__} lies in two tables (joined inheritance); use create() for it"
        )
    assert isinstance(table, Table)
    return mapper, table


def discriminator(mapper: Mapper[Any]) -> dict[str, Any]:
    """The column that says of which class a row is, and its value; empty without inheritance."""
    if mapper.polymorphic_on is None or mapper.polymorphic_identity is None:
        return {}
    return {str(mapper.polymorphic_on.key): mapper.polymorphic_identity}
