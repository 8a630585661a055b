"""One savepoint instead of two: ours, which is set already, also serves as the first one that SQLAlchemy sets.

SQLAlchemy counts that one as its own, and two round trips are saved: its SAVEPOINT and its RELEASE are not sent. For
that we use the `do_execute` event of the dialect, by which a listener executes a statement itself, or leaves it out.
"""

import re
import weakref
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import Dialect

from async_task.database.dialects import is_transaction_sound, uses_libpq


class _Lent:
    """Our savepoint, and the name that SQLAlchemy has given to it; None as long as it has set none."""

    __slots__ = ("name", "taken_as")

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken_as: str | None = None


_LENT: "weakref.WeakKeyDictionary[Connection, _Lent]" = weakref.WeakKeyDictionary()
_OF_SQLALCHEMY = re.compile(r"(SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) (sa_savepoint_\d+)")


def prepare_to_lend(dialect: Dialect) -> None:
    """Let savepoints be lent on connections of this dialect."""
    if not event.contains(dialect, "do_execute", _on_execute):
        event.listen(dialect, "do_execute", _on_execute)
        event.listen(dialect, "do_executemany", _on_executemany)
        event.listen(dialect, "do_execute_no_params", _on_execute_no_params)


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


def _on_execute(cursor: Any, statement: str, _parameters: Any, context: Any) -> bool:
    """Returns whether the statement is dealt with."""
    if "SAVEPOINT" not in statement[:21]:  # nearly all
        _end_lending(context)
        return False
    lent, found = _LENT.get(context.root_connection), _OF_SQLALCHEMY.fullmatch(statement)
    if lent is None or found is None:
        return False
    verb, name = found.groups()
    if verb == "SAVEPOINT" and lent.taken_as is None:
        lent.taken_as = name
        return True
    if name != lent.taken_as:
        return False
    if verb != "RELEASE SAVEPOINT" or not is_transaction_sound(context.root_connection):
        cursor.execute(f"{verb} {lent.name}")
    return True


def _on_executemany(_cursor: Any, _statement: str, _parameters: Any, context: Any) -> None:
    _end_lending(context)


def _on_execute_no_params(_cursor: Any, _statement: str, context: Any) -> None:
    _end_lending(context)


def _end_lending(context: Any) -> None:
    """Unless SQLAlchemy has set its savepoint already."""
    lent = _LENT.get(context.root_connection) if _LENT else None
    if lent is not None and lent.taken_as is None:
        del _LENT[context.root_connection]
