"""Which attempts are meant: what a list, a count or a verb for many is asked to select."""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Table, and_, inspect, or_, select
from sqlalchemy.orm import Session

from async_task.attempts.tokens import is_given_token
from async_task.database.clock import statement_now
from async_task.errors import ConfigurationError, UnknownTarget, near
from async_task.schema.columns import CLOCK_SLACK, first_uuid7
from async_task.schema.states import Status, is_waiting
from async_task.schema.tables import companion_tables, table_of
from async_task.targets.registry import own_queue, registered_targets, target_named, target_of
from async_task.targets.target import call_name

STATES = ("due", "performing", "stuck")
"""What can be asked for as a status besides the statuses of a row."""
CUT = "…"
"""What stands in a name for the middle that a list has cut out."""
PROBED = 10_000
"""How many of the newest attempts are asked whether they know a name, before it is called unknown."""
MOST_TRIES = 2**31 - 1
"""The highest number that the column of tries holds."""
When: TypeAlias = dt.datetime | dt.timedelta
"""An aware datetime, or a length of time before now by the database's clock."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What is selected: attempts for which everything that is given holds; of several statuses, any."""

    statuses: tuple[str, ...] = ()
    target: str | None = None
    method: str | None = None
    queue: str | None = None
    token: str | None = None
    error: str | None = None
    since: When | None = None
    until: When | None = None
    order_key: str | None = None
    tries: int = 0


def filters_of(
    status: str | Iterable[str], target: object, method: str | None, queue: str | None, token: str | None,
    error: str | None, since: When | None, until: When | None, order_key: str | None = None, tries: int = 0,
) -> Filters:  # fmt: skip
    """What `outbox.attempts.list` was given, checked. Raises ConfigurationError, and UnknownTarget for an object that
    is not registered."""
    texts = {"method": method, "queue": queue, "token": token, "error": error, "order_key": order_key}
    for name, given in texts.items():
        check_storable(name, given)
    for name, when in (("since", since), ("until", until)):
        check_when(name, when)
    if type(tries) is not int or not 0 <= tries <= MOST_TRIES:
        raise ConfigurationError(f"tries is a whole number from 0 to {MOST_TRIES:,}: it was {tries!r}")
    named = target if target is None or isinstance(target, str) else target_of(target).name
    check_storable("target", named)
    return Filters(_statuses(status), named, method, queue, token, error, since, until, order_key, tries)


def check_storable(name: str, text: str | None) -> None:
    """None, or a text without the characters that a database refuses with an error of its driver's. Raises
    ConfigurationError."""
    if text is not None and not isinstance(text, str):
        raise ConfigurationError(f"{name} takes a text, not {type(text).__name__}")
    if text is not None and any(one == "\0" or "\ud800" <= one <= "\udfff" for one in text):
        raise ConfigurationError(f"{name} takes a text without NUL characters and surrogates")


def check_when(name: str, when: object) -> None:
    """Raises ConfigurationError unless it is None or a `When`."""
    if when is None or isinstance(when, dt.timedelta):
        return
    if not isinstance(when, dt.datetime):
        raise ConfigurationError(f"{name} takes an aware datetime or a timedelta, not {type(when).__name__}")
    if when.utcoffset() is None:
        raise ConfigurationError(f"{name}: a naive datetime names no instant; give it a time zone")
    try:
        when.astimezone(dt.UTC)
    except OverflowError:
        raise ConfigurationError(f"{name}: in UTC that instant is outside of the years 1 to 9999") from None


def _statuses(status: str | Iterable[str]) -> tuple[str, ...]:
    if not isinstance(status, Iterable):
        raise ConfigurationError(f"status takes one status or a list of them, not {type(status).__name__}")
    names: tuple[object, ...] = (status,) if isinstance(status, str) else tuple(status)
    known = [*(one.value for one in Status), *STATES]
    for name in names:
        if name not in known:
            said = f"{str(name)!r}{near(str(name), known)}"
            raise ConfigurationError(f"status is one of {', '.join(known)}: it was {said}")
    return tuple(str(name) for name in names)


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters over the table of a model, at an instant of the database's clock."""

    model: type[Any]
    filters: Filters
    now: dt.datetime

    @property
    def table(self) -> Table:
        return table_of(self.model)

    @property
    def is_partial(self) -> bool:
        """Whether rows of the table may be left out."""
        return self.filters != Filters() or inspect(self.model).inherits is not None

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """In SQL; empty where everything is selected."""
        model, filters = self.model, self.filters
        exact = [(model.method_name, filters.method), (model.queue, filters.queue)]
        exact += [(model.order_key, filters.order_key)]
        return [
            *([or_(*(_is_in(model, one) for one in filters.statuses))] if filters.statuses else []),
            *([_calls(model, filters.target)] if filters.target is not None else []),
            *(column == wanted for column, wanted in exact if wanted is not None),
            *([is_given_token(model.idempotence_token, filters.token)] if filters.token is not None else []),
            *([model.created_at >= self._instant(filters.since)] if filters.since is not None else []),
            *([model.created_at < self._instant(filters.until)] if filters.until is not None else []),
            *([model.last_error.icontains(filters.error, autoescape=True)] if filters.error is not None else []),
            *([model.num_attempts >= filters.tries] if filters.tries else []),
        ]

    @property
    def id_range(self) -> list[ColumnElement[bool]]:
        """Which ids can be of attempts that were created between `since` and `until`: a UUIDv7 begins with its time.
        So that a list of last year's attempts does not read this year's."""
        since, until, key = self.filters.since, self.filters.until, self.table.c.id
        bounds: list[ColumnElement[bool]] = []
        if since is not None:
            bounds.append(key >= first_uuid7(self._instant(since), -CLOCK_SLACK))
        if until is not None:
            bounds.append(key < first_uuid7(self._instant(until), CLOCK_SLACK))
        return bounds

    def _instant(self, when: When) -> dt.datetime:
        return instant_of(when, self.now)


