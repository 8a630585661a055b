"""The session that a target is handed. It works inside of the transaction of the call, and never ends it."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IllegalStateChangeError
from sqlalchemy.orm import Session

from async_task.database.lanes import Lane, lend_lane
from async_task.database.sessions import is_async_session
from async_task.errors import AsyncTaskError


class CallSession:
    """The session of the call that runs now, if it has one."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._session: Session | None = None

    def make(
        self, wanted: type[Any], made_by: type[Any], options: dict[str, Any], open_transaction: Callable[[], Connection]
    ) -> Any:
        """The session for the target: of the class that it takes, or of the user's own subclass of that.
        `open_transaction`: opens the transaction of the call unless it is open, and returns its connection.

        It gets its connection through `get_bind`, at its first use: so it works for both modes and both kinds of
        session, and whatever routing a user's class has, it is inside our transaction. (An `after_begin` listener would
        be called too late to lock the row before the savepoint.) Its commit() and rollback() end savepoints inside of
        ours, and nothing else.
        """
        cls = made_by if issubclass(made_by, wanted) else wanted
        # Without "create_savepoint" rollback() would end our transaction. Its first savepoint is ours: see
        # `CallTransaction._lock`.
        session = cls(**options, join_transaction_mode="create_savepoint")
        own: Any = session.sync_session if is_async_session(cls) else session
        own.get_bind = lambda *args, **kwargs: self._open_for(own, open_transaction)
        self._session = own
        lend_lane(own, self._lane)
        return session

    def keep(self) -> None:
        """Send its writes, and close it. Raises what the database raises."""
        if self._session is not None:
            if self._session.in_transaction():
                self._session.commit()
            self._session.close()
            self._session = None

    def undo(self) -> bool:
        """Undo its writes, and close it. Returns whether that was possible: not while another task of the call uses
        it, which may still write something."""
        session, self._session = self._session, None
        if session is None:
            return True
        return all([_has_ended(session.rollback), _has_ended(session.close)])

    def forget(self) -> None:
        """The next call begins, which gets a session of its own."""
        self._session = None

    def _open_for(self, session: Session, open_transaction: Callable[[], Connection]) -> Connection:
        # A session kept from an earlier call would write into the transaction of the call that runs now.
        if session is not self._session:
            raise AsyncTaskError("the call that this session was made for has ended")
        return open_transaction()


def _has_ended(end: Callable[[], None]) -> bool:
    """Whether this end of a session was possible, or failed for another reason than that it is in use."""
    try:
        end()
    except IllegalStateChangeError:
        return False
    except Exception:
        return True
    return True
