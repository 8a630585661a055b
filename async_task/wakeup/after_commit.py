"""After the commit: functions that are called once a transaction has committed, and never if it rolls back.

1. A session keeps them by SAVEPOINT, so that those of one that is rolled back are forgotten.
2. They are called when its outermost transaction has ended, and its connection is returned.
3. A session on a connection joins a transaction of somebody else, which commits later. If a call was given the session,
   whoever commits the call calls `run_committed`; otherwise they wait until the connection is returned, or begins
   its next transaction.
"""

import logging
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, event
from sqlalchemy.orm import Mapper, Session, SessionTransaction

from async_task.database.dialects import CALLED_AFTER_COMMIT
from async_task.database.lanes import OURS_ON_POOLS, has_lane
from async_task.database.sessions import write_arguments
from async_task.error_text import describe

logger = logging.getLogger("async_task")
Function: TypeAlias = Callable[[], object]
_KEY = "async_task.after_commit"


class _Later(NamedTuple):
    """`connection`: on which the session joins a transaction; None if the session ends its own. `by_lane`: whether
    whoever commits it calls `run_committed`. `savepoints`: of that connection, in which it was committed."""

    function: Function
    connection: Connection | None
    by_lane: bool
    savepoints: frozenset[str] = frozenset()


class _Waiting:
    """What waits for the outermost transaction of a session."""

    __slots__ = ("by_transaction", "committed")

    def __init__(self) -> None:
        self.by_transaction: dict[SessionTransaction | None, list[_Later]] = {}
        self.committed: list[_Later] = []


def call_after_commit(session: Session, mapper: Mapper[Any], function: Function) -> None:
    """Call `function` when the transaction has committed in which `session` writes rows of `mapper`. It uses neither
    the session nor its rows. What it raises is logged."""
    bind = session.get_bind(**write_arguments(mapper))
    connection = bind if isinstance(bind, Connection) else None
    waiting: _Waiting = session.info.setdefault(_KEY, _Waiting())
    innermost = session.get_nested_transaction() or session.get_transaction()
    later = _Later(function, connection, connection is not None and has_lane(session))
    waiting.by_transaction.setdefault(innermost, []).append(later)


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    waiting: _Waiting | None = session.info.get(_KEY)
    if waiting is None:
        return
    nested = session.get_nested_transaction()
    if nested is None:
        waiting.committed += waiting.by_transaction.pop(session.get_transaction(), [])
    else:
        released = waiting.by_transaction.pop(nested, [])
        waiting.by_transaction.setdefault(nested.parent, []).extend(released)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    waiting: _Waiting | None = session.info.get(_KEY)
    if waiting is None:
        return
    if transaction.parent is not None:
        waiting.by_transaction.pop(transaction, None)  # a SAVEPOINT that was rolled back
        return
    del session.info[_KEY]
    for one in waiting.committed:
        if one.connection is None or not one.connection.in_transaction():
            _call(one.function)
        else:
            _keep(one, one.connection)


# On a connection, in a transaction of somebody else.


_uncommitted: "weakref.WeakKeyDictionary[Connection, list[_Later]]" = weakref.WeakKeyDictionary()


def run_committed(connection: Connection) -> None:
    """Call what waits for sessions that calls were given: the transaction of their lane has committed."""
    for one in _uncommitted.pop(connection, ()):
        _call(one.function)


def number_waiting(connection: Connection) -> int:
    """How many functions wait for the commit of this connection."""
    return len(_uncommitted.get(connection, ()))


def forget_waiting(connection: Connection, number: int = 0) -> None:
    """Forget all but the first `number`: what they belong to is rolled back, or nobody knows whether it is."""
    if connection in _uncommitted:
        del _uncommitted[connection][number:]


def _keep(one: _Later, connection: Connection) -> None:
    if connection not in _uncommitted:
        _uncommitted[connection] = []
    if not one.by_lane and not event.contains(connection, "commit", _on_commit):
        event.listen(connection, "commit", _on_commit)
        event.listen(connection, "rollback", _on_rollback)
        event.listen(connection, "begin", _on_begin)
        event.listen(connection, "rollback_savepoint", _on_rollback_to)
    _uncommitted[connection].append(one._replace(savepoints=_savepoints_of(connection)))


def _savepoints_of(connection: Connection) -> frozenset[str]:
    """The names of the SAVEPOINTs that are open on it: SQLAlchemy has no public way."""
    names, one = set[str](), connection.get_nested_transaction()
    while one is not None:
        names.add(getattr(one, "_savepoint", ""))
        one = getattr(one, "_previous_nested", None)
    return frozenset(names)


def _on_commit(connection: Connection) -> None:
    """Called just before the COMMIT, after which the connection is returned."""
    for one in _uncommitted.pop(connection, ()):
        if not event.contains(connection.engine, "checkin", _on_return):
            event.listen(connection.engine, "checkin", _on_return)
        connection.info.setdefault(_KEY, []).append(one.function)


CALLED_AFTER_COMMIT.add(_on_commit)


def _on_rollback(connection: Connection) -> None:
    _uncommitted.pop(connection, None)
    if not (connection.closed or connection.invalidated):
        connection.info.pop(_KEY, None)


def _on_rollback_to(connection: Connection, name: str, _context: object) -> None:
    if waiting := _uncommitted.get(connection):
        waiting[:] = [one for one in waiting if name not in one.savepoints]


def _on_begin(connection: Connection) -> None:
    """Called before its next transaction: the COMMIT before that has succeeded, or nothing would wait."""
    for function in connection.info.pop(_KEY, ()):
        _call(function)


def _on_return(_driver: Any, record: Any) -> None:
    for function in record.info.pop(_KEY, ()):
        _call(function)


OURS_ON_POOLS.add(_on_return)


def _call(function: Function) -> None:
    try:
        function()
    except Exception as error:  # the commit is done: an error here must not look like one that failed
        logger.error("what follows a commit raised %s", describe(error).summary)
