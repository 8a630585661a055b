"""The changes of a row that is its own job: each is one conditional UPDATE in the caller's transaction."""

import datetime as dt
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, inspect, literal, select, update
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, object_session

from async_task.asyncable.columns import NAMES, attributes_of, columns_of
from async_task.asyncable.scopes import Known, Scopes, Stored, of_columns, of_values
from async_task.attempts.chain import key_of
from async_task.attempts.create import given
from async_task.attempts.draft import aware
from async_task.attempts.options import SyncSession
from async_task.database.changed_objects import refresh_changed
from async_task.database.clock import clock_now, held_in, instant_in
from async_task.database.sessions import attached_session, routed_as_writes
from async_task.error_text import storable
from async_task.errors import ConfigurationError, InvalidArguments, InvalidState, NoTransaction
from async_task.schema.audit import record_verb
from async_task.schema.columns import Instant
from async_task.schema.jobs import job_of
from async_task.targets.retry import Duration, duration

Delay = Duration | dt.datetime
"""A duration, or the instant itself."""
Changes = dict[str, Any]
SUBMIT = "submit_for_processing"
"""It writes no event: its column and its attempt tell when it was submitted, and programs do that in large numbers."""
LONGEST_TOLD = 1_000
"""Characters of an error that an event has."""


def session_of(row: Any, session: SyncSession | None) -> Session:
    """The session in which the row is changed, with the row attached and flushed."""
    attached = object_session(row)
    own = given(session) or attached_session(row)
    name = type(row).__name__
    if own is None:
        raise NoTransaction(f"this {name} is attached to no session: give the one in which to change it")
    if attached is not None and attached is not own:
        raise InvalidState(f"this {name} is attached to another session than the one given")
    try:
        own.add(row)
    except InvalidRequestError:
        raise InvalidState(
            f"this session has another instance of this {name}: change that one, from session.get(...)"
        ) from None
    own.flush()
    return own


def change(
    session: Session, row: Any, verb: str, changes: Changes, condition: ColumnElement[bool] | None,
    reason: str | None = None,
) -> None:  # fmt: skip
    """As `change_if`. Raises InvalidState also where the condition does not hold."""
    if not change_if(session, row, verb, changes, condition, reason):
        raise InvalidState(f"{verb}: {type(row).__name__} {key_of(row)} is {_state(session, row)}")


def change_if(
    session: Session, row: Any, verb: str, changes: Changes, condition: ColumnElement[bool] | None,
    reason: str | None = None,
) -> bool:  # fmt: skip
    """Write `changes` of the six columns if the condition holds, with the event of that, and read the row again.
    Returns whether it did. Raises InvalidState for a row that is gone.

    Each change by a person ends here. What the job writes does not: the events of its attempt tell that.
    """
    model, key = type(row), key_of(row)
    with routed_as_writes(session, inspect(model)) as connection:
        before = None if verb == SUBMIT else read(connection, model, key, is_locked=True)
        is_changed = hit(connection, model, key, changes, condition)
        if not is_changed and read(connection, model, key) is None:
            raise InvalidState(f"{verb}: {model.__name__} {key} is gone")
        if is_changed and before is not None:
            _record(connection, row, verb, reason, before)
        names = list(attributes_of(model).values())
        refresh_changed(session, row, names, only=names)
    return is_changed


def _record(connection: Connection, row: Any, verb: str, reason: str | None, before: Scopes[Known]) -> None:
    after, job = read(connection, type(row), key_of(row)), job_of(row)
    assert after is not None
    change = (_told(before), _told(after))
    record_verb(connection, job.attempts, (job.type, job.id), verb, reason, *change, always=("status",))


def _told(found: Scopes[Known]) -> dict[str, Any]:
    """What the event of a verb says before and after."""
    values = {name: getattr(found, name).value for name in NAMES}
    error = values["error"]
    return {"status": status_of(found), **values, "error": error and error[:LONGEST_TOLD]}


