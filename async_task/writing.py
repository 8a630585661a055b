"""Writing a call down: checked, encoded, sealed, and added to the caller's own transaction. Nothing here awaits."""

import datetime as dt
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, and_, func, inspect, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapper, Session, scoped_session

from async_task.ambient import ambient_session, hold
from async_task.arguments import encode
from async_task.dialects import MYSQL, copies_rows, written
from async_task.encryption import Encryptor, NullEncryptor, context_of, encryptor_named, know, seal
from async_task.errors import AsyncTaskError, ConfigurationError, InvalidArguments
from async_task.identity import uuid7
from async_task.policies import check_priority, check_queue
from async_task.status import Status
from async_task.targets import Method, target_of

M = TypeVar("M")
AT_ONCE = dt.timedelta(0)


@dataclass(frozen=True, slots=True)
class Draft:
    """An attempt that is checked and sealed, but on no table yet: `values` by column, `max_age` still to be stamped."""

    values: dict[str, Any]
    max_age: dt.timedelta | None

    def stamped(self, clock: Callable[[dt.timedelta], Any]) -> dict[str, Any]:
        """The values with what depends on the database's clock; `clock(d)` is the instant `d` from now."""
        values = dict(self.values)
        if self.max_age is not None and values["expires_at"] is None:
            since = values["scheduled_at"]
            values["expires_at"] = clock(self.max_age) if since is None else since + self.max_age
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
    if order_key is not None:
        raise InvalidArguments(
            "order_key: attempts that run one at a time, in order, come with the worker; leave it out until then"
        )
    called = target_of(target)
    method = called.method(method_name)
    return draft_call(
        method, dict(method_args or {}), idempotence_token=idempotence_token, scheduled_at=scheduled_at,
        expires_at=expires_at, queue=queue, priority=priority, encryptor=encryptor, max_attempts=max_attempts,
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
    encryptor: Encryptor | str | None = None,
    max_attempts: int | None = None,
) -> Draft:
    """As `draft`, for a method that is known already."""
    method.signature.check(arguments)
    _check_options(idempotence_token, scheduled_at, expires_at, queue, priority, max_attempts)
    sealer = _encryptor(encryptor or method.policy.encryptor)
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
        "released": True,
        "num_attempts": 0,
        "num_errors": 0,
        "num_crashes": 0,
        "max_attempts": max_attempts,
        "scheduled_at": scheduled_at,
        "expires_at": expires_at,
    }
    if scheduled_at is not None:
        values["due_at"] = scheduled_at
    return Draft(values, method.policy.max_age)


def add(model: type[M], made: Draft, session: object | None) -> M:
    """A new row of `model` in the caller's session: `session`, or the one transaction that is open here."""
    own = ambient_session() if session is None else sync_session(session)
    values = made.stamped(lambda after: written(after.total_seconds()))
    values["encoded_args"] = values.pop("method_args")
    attempt = model(**values)
    own.add(attempt)
    if session is None:
        hold(own)
    return attempt


def ensure(model: type[M], made: Draft, session: Session | None) -> M:
    """The attempt with this target, method and token, created unless it exists. The caller's transaction lives on."""
    if made.values["idempotence_token"] is None:
        raise InvalidArguments("ensure: without idempotence_token= nothing says which attempt is the same one")
    own = ambient_session() if session is None else sync_session(session)
    own.flush()
    mapper = _single_table(model, "ensure")
    table = mapper.local_table
    wanted = and_(*(table.c[name] == made.values[name] for name in ("target", "method_name", "idempotence_token")))
    connection = own.connection(bind_arguments={"mapper": mapper})
    dialect = connection.dialect.name
    values = {**made.stamped(lambda after: written(after.total_seconds())), **_discriminator(mapper)}
    find: Any = select(model).where(wanted)
    if dialect in MYSQL:
        # ON DUPLICATE KEY waits for whoever performs the row; a plain look does not.
        if (there := own.scalars(find).first()) is not None:
            return there  # type: ignore[no-any-return]
        connection.execute(mysql.insert(table).values(values).on_duplicate_key_update(id=table.c.id))
        return own.scalars(find.with_for_update(read=True)).one()  # type: ignore[no-any-return]
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(table).values(values).on_conflict_do_nothing(
        index_elements=["target", "method_name", "idempotence_token"], index_where=table.c.idempotence_token.is_not(None)
    )  # fmt: skip
    for _ in range(3):  # the winner may be pruned between our insert and our look
        connection.execute(statement)
        if (there := own.scalars(find).first()) is not None:
            return there  # type: ignore[no-any-return]
    raise AsyncTaskError("ensure: the attempt with this token appeared and vanished three times; try again")


