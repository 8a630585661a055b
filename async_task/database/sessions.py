"""Which kind of session something is.

SQLAlchemy's asyncio half needs greenlet, which a synchronous program may not have. So we never import it here: nothing
can be an instance of a class that nobody has imported.
"""

import sys
from typing import Any

from sqlalchemy.orm import Session, scoped_session

from async_task.errors import ConfigurationError


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
        raise ConfigurationError(
            "this does I/O, for which an AsyncSession must be awaited: "
            "await session.run_sync(attempt.cancel, reason=...), "
            "await session.run_sync(Attempt.ensure, target=..., ...)"
        )
    return sync_session(session)


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
