"""Time that passes for calls: their instants are moved back."""

import datetime as dt
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import Table, select, update

from async_task.attempts.options import AnySession, SyncSession
from async_task.database.clock import Instant
from async_task.errors import ConfigurationError
from async_task.schema.states import is_pending
from async_task.schema.tables import table_of
from async_task.targets.keeping import Age, age
from async_task.testing.sessions import TestSession, on_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session


@overload
def advance(by: Age, /, *, session: SyncSession | None = None) -> None: ...
@overload
def advance(by: Age, /, *, session: "AsyncSession | async_scoped_session[Any]") -> Awaitable[None]: ...
def advance(by: Age, /, *, session: AnySession | None = None) -> Awaitable[Any] | None:
    """Let time pass for the pending attempts that the session sees, without waiting.

        advance("2h")
        perform_all()

    All their instants (`due_at`, `scheduled_at`, `expires_at`, `created_at`, ...) are moved back by this time in the
    session's transaction, so that what was due in two hours is due now, and what was to expire has expired. The clocks
    of the database and of Python stay, and so do rows that are not attempts. `by`: seconds, a timedelta, or "90s",
    "15min", "2h", "1d12h". With an AsyncSession: `await advance("2h", session=session)`. Raises ConfigurationError for
    no such time, otherwise as `written`.
    """
    length = age(by, name="by")
    if length < dt.timedelta(0):
        raise ConfigurationError("by: time goes forward only")
    return on_session(session, "advance", lambda one: _advance(one, length))


def _advance(session: TestSession, length: dt.timedelta) -> None:
    session.own.flush()
    for model in session.models():
        _move(session, table_of(model), length)
    session.read_again()


def _move(session: TestSession, table: Table, length: dt.timedelta) -> None:
    columns = [one for one in table.c if isinstance(one.type, Instant)]
    connection = session.connection()
    asked: Any = select(table.c.id, *columns).where(is_pending(table))
    for row in connection.execute(asked).all():
        moved = {one.name: value - length for one, value in zip(columns, row[1:], strict=True) if value is not None}
        connection.execute(update(table).where(table.c.id == row.id).values(moved))
