"""One savepoint instead of two: ours, which is set already, also serves as the first one that SQLAlchemy sets.

SQLAlchemy counts that one as its own, and its SAVEPOINT and RELEASE are neither compiled nor sent. For that, the three
methods by which a dialect sets and ends savepoints are wrapped: they are public, and for any other savepoint the method
that was there is called. If SQLAlchemy came to execute its SAVEPOINT without them, that statement would end the
lending, and both savepoints would be set.
"""

import weakref
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import Dialect

from async_task.database.dialects import is_transaction_sound, uses_libpq

Do = Callable[[Connection, str], None]
OF_SQLALCHEMY = "sa_savepoint_"
"""How the names begin that SQLAlchemy gives to its savepoints, each once on a connection."""


class _Lent:
    """Our savepoint, and the name that SQLAlchemy has given to it; None as long as it has set none."""

    __slots__ = ("name", "taken_as")

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken_as: str | None = None


_LENT: "weakref.WeakKeyDictionary[Connection, _Lent]" = weakref.WeakKeyDictionary()


def prepare_to_lend(dialect: Dialect) -> None:
    """Let savepoints be lent on connections of this dialect, once, and where that is possible."""
    own: Any = dialect
    # A listener of the user's may execute a statement itself, after which those behind it are not told of it.
    is_heard = not any(getattr(own.dispatch, name) for name in ("do_execute", "do_executemany", "do_execute_no_params"))
    if uses_libpq(dialect) and is_heard:
        event.listen(dialect, "do_execute", _on_execute)
        event.listen(dialect, "do_executemany", _on_executemany)
        event.listen(dialect, "do_execute_no_params", _on_execute_no_params)
        own.do_savepoint = _setting(own.do_savepoint)
        own.do_release_savepoint = _releasing(own.do_release_savepoint)
        own.do_rollback_to_savepoint = _rolling_back(own.do_rollback_to_savepoint)


def lend_savepoint(connection: Connection, name: str) -> None:
    """Let the savepoint `name`, which was just set, serve as the next one that SQLAlchemy sets on `connection`. What is
    rolled back to that is rolled back to ours, and its release changes nothing.

    Only until another statement is executed: what that writes is not to be undone with what comes later. And only
    through psycopg: it knows without asking whether the transaction has failed, in which case a release raises.
    Elsewhere this does nothing, and SQLAlchemy sets its own savepoint inside of ours.
    """
    if uses_libpq(connection.dialect):
        _LENT[connection] = _Lent(name)


def reclaim_savepoint(connection: Connection) -> None:
    """From now on all savepoints of SQLAlchemy are set."""
    _LENT.pop(connection, None)


def _setting(do: Do) -> Do:
    def do_savepoint(connection: Connection, name: str) -> None:
        lent = _LENT.get(connection) if _LENT else None
        if lent is None or lent.taken_as is not None or not name.startswith(OF_SQLALCHEMY):
            do(connection, name)
        else:
            lent.taken_as = name

    return do_savepoint


def _releasing(do: Do) -> Do:
    def do_release_savepoint(connection: Connection, name: str) -> None:
        lent = _lent_as(connection, name)
        if lent is None:
            do(connection, name)
        elif not is_transaction_sound(connection):
            do(connection, lent.name)

    return do_release_savepoint


def _rolling_back(do: Do) -> Do:
    def do_rollback_to_savepoint(connection: Connection, name: str) -> None:
        lent = _lent_as(connection, name)
        do(connection, name if lent is None else lent.name)

    return do_rollback_to_savepoint


def _lent_as(connection: Connection, name: str) -> _Lent | None:
    lent = _LENT.get(connection) if _LENT else None
    return lent if lent is not None and lent.taken_as == name else None


def _on_execute(_cursor: Any, _statement: str, _parameters: Any, context: Any) -> None:
    _end_lending(context)


def _on_executemany(_cursor: Any, _statement: str, _parameters: Any, context: Any) -> None:
    _end_lending(context)


def _on_execute_no_params(_cursor: Any, _statement: str, context: Any) -> None:
    _end_lending(context)


def _end_lending(context: Any) -> None:
    """Unless SQLAlchemy has set its savepoint already."""
    lent = _LENT.get(context.root_connection) if _LENT else None
    if lent is not None and lent.taken_as is None:
        del _LENT[context.root_connection]
