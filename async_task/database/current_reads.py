"""Reading what is committed now, without a lock, beside a transaction that reads a snapshot: on MySQL and MariaDB by
default, on PostgreSQL above READ COMMITTED."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, NullPool, QueuePool, Select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from async_task.database.dialects import locks_rows

SNAPSHOTS = frozenset({"REPEATABLE READ", "SERIALIZABLE"})
"""The levels at which a transaction reads what was committed when it began to read."""


def reads_current(connection: Connection) -> bool:
    """Whether a plain SELECT in this transaction sees what is committed now. Asks the server: not only the engine may
    have set the level. On SQLite it does, if anything is written in it: no other transaction can be."""
    return not locks_rows(connection.dialect) or connection.get_isolation_level() not in SNAPSHOTS


def committed_scalar(connection: Connection, statement: Select[Any]) -> Any:
    """The first column of the first row as it is committed now, read on another connection of the same engine. None
    without a row, and where no other connection is to be had at once."""
    try:
        with _second(connection) as second:
            return None if second is None else second.execute(statement).scalar()
    except SQLAlchemyError:  # as the server has no connection left
        return None


def first_committed(session: Session, connection: Connection, find: Select[Any], key: ColumnElement[Any]) -> Any:
    """The first object that `find` finds, also if it was committed after this transaction has begun to read; None
    without one. `key`: the column that is null in no row."""
    there = session.scalars(find).unique().first()
    if there is not None or reads_current(connection):
        return there
    if committed_scalar(connection, find.with_only_columns(key)) is None:
        return None
    return session.scalars(find.with_for_update(read=True)).unique().first()  # a lock reads what is committed


@contextmanager
def _second(connection: Connection) -> Iterator[Connection | None]:
    if not _has_room(connection.engine):
        yield None
        return
    with connection.engine.connect() as second:
        # Without a transaction: one that is SERIALIZABLE would wait for the locks of others.
        yield second.execution_options(isolation_level="AUTOCOMMIT")


def _has_room(engine: Engine) -> bool:
    """Whether the pool gives one more connection without waiting.

    Another thread may take it meanwhile. Even then, transactions that wait here cannot all wait for each other: the one
    that has looked last has seen a connection that none of them holds.
    """
    pool: Any = engine.pool
    if isinstance(pool, QueuePool):
        most = getattr(pool, "_max_overflow", 0)  # -1: no limit
        return pool.checkedin() > 0 or most == -1 or pool.overflow() < most
    return isinstance(pool, NullPool)
