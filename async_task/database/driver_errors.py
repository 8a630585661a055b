"""What a driver's error means: whether it is transient, whether the database can be used at all, and which connections
have met a transient one."""

import socket
import weakref
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

# SQLSTATEs (PostgreSQL), error numbers (MySQL, MariaDB) and words (SQLite) of transient errors.
# 26000 and 42P05: a pooler in transaction mode has given the next transaction a session that does not have, or has
# already, the statement that the driver prepared.
TRANSIENT_STATES = ("08", "53", "57P", "40001", "40P01", "25006", "55P03", "26000", "42P05")
LIMIT_EXCEEDED = "53400"
"""A query of the call's own has exceeded a limit, as `temp_file_limit`, and will do so again."""
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


def sqlstate_of(error: BaseException | None) -> str | None:
    """The SQLSTATE of a driver's error, if it has one; `pgcode` is that of psycopg2."""
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state if isinstance(state, str) else None


def is_transient(error: BaseException | None) -> bool:
    """Whether this is an error of the infrastructure (connection, disk full, deadlock, serialization, read-only
    server), for which the call that met it is not to blame. Takes the driver's own exception (`DBAPIError.orig`)."""
    if error is None:
        return False
    # MySQL's number comes first: the SQLSTATE that PyMySQL adds since 1.2 is HY000 for most of them.
    code = error.args[0] if error.args else None
    if isinstance(code, int):
        return code in TRANSIENT_CODES
    if (state := sqlstate_of(error)) is not None:
        return state.startswith(TRANSIENT_STATES) and state != LIMIT_EXCEEDED
    return any(word in str(error).lower() for word in TRANSIENT_WORDS)


REFUSAL_CODES = frozenset({1644, 3819, 4025})
"""Of MySQL and MariaDB: a trigger's SIGNAL, and a CHECK. Drivers call some of them OperationalError, as what passes."""


def is_refusal(error: BaseException | None) -> bool:
    """Whether a driver's error says that a trigger or a constraint has refused the row, and will do so again."""
    return error is not None and bool(error.args) and error.args[0] in REFUSAL_CODES


def is_read_only(error: BaseException | None) -> bool:
    """Whether a driver's error says that its session may not write: it was opened while the database was read-only, or
    leads to a server that is no longer the primary. It will stay so; another connection need not."""
    code = error.args[0] if error is not None and error.args else None
    is_mysql = code == 1836 or (code == 1290 and "read-only" in str(error))
    return is_mysql or sqlstate_of(error) == "25006"


ACCESS_STATES = ("28", "3D")
ACCESS_CODES = frozenset({0, 1044, 1045, 1049, 1129, 1130, 1203, 1226, 1698})


def is_unusable(error: BaseException | None) -> bool:
    """Whether a driver's OperationalError or InterfaceError means that the database cannot be used, now or by this URL:
    not reachable, no access, or no such database. False if it refused a statement. Takes `DBAPIError.orig`."""
    if is_transient(error):
        return True
    code = error.args[0] if error is not None and error.args else None
    if isinstance(code, int):
        return code in ACCESS_CODES or 2000 <= code < 2100  # those of MySQL's client library
    if (state := sqlstate_of(error)) is not None:
        return state.startswith(ACCESS_STATES)
    # Before it is connected, PostgreSQL's driver has no SQLSTATE. SQLite's words were checked above.
    return not hasattr(error, "sqlite_errorcode")


def is_unavailable(error: BaseException) -> bool:
    """Whether an error says that the database cannot be used: not reached, no access, read-only, or gone; for programs
    that wait and try again, or report that apart. Takes what a verb raised, of SQLAlchemy, asyncpg, or the system.

        try:
            outbox.run_batch()
        except Exception as error:
            sys.exit(69 if is_unavailable(error) else 1)
    """
    # asyncpg's errors have SQLAlchemy's most general class.
    if isinstance(error, DBAPIError) and (error.connection_invalidated or is_transient(error.orig)):
        return True
    if isinstance(error, (OperationalError, InterfaceError)):
        return is_unusable(error.orig)
    # asyncpg's own errors come through SQLAlchemy as they are while a connection is made.
    is_asyncpg = type(error).__module__.partition(".")[0] == "asyncpg"
    return is_asyncpg or isinstance(error, (ConnectionError, socket.gaierror, TimeoutError))


def is_statement_timeout(error: BaseException | None) -> bool:
    """Whether a driver's error says that the server canceled a statement that ran too long."""
    return sqlstate_of(error) == "57014" or (error is not None and bool(error.args) and error.args[0] in (1969, 3024))


def is_lock_refused(error: BaseException | None) -> bool:
    """Whether a driver's error says that NOWAIT has met a lock."""
    code = error.args[0] if error is not None and error.args else None
    return code in (1205, 3572) or sqlstate_of(error) == "55P03"


FAULTS: "weakref.WeakKeyDictionary[Connection, bool]" = weakref.WeakKeyDictionary()
"""Connections that have met a transient error, and whether the server then rolled back the whole transaction with its
savepoints. We keep no error: its traceback refers to the connection, which is the key, and both would stay for ever."""


OURS: "weakref.WeakSet[Engine]" = weakref.WeakSet()
"""The engines of the library, some on a pool of the user's: they drop connections that may not write."""


IN_CALLS: "weakref.WeakSet[Connection]" = weakref.WeakSet()
"""Connections on which the session of a call works now: there a statement may be refused by its own doing."""


def note_faults(dialect: Dialect) -> None:
    """Record the transient errors of this dialect's connections in `FAULTS`, so that a target that catches one does not
    hide it."""
    if not event.contains(dialect, "handle_error", _on_error):
        event.listen(dialect, "handle_error", _on_error)


def note_fault(connection: Connection, error: BaseException) -> None:
    """Record that `connection` met this transient error of its driver.

    Only MySQL's deadlock (1213) is known to roll back the savepoints too: a call that catches it continues in another
    transaction. A lock timeout (1205) does so only with `innodb_rollback_on_timeout`.
    """
    FAULTS[connection] = FAULTS.get(connection, False) or error.args[:1] == (1213,)


def _on_error(context: Any) -> None:
    connection, error = context.connection, context.original_exception
    if context.engine in OURS and connection not in IN_CALLS and is_read_only(error):
        context.is_disconnect = True
    # A coroutine that is canceled during a statement ends its connection itself: that is no fault.
    is_fault = is_transient(error) or (context.is_disconnect and isinstance(error, Exception))
    if connection is not None and is_fault:
        note_fault(connection, error)


def transient_error(error: BaseException) -> DBAPIError | None:
    """The transient database error that `error` is, or that caused it; None if there is none."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, DBAPIError) and (one.connection_invalidated or is_transient(one.orig)):
            return one
        one = one.__cause__ or one.__context__
    return None
