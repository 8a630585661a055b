"""Which kind of session something is.

SQLAlchemy's asyncio half needs greenlet, which a synchronous program may not have. So we never import it here: nothing
can be an instance of a class that nobody has imported.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.orm import Mapper, Session, object_session, scoped_session
from sqlalchemy.util.concurrency import in_greenlet

from async_task.errors import ConfigurationError

AWAITED = (
    "this does I/O, for which an AsyncSession must be awaited: "
    "await session.run_sync(attempt.cancel, reason=...), "
    "await session.run_sync(Attempt.ensure, target=..., ...)"
)


def sync_session(session: object) -> Session:
    """The Session behind a Session, AsyncSession, or the scoped registry of either.

    Raises ConfigurationError for anything else.
    """
    found: Any = session
    if is_registry(type(found)):
        found = found()
    if is_async_session(type(found)):
        found = found.sync_session
    if isinstance(found, Session):
        return found
    raise ConfigurationError(f"session= takes a Session or an AsyncSession, not {type(session).__name__}")


def blocking_session(session: object) -> Session:
    """The Session behind a Session or its scoped registry, for what does I/O.

    Raises ConfigurationError for an AsyncSession, which would have to be awaited, and for anything else.
    """
    if isinstance(session, str):
        raise ConfigurationError(
            "the first argument is a session, not a text; the reason is a keyword: cancel(reason=...)"
        )
    if is_async_session(type(session)) or issubclass(type(session), asyncio_kinds("async_scoped_session")):
        raise ConfigurationError(AWAITED)
    return sync_session(session)


def attached_session(row: object) -> Session | None:
    """The session to which a row is attached, for what does I/O; None if it is attached to none.

    Raises ConfigurationError for that of an AsyncSession outside of its `run_sync`.
    """
    own = object_session(row)
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    if own is not None and module is not None and not in_greenlet() and module.async_session(own) is not None:
        raise ConfigurationError(AWAITED)
    return own


def is_session(cls: type[Any]) -> bool:
    """Whether this is a class of sessions, sync or async."""
    return issubclass(cls, (Session, *asyncio_kinds("AsyncSession")))


def is_async_session(cls: type[Any]) -> bool:
    """Whether this is AsyncSession or a subclass."""
    return issubclass(cls, asyncio_kinds("AsyncSession"))


def is_registry(cls: type[Any]) -> bool:
    """Whether this is a scoped registry of sessions, sync or async."""
    return issubclass(cls, (scoped_session, *asyncio_kinds("async_scoped_session")))


def asyncio_kinds(*names: str) -> tuple[type[Any], ...]:
    """These classes of `sqlalchemy.ext.asyncio`; none as long as nobody has imported it."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


@functools.lru_cache(maxsize=64)
def write_arguments(mapper: Mapper[Any]) -> dict[str, Any]:
    """The bind arguments of a statement that writes: a session may read from another engine."""
    table: Any = mapper.local_table
    return {"mapper": mapper, "clause": insert(table)}


@functools.lru_cache(maxsize=64)
def read_arguments(mapper: Mapper[Any]) -> dict[str, Any]:
    """The bind arguments of a statement that reads what stands beside the rows of this model."""
    table: Any = mapper.local_table
    return {"mapper": mapper, "clause": select(table)}


@contextmanager
def routed_as_writes(session: Session, mapper: Mapper[Any]) -> Iterator[Connection]:
    """Inside of this, all statements of the session run on the connection on which it writes this model, which is
    returned. A session that routes by the kind of the statement would send our SELECT ... FOR UPDATE to a replica, and
    look there for the row that it has just written. Flush it before: other models may be written elsewhere."""
    connection = session.connection(bind_arguments=write_arguments(mapper))
    own = vars(session).get("get_bind")
    if own is None and type(session).get_bind is Session.get_bind:
        yield connection
        return
    routed: Any = session
    routed.get_bind = lambda *_, **__: connection
    try:
        with session.no_autoflush:
            yield connection
    finally:
        if own is None:
            del routed.get_bind
        else:
            routed.get_bind = own
