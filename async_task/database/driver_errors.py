"""What a driver's error says: whether it is transient, whether the database can be used at all, and which connections
have met one."""

import socket
import weakref
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

TRANSIENT_STATES = ("08", "53", "57P", "40001", "40P01", "25006", "55P03")
TRANSIENT_CODES = frozenset(
    {1020, 1021, 1040, 1041, 1053, 1158, 1159, 1160, 1161, 1205, 1213, 1290, 1836, 2002, 2003, 2006, 2013, 2055}
)
TRANSIENT_WORDS = (
    "database is locked",
    "database is busy",
    "disk is full",
    "disk i/o error",
    "readonly database",
    "unable to open",
)


def is_transient(error: BaseException | None) -> bool:
    """Whether a driver's error speaks of the infrastructure (connection, disk full, deadlock, serialization, read-only
    server) and says nothing of the call that met it. Takes the driver's own exception (`DBAPIError.orig`)."""
    if error is None:
        return False
    # MySQL's code comes first: the state that PyMySQL tells beside it since 1.2 is HY000 for most of them.
    code = error.args[0] if error.args else None
    if isinstance(code, int):
        return code in TRANSIENT_CODES
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(TRANSIENT_STATES)
    return any(word in str(error).lower() for word in TRANSIENT_WORDS)


ACCESS_STATES = ("28", "3D")


ACCESS_CODES = frozenset({0, 1044, 1045, 1049, 1129, 1130, 1203, 1226, 1698})


def is_unusable(error: BaseException | None) -> bool:
    """Whether a driver's OperationalError or InterfaceError says that the database cannot be used, for now or by this
    URL: not reached, no access, not there; and not that it refused a statement. Takes `DBAPIError.orig`."""
    if is_transient(error):
        return True
    code = error.args[0] if error is not None and error.args else None
    if isinstance(code, int):
        return code in ACCESS_CODES or 2000 <= code < 2100  # MySQL's own for its clients
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(ACCESS_STATES)
    # Before it is connected, PostgreSQL's driver has no state; and SQLite's words have been looked at.
    return not hasattr(error, "sqlite_errorcode")


def is_unavailable(error: BaseException) -> bool:
    """Whether an error says that the database cannot be used: not reached, no access, or gone; for programs that wait
    and try again, or report that apart. Takes what a verb raised, of SQLAlchemy, asyncpg, or the operating system.

        try:
            app.run_batch()
        except Exception as error:
            sys.exit(69 if is_unavailable(error) else 1)
    """
    if isinstance(error, (OperationalError, InterfaceError)):
        return is_unusable(error.orig)
    # asyncpg's own errors come through SQLAlchemy as they are while a connection is made.
    is_asyncpg = type(error).__module__.partition(".")[0] == "asyncpg"
    return is_asyncpg or isinstance(error, (ConnectionError, socket.gaierror, TimeoutError))


def is_statement_timeout(error: BaseException | None) -> bool:
    """Whether a driver's error says that the server cancelled a statement that ran too long."""
    return getattr(error, "sqlstate", None) == "57014" or (
        error is not None and bool(error.args) and error.args[0] in (1969, 3024)
    )


FAULTS: "weakref.WeakKeyDictionary[Connection, bool]" = weakref.WeakKeyDictionary()
"""Connections that have met an error of the infrastructure; and whether the server rolled back the whole transaction
with its savepoints. Not the error itself: its traceback holds the connection, which would stay for ever."""


def note_faults(dialect: Dialect) -> None:
    """From now on keep `FAULTS` for the connections of this dialect: who swallows such an error must not hide it."""
    if not event.contains(dialect, "handle_error", _heard):
        event.listen(dialect, "handle_error", _heard)


def note_fault(connection: Connection, error: BaseException) -> None:
    """It has met this error of the driver's. MySQL's deadlock, 1213, takes the savepoints along, which explains
    whatever comes after it: whoever swallows it goes on in another transaction."""
    FAULTS[connection] = FAULTS.get(connection, False) or error.args[:1] == (1213,)


def _heard(context: Any) -> None:
    connection, error = context.connection, context.original_exception
    # Whose statement was canceled has ended its connection itself.
    is_fault = is_transient(error) or (context.is_disconnect and isinstance(error, Exception))
    if connection is not None and is_fault:
        note_fault(connection, error)


def transient_error(error: BaseException) -> DBAPIError | None:
    """The database error behind `error` that speaks of the infrastructure and not of the call, or None."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, DBAPIError) and (one.connection_invalidated or is_transient(one.orig)):
            return one
        one = one.__cause__ or one.__context__
    return None