def insert_many(model: type[Any], where: object, rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Write all rows in one statement, COPY through psycopg; answers their ids in the order of the rows.

    A session is flushed first. Raises IntegrityError for a used token, and what `create` raises, with the row's number.
    """
    mapper = _single_table(model, "create_many")
    drafts = [_numbered(number, row) for number, row in enumerate(rows)]
    if isinstance(where, Connection):
        connection = where
    else:
        session = sync_session(where)
        session.flush()
        connection = session.connection(bind_arguments={"mapper": mapper})
    if not drafts:
        return []
    table = mapper.local_table
    assert isinstance(table, Table)
    now, may_copy = _clock_and_copy(connection, table)
    stamps = {**_discriminator(mapper), "created_at": now, "updated_at": now}
    values = [{"due_at": now, **one.stamped(lambda after: now + after), **stamps} for one in drafts]
    if may_copy and not _has_more_defaults(table, values[0]):
        _copy(connection, table, values)
    else:
        connection.execute(table.insert(), values)
    return [one["id"] for one in values]


def sync_session(session: object) -> Session:
    """The Session behind a Session, AsyncSession, or the scoped registry of either.

    Raises ConfigurationError for anything else.
    """
    found = session
    if isinstance(found, scoped_session):
        found = found()
    asyncio = sys.modules.get("sqlalchemy.ext.asyncio")
    if asyncio is not None and isinstance(found, asyncio.async_scoped_session):
        found = found()
    if asyncio is not None and isinstance(found, asyncio.AsyncSession):
        found = found.sync_session
    if isinstance(found, Session):
        return found
    raise ConfigurationError(f"session= takes a Session or an AsyncSession, not {type(session).__name__}")


def aware(moment: dt.datetime | None, name: str) -> dt.datetime | None:
    """`moment`, refused with InvalidArguments when it is no datetime, or a naive one."""
    if moment is None:
        return None
    if not isinstance(moment, dt.datetime):
        raise InvalidArguments(f"{name}: takes an aware datetime, not {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise InvalidArguments(
            f"{name}: a naive datetime names no instant; give it a time zone: .replace(tzinfo=...) or datetime.now(UTC)"
        )
    return moment


def _check_options(
    token: str | None, scheduled_at: dt.datetime | None, expires_at: dt.datetime | None,
    queue: str | None, priority: int | None, max_attempts: int | None,
) -> None:  # fmt: skip
    aware(scheduled_at, "scheduled_at")
    aware(expires_at, "expires_at")
    if token is not None and not (isinstance(token, str) and 0 < len(token) <= 255 and token.isprintable()):
        raise InvalidArguments("idempotence_token: takes a printable text of 1 to 255 characters")
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


def _numbered(number: int, row: Mapping[str, Any]) -> Draft:
    try:
        return draft(**row)
    except TypeError as error:
        raise InvalidArguments(f"row {number}: {str(error).removeprefix('draft() ')}") from None
    except AsyncTaskError as error:
        raise type(error)(f"row {number}: {error}") from None


def _single_table(model: type[Any], verb: str) -> Mapper[Any]:
    mapper: Mapper[Any] = inspect(model)
    if mapper.local_table is not mapper.base_mapper.local_table:
        raise ConfigurationError(
            f"{verb}: {model.__name__} lies in two tables (joined inheritance); use create() for it"
        )
    return mapper


def _discriminator(mapper: Mapper[Any]) -> dict[str, Any]:
    if mapper.polymorphic_on is None or mapper.polymorphic_identity is None:
        return {}
    return {str(mapper.polymorphic_on.key): mapper.polymorphic_identity}


def _clock_and_copy(connection: Connection, table: Table) -> tuple[dt.datetime, bool]:
    """The database's clock, and whether rows may be written with COPY, which row-level security forbids."""
    if not copies_rows(connection.dialect) or connection.dialect.is_async:
        return connection.execute(select(written())).scalar_one(), False
    name = connection.dialect.identifier_preparer.format_table(table)
    secured = func.row_security_active(name)
    now, is_secured = connection.execute(select(written(), secured)).one()
    return now, not is_secured


def _has_more_defaults(table: Table, values: Mapping[str, Any]) -> bool:
    """Whether a column of the user's own wants a value that COPY would not ask for."""
    return any(one.name not in values and one.default is not None for one in table.columns)


def _copy(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    import psycopg

    preparer = connection.dialect.identifier_preparer
    columns = ", ".join(preparer.quote(name) for name in rows[0])
    statement = f"COPY {preparer.format_table(table)} ({columns}) FROM STDIN"
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(tuple(row.values()))
    except psycopg.errors.IntegrityError as error:
        raise IntegrityError(statement, None, error) from error