def hit(session: Any, model: type[Any], key: Any, changes: Changes, condition: ColumnElement[bool] | None) -> bool:
    """Whether the row was there, said `condition`, and was changed. `session`: or a connection."""
    columns = columns_of(model)
    table = columns["processed_at"].table
    identity = key if isinstance(key, tuple) else (key,)
    mine = [column == value for column, value in zip(table.primary_key.columns, identity, strict=True)]
    where = mine if condition is None else [*mine, condition]
    statement = update(table).where(*where).values({columns[name]: value for name, value in changes.items()})
    routed = {"bind_arguments": {"mapper": inspect(model)}} if isinstance(session, Session) else {}
    result: Any = session.execute(statement, **routed)
    return bool(result.rowcount == 1)


def _state(session: Session, row: Any) -> str:
    found = read(session, type(row), key_of(row), is_locked=True)
    return "gone" if found is None else str(status_of(found))


def read(session: Any, model: type[Any], key: Any, *, is_locked: bool = False) -> Scopes[Known] | None:
    """What the row says now, by the clock of the database; None if it is gone. `is_locked`: also where MySQL reads
    rows as they were when the transaction began."""
    columns = columns_of(model)
    table = columns["processed_at"].table
    identity = key if isinstance(key, tuple) else (key,)
    wanted = select(*(_read(name, column) for name, column in columns.items()), clock_now().label("now"))
    wanted = wanted.where(*(c == value for c, value in zip(table.primary_key.columns, identity, strict=True)))
    found = session.execute(wanted.with_for_update(key_share=True) if is_locked else wanted).mappings().first()
    if found is None:
        return None
    values = {name: found[name] for name in columns}
    return of_values(values, model.processing.interval, model.processing.window, found["now"])


def _read(name: str, column: Any) -> Any:
    return (column if name == "error" else instant_in(column)).label(name)


STATES = ("processed", "canceled", "attempted", "submitted")


def status_of(scopes: Scopes[Any]) -> str:
    """The first that holds: processed, canceled, attempted, submitted, not_yet_submitted."""
    return next((name for name in STATES if getattr(scopes, name)()), "not_yet_submitted")


def conditions(model: type[Any]) -> Scopes[Stored]:
    """What can be said of the rows of this class, in SQL."""
    return of_columns(columns_of(model), model.processing.interval, model.processing.window)


def now_in(model: type[Any], name: str, delay: Delay | None = None) -> Any:
    """The instant at which it is written, and `delay` later, as this column holds it. A `delay` that is an instant of
    the past is none."""
    instant: Any = clock_now(_seconds(delay))
    if isinstance(delay, dt.datetime):
        at = literal(delay, Instant())
        instant = case((at > clock_now(), at), else_=clock_now())
    return held_in(instant, columns_of(model)[name])


def _seconds(delay: Any) -> float:
    return delay.total_seconds() if isinstance(delay, dt.timedelta) else 0.0


def checked_delay(delay: Delay | None, window: dt.timedelta) -> Delay | None:
    """A timedelta, or an aware datetime, which the `window` can follow. Raises InvalidArguments."""
    if delay is None or isinstance(delay, dt.datetime):
        return delay and _followed(aware(delay, "delay"), window)
    try:
        return duration(delay, name="delay") or None
    except ConfigurationError as error:
        raise InvalidArguments(str(error)) from None


def _followed(instant: dt.datetime, window: dt.timedelta) -> dt.datetime:
    if instant > dt.datetime.max.replace(tzinfo=dt.UTC) - window:
        raise InvalidArguments("delay: the window after it is past the year 9999")
    return instant


def due_of(session: Session, row: Any) -> dt.datetime:
    """The instant of its last submission, in UTC."""
    found = read(session, type(row), key_of(row), is_locked=True)
    assert found is not None
    value: dt.datetime = found.last_submitted_at.value
    return value


def error_in(model: type[Any], text: str) -> str:
    """The text as the column of errors holds it: without what no database stores, and cut to its length."""
    stored, longest = storable(text), getattr(columns_of(model)["error"].type, "length", None)
    return stored if longest is None or len(stored) <= longest else f"{stored[: max(longest - 4, 0)]} ..."[:longest]
