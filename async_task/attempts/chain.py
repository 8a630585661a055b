"""The chain of attempts of one row of a model that is its own job: one attempt at a time, found by a token that only
depends on the row.

An attempt that has ended although the work goes on is opened again. One that has succeeded cannot be: then a second
one follows, whose token names the first. So whoever continues a chain, and how often, finds the same attempt.
"""

import datetime as dt
import hashlib
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Numeric, inspect, or_, select, tuple_
from sqlalchemy.orm import Session

from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.info import AttemptInfo, infos_of
from async_task.database.clock import statement_now
from async_task.errors import ConfigurationError
from async_task.schema.states import Status, is_emptied
from async_task.schema.tables import table_of

LONGEST_TOKEN = 200
LONGEST_NUMBER = Context(prec=1_000, traps=[])
"""That of a NUMERIC of PostgreSQL."""
MOST_FOLLOWERS = 1_000
PAGE = 500
"""Rows of which the attempts are looked for in one statement."""


def key_of(row: Any) -> Any:
    """The primary key of a row; a tuple where it has several columns. As the database gives it back, so that a row has
    the same token before it is read again."""
    mapper: Any = inspect(type(row))
    given = zip(mapper.primary_key, mapper.primary_key_from_instance(row), strict=True)
    return key_from([_with_all_places(column.type, value) for column, value in given])


def _with_all_places(kind: Any, value: Any) -> Any:
    """The value with the decimal places of its column: 1.50 for 1.5."""
    if (
        not isinstance(kind, Numeric)
        or not kind.asdecimal
        or kind.scale is None
        or not isinstance(value, int | Decimal)
    ):
        return value
    return Decimal(value).quantize(Decimal(1).scaleb(-kind.scale), ROUND_HALF_UP, LONGEST_NUMBER)


def key_from(identity: Collection[Any]) -> Any:
    """The key of a row with these values of its primary key."""
    values = tuple(identity)
    return values[0] if len(values) == 1 else values


def token_of(key: Any) -> str:
    """The token of the first attempt of the row with this key."""
    text = repr(key) if isinstance(key, tuple) else str(key)
    is_short = 0 < len(text) <= LONGEST_TOKEN and text.isprintable()
    return text if is_short else hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def with_key(model: type[Any], statement: Any, key: Any) -> Any:
    """The statement for the row with this key."""
    identity = key if isinstance(key, tuple) else (key,)
    return statement.where(*(c == value for c, value in zip(inspect(model).primary_key, identity, strict=True)))


def with_keys(model: type[Any], statement: Any, keys: Collection[Any]) -> Any:
    """The statement for the rows with these keys."""
    columns = inspect(model).primary_key
    return statement.where((columns[0] if len(columns) == 1 else tuple_(*columns)).in_(list(keys)))


def says(session: Session, model: type[Any], key: Any, condition: ColumnElement[bool]) -> bool:
    """Whether the condition holds for the row now."""
    found = with_key(model, select(*inspect(model).primary_key).select_from(model), key).where(condition)
    return session.execute(found).first() is not None


def target_name(model: type[Any], name: str | None, what: str) -> str:
    """The name of the target of this class: `name`, or "module:qualname". `what` sets a name, as errors say it. Raises
    ConfigurationError for a class that no worker finds by its own."""
    if name is None and (model.__module__ == "__main__" or "<" in model.__qualname__):
        raise ConfigurationError(
            f"{model.__qualname__} is defined where no worker can find it under that name: give its job a name, "
            f"{what}, and import its module in the worker"
        )
    return name or f"{model.__module__}:{model.__qualname__}"


class Link(NamedTuple):
    """Where a chain goes on. `token`: of its last attempt, which is there as `attempt`, or is to be created."""

    token: str
    attempt: BaseAttempt | None


