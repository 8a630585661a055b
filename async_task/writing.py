"""Writing a call down: checked, encoded, sealed, and added to the caller's own transaction. Nothing here awaits."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Table, inspect, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Mapper, Session

from async_task.ambient import ambient_session, hold
from async_task.arrivals import arrive
from async_task.dialects import MYSQL, numbered, written
from async_task.encoding import encode
from async_task.encryption import Encryptor, NullEncryptor, context_of, encryptor_named, know, seal
from async_task.errors import AsyncTaskError, ConfigurationError, InvalidArguments
from async_task.identity import uuid7
from async_task.policies import check_priority, check_queue
from async_task.sessions import blocking_session, sync_session
from async_task.status import Status
from async_task.targets import Method, target_named, target_of

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Draft:
    """An attempt that is checked and sealed, but on no table yet: `values` by column, `max_age` still to be stamped."""

    values: dict[str, Any]
    max_age: dt.timedelta | None

    @property
    def is_due_at_once(self) -> bool:
        return self.values["scheduled_at"] is None

    @property
    def order_key(self) -> str | None:
        key: str | None = self.values.get("order_key")
        return key

    def numbered(self, table: Table) -> "Draft":
        """With its place in the order of its key, if it has one: that in which rows are inserted."""
        if self.order_key is None:
            return self
        return replace(self, values=self.values | {"seq": numbered(table, self.order_key)})

    def stamped(self, clock: Callable[[dt.timedelta], Any]) -> dict[str, Any]:
        """The values with what depends on the database's clock; `clock(d)` is the instant `d` from now."""
        values = dict(self.values)
        if self.max_age is not None and values["expires_at"] is None:
            since = values["scheduled_at"]
            values["expires_at"] = clock(self.max_age) if since is None else _after(since, self.max_age)
        return values


def draft(
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
    called = target_of(target)
    method = called.method(method_name)
    return draft_call(
        method, _mapping(method_args), idempotence_token=idempotence_token, scheduled_at=scheduled_at,
        expires_at=expires_at, queue=queue, priority=priority, order_key=order_key, encryptor=encryptor,
        max_attempts=max_attempts,
    )  # fmt: skip


def draft_call(
    method: Method,
    arguments: dict[str, Any],
    *,
    idempotence_token: str | None = None,
    scheduled_at: dt.datetime | None = None,
    expires_at: dt.datetime | None = None,
    queue: str | None = None,
    priority: int | None = None,
    order_key: str | None = None,
    encryptor: Encryptor | str | None = None,
    max_attempts: int | None = None,
) -> Draft:
    """As `draft`, for a method that is known already."""
    method.signature.check(arguments)
    _check_options(idempotence_token, scheduled_at, expires_at, queue, priority, order_key, max_attempts)
    sealer = _encryptor(encryptor if encryptor is not None else method.policy.encryptor)
    if method.policy.only_encrypted and sealer.name == NullEncryptor.name:
        raise InvalidArguments(f"encryptor: {method.signature.label} takes encrypted arguments only, and none is given")
    attempt_id = uuid7()
    values = {
        "id": attempt_id,
        "status": Status.PENDING,
        "target": method.target.name,
        "method_name": method.name,
        "method_args": seal(encode(arguments), sealer, context_of(attempt_id, method.target.name, method.name)),
        "encryptor": sealer.name,
        "idempotence_token": idempotence_token,
        "queue": queue if queue is not None else method.policy.queue or "default",
        "priority": priority if priority is not None else method.policy.priority or 0,
        "released": order_key is None,
        "num_attempts": 0,
        "num_errors": 0,
        "num_crashes": 0,
        "max_attempts": max_attempts,
        "scheduled_at": scheduled_at,
        "expires_at": expires_at,
    }
    if scheduled_at is not None:
        values["due_at"] = scheduled_at
    if order_key is not None:
        values |= {"order_key": order_key, "arrived": True}
    return Draft(values, method.policy.max_age)


def add(model: type[M], made: Draft, session: object | None) -> M:
    """A new row of `model` in the caller's session: `session`, or the one transaction that is open here."""
    own = ambient_session() if session is None else sync_session(session)
    mapper: Any = inspect(model)
    values = made.numbered(mapper.base_mapper.local_table).stamped(lambda after: written(after.total_seconds()))
    values["encoded_args"] = values.pop("method_args")
    attempt = model(**values)
    own.add(attempt)
    if session is None:
        hold(own)
    if made.is_due_at_once:
        arrive(own, mapper, {made.values["queue"]: 1})
    return attempt


def ensure(model: type[Any], arguments: Mapping[str, Any], session: object | None) -> Any:
    """The attempt with this target, method and token, created unless it exists. The caller's transaction lives on."""
    made = named_draft("ensure", {name: value for name, value in arguments.items() if name != "session"})
    if made.values["idempotence_token"] is None:
        raise InvalidArguments("ensure: without idempotence_token= nothing says which attempt is the same one")
    mapper, table = single_table(model, "ensure")
    asked = session if session is not None else arguments.get("session")
    own = ambient_session() if asked is None else blocking_session(asked)
    own.flush()
    there = _insert_unless_there(own, mapper, table, made)
    if there.id == made.values["id"]:
        if asked is None:
            hold(own)
        if made.is_due_at_once:
            arrive(own, mapper, {made.values["queue"]: 1})
    return there


def _insert_unless_there(own: Session, mapper: Mapper[Any], table: Table, made: Draft) -> Any:
    token = ("target", "method_name", "idempotence_token")
    # Of any class in the table: it is the table that knows a token once.
    find: Any = select(mapper.base_mapper.class_).where(*(table.c[name] == made.values[name] for name in token))
    if (there := _under_a_former_name(own, mapper, table, made)) is not None:
        return there
    values = made.numbered(table).stamped(lambda after: written(after.total_seconds())) | discriminator(mapper)
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
    former = target_named(made.values["target"]).aliases
    if not former:
        return None
    same = (table.c[name] == made.values[name] for name in ("method_name", "idempotence_token"))
    return own.scalars(select(mapper.base_mapper.class_).where(table.c.target.in_(former), *same)).first()


def named_draft(verb: str, arguments: Mapping[str, Any]) -> Draft:
    """`draft(**arguments)`, where a name that it does not take is InvalidArguments too."""
    try:
        return draft(**arguments)
    except TypeError as error:
        raise InvalidArguments(f"{verb}: {str(error).removeprefix('draft() ')}") from None


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


def _check_options(
    token: object, scheduled_at: object, expires_at: object, queue: object, priority: object, key: object,
    max_attempts: object,
) -> None:  # fmt: skip
    for name, moment in (("scheduled_at", scheduled_at), ("expires_at", expires_at)):
        if moment is not None:
            aware(moment, name)
    for name, text in (("idempotence_token", token), ("order_key", key)):
        if text is not None and not (isinstance(text, str) and 0 < len(text) <= 255 and text.isprintable()):
            raise InvalidArguments(f"{name}: takes a printable text of 1 to 255 characters")
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
    return encryptor_named(given) if isinstance(given, str) else know(given)


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