def instant_of(when: When, now: dt.datetime) -> dt.datetime:
    """Raises ConfigurationError for a length of time that begins before the year 1."""
    if isinstance(when, dt.datetime):
        return when
    try:
        return now - when
    except OverflowError:
        raise ConfigurationError("since and until: that long ago is before the year 1") from None


def _is_in(model: type[Any], name: str) -> Any:
    if name == "performing":
        return (model.status == Status.PENDING) & model.claim_id.is_not(None)
    if name in STATES:
        return (model.due() if name == "due" else model.potentially_stuck()).whereclause
    return model.status == Status(name)


def _calls(model: type[Any], name: str) -> ColumnElement[bool]:
    return or_(
        *(
            and_(model.target.in_(names), *([] if method is None else [model.method_name == method]))
            for names, method in calls_named(name)
        )
    )


def calls_named(name: str) -> list[tuple[tuple[str, ...], str | None]]:
    """What `name` may mean, as the names of a target and a method (None: all of its methods): the target of this name,
    and the call of this name, as lists print it (`shop.orders.fulfill`)."""
    target, _, method = name.rpartition(".")
    return [(names_of(name), None), *([(names_of(target), method)] if target else [])]


def names_of(target: str) -> tuple[str, ...]:
    """All its names, where it is registered here: rows that were written before it was renamed hold a former one."""
    try:
        return target_named(target).names
    except UnknownTarget:
        return (target,)


def with_whole_names(session: Session, table: Table, filters: Filters) -> Filters:
    """`filters` with the whole name of a call that a list has cut in the middle (`shop.or…fulfill`). Raises
    UnknownTarget unless exactly one is known that fits."""
    if filters.target is None or CUT not in filters.target:
        return filters
    begin, _, end = filters.target.partition(CUT)
    fitting = sorted(
        name for name in _calls_known(session, table)
        if len(name) >= len(begin) + len(end) and name.startswith(begin) and name.endswith(end)
    )  # fmt: skip
    if len(fitting) == 1:
        return replace(filters, target=fitting[0])
    if fitting:
        raise UnknownTarget(f"several calls fit {filters.target!r}: {', '.join(fitting[:5])}; give the whole name")
    raise UnknownTarget(f"no call fits {filters.target!r}: give the whole name")


def _calls_known(session: Session, table: Table) -> set[str]:
    """The names of targets and calls that this process or the newest attempts know."""
    names: set[str] = set()
    for one in registered_targets():
        names.update(one.names)
        names.update(call_name(name, method) for name in one.names for method in one.own_callables())
    newest: Any = select(table.c.target, table.c.method_name).order_by(table.c.id.desc()).limit(PROBED).subquery()
    for target, method in session.execute(select(newest.c.target, newest.c.method_name).distinct()):
        names |= {target, call_name(target, method)}
    return names


def refuse_unknown_names(session: Session, chosen: Selection) -> None:
    """Raises UnknownTarget for a target, and ConfigurationError for a queue, that neither this process nor any row
    knows that can be asked by an index. For a selection that is empty: a name with a typing error selects nothing."""
    table, filters = chosen.table, chosen.filters
    if filters.queue is not None and not _has_queue(session, table, filters.queue):
        raise ConfigurationError(_unknown("queue", filters.queue, _queues(session, table)))
    if filters.target is not None:
        names = _calls_known(session, table)
        if filters.target not in names:
            raise UnknownTarget(_unknown("target", filters.target, names))


def refuse_unknown(session: Session, model: type[Any], filters: Filters) -> None:
    """The same for filters."""
    now: dt.datetime | None = session.scalar(select(statement_now()))
    assert now is not None
    refuse_unknown_names(session, Selection(model, filters, now))


def _has_queue(session: Session, table: Table, name: str) -> bool:
    """Whether this process knows a queue of this name, anything waits in it, or it is among `_queues`."""
    waits: Any = select(table.c.id).where(*is_waiting(table), table.c.queue == name)
    # In the order of the index: where any row would do, PostgreSQL may read the table instead.
    first = session.execute(waits.order_by(table.c.priority, table.c.due_at, table.c.id).limit(1)).first()
    return first is not None or name in _queues(session, table)


def _queues(session: Session, table: Table) -> set[str]:
    """The queues of targets registered here, those that are paused or limited, and those of recent attempts."""
    of_targets = (name for one in registered_targets() for name in (one.policy.queue, own_queue(one.name)))
    named = session.scalars(select(companion_tables(table).queues.c.name))
    return {"default", *filter(None, of_targets), *named, *_held(session, table, table.c.queue)}


def _held(session: Session, table: Table, column: ColumnElement[str]) -> set[str]:
    """The names that the newest attempts hold."""
    newest: Any = select(column.label("name")).order_by(table.c.id.desc()).limit(PROBED).subquery()
    return set(session.scalars(select(newest.c.name).distinct()))


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    return (
        f"no {kind} is named {name!r}{near(name, sorted(known))}: this process does not know it, "
        f"and none of the newest {PROBED:,} attempts has it"
    )