@dataclass(frozen=True, slots=True)
class Chain:
    """The attempts of the rows of one class: calls of `method` of the target `name`, as rows of `attempts`."""

    name: str
    method: str
    attempts: type[BaseAttempt]
    queue: str | None = None
    priority: int | None = None

    def last_link(self, session: Session, key: Any) -> Link:
        """Where the chain of the row with this key goes on. Reads only."""
        token = first = token_of(key)
        for _ in range(MOST_FOLLOWERS):
            before = self._attempt(session, token)
            is_spent = before is not None and (before.status is Status.SUCCEEDED or before.is_pruned)
            if before is None or not is_spent:
                return Link(token, before)
            token = _following(first, before.id)
        raise RuntimeError(f"{self.name} {first}: it has had {MOST_FOLLOWERS} attempts; prune some")

    def link_after(self, key: Any, attempt: BaseAttempt) -> Link:
        """The link that follows an attempt that has succeeded by now."""
        return Link(_following(token_of(key), attempt.id), None)

    def begin(self, session: Session, link: Link, key: Any, **options: Any) -> BaseAttempt:
        """Create the attempt of this link in the transaction of `session`, unless it is there by now."""
        return self.attempts.ensure(
            session, target=self.name, method_name=self.method, method_args={"key": key}, idempotence_token=link.token,
            queue=self.queue, priority=self.priority, **options,
        )  # fmt: skip

    def begin_all(self, session: Session, keys: Collection[Any], options: Mapping[Any, Mapping[str, Any]]) -> list[Any]:
        """Create the first attempts of those of `keys` that never had one, in one statement; return their keys. Raises
        IntegrityError where another transaction was first. `options`: of the attempt, by key."""
        table, tokens = table_of(self.attempts), {token_of(key): key for key in keys}
        mine = (table.c.target == self.name, table.c.method_name == self.method)
        known = select(table.c.idempotence_token).where(*mine, table.c.idempotence_token.in_(tokens))
        there = set(session.scalars(known))
        new = {token: key for token, key in tokens.items() if token not in there}
        shared = {"target": self.name, "method_name": self.method, "queue": self.queue, "priority": self.priority}
        self.attempts.create_many(session, [
            {**shared, "method_args": {"key": key}, "idempotence_token": token, **options[key]}
            for token, key in new.items()
        ])  # fmt: skip
        return list(new.values())

    def without_attempt(self, engine: Engine, keys: Collection[Any], *, due: bool = False) -> list[Any]:
        """Those of `keys` that no attempt serves: the last one of their chain is not pending; or, with `due`, neither
        due nor being performed. In the order of `keys`, and a transaction for each page of them."""
        left = list[Any]()
        for page in _pages(keys):
            with engine.begin() as connection:
                left += self.without_attempt_in(connection, page, due=due)
        return left

    def without_attempt_in(self, connection: Connection, keys: Collection[Any], *, due: bool = False) -> list[Any]:
        """The same in the transaction of `connection`."""
        served = set[Any]()
        for page in _pages(keys):
            served |= self._served(connection, page, due=due)
        return [key for key in keys if key not in served]

    def _served(self, connection: Connection, keys: Collection[Any], *, due: bool) -> set[Any]:
        c = table_of(self.attempts).c
        is_served: Any = c.status == Status.PENDING
        if due:
            is_served &= or_(c.due_at <= statement_now(), c.claim_id.is_not(None))
        last = self._last(connection, keys, is_served.label("is_served"))
        return {key for key, row in last.items() if row.is_served}

    def last_attempts(self, session: Session, keys: Collection[Any], read_at: dt.datetime) -> dict[Any, AttemptInfo]:
        """The last attempt of each of these rows that has one, as it is at `read_at`: a bounded number of statements,
        however many rows they are."""
        ids = {
            key: row.id for page in _pages(keys) for key, row in self._last(session.connection(), page).items()
        }  # fmt: skip
        infos = {one.id: one for one in infos_of(session, self.attempts, ids.values(), read_at)}
        return {key: infos[attempt_id] for key, attempt_id in ids.items() if attempt_id in infos}

    def _last(self, connection: Connection, keys: Collection[Any], *asked: Any) -> dict[Any, Any]:
        """The id of the last attempt of each of these rows that has one, and what is `asked` of it besides: a statement
        for each link that one of the chains has."""
        c, last = table_of(self.attempts).c, dict[Any, Any]()
        is_spent = or_(c.status == Status.SUCCEEDED, is_emptied(table_of(self.attempts)))
        wanted: Any = select(c.id, c.idempotence_token, is_spent.label("is_spent"), *asked)
        links = {token_of(key): key for key in keys}
        while links:
            mine = (c.target == self.name, c.method_name == self.method, c.idempotence_token.in_(links))
            found: Any = connection.execute(wanted.where(*mine)).all()
            last |= {links[row.idempotence_token]: row for row in found}
            spent = [(links[row.idempotence_token], row.id) for row in found if row.is_spent]
            links = {_following(token_of(key), attempt_id): key for key, attempt_id in spent}
        return last

    def _attempt(self, session: Session, token: str) -> BaseAttempt | None:
        attempts: Any = self.attempts
        mine = (attempts.target == self.name, attempts.method_name == self.method, attempts.idempotence_token == token)
        found: BaseAttempt | None = session.scalars(
            select(attempts).where(*mine).execution_options(populate_existing=True)
        ).first()
        return found


def can_hurry(session: Session, attempt: BaseAttempt) -> bool:
    """Whether a pending attempt waits, and is not due yet."""
    now: dt.datetime = session.execute(select(statement_now())).scalar_one()
    return not attempt.is_performing and attempt.due_at > now


def _following(first: str, before: uuid.UUID) -> str:
    return f"{first}+{before}"


def _pages(keys: Collection[Any]) -> list[list[Any]]:
    listed = list(keys)
    return [listed[start : start + PAGE] for start in range(0, len(listed), PAGE)]
