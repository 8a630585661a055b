"""Notifications: on PostgreSQL, a NOTIFY to sleeping workers, in the transaction that makes attempts due.

1. One statement finds whether a worker sleeps, and notifies it. If none sleeps, we do not ask again for 20 ms.
2. It must never fail the caller's transaction, so it always runs in a SAVEPOINT: role and search path may differ from
   one transaction to the next. A COMMIT releases the SAVEPOINT. With psycopg all of it is one round trip.
3. If the database refuses it (no such table or column, or no right to read it), we do not ask again for a minute.
4. A transaction sends one notification, with its queues as lines of text: cheaper than one for each queue.
"""

import hashlib
import logging
import time
import weakref
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, Table, Text, bindparam, exists, func, select
from sqlalchemy.engine import TwoPhaseTransaction
from sqlalchemy.exc import DBAPIError

from async_task.database.clock import statement_now
from async_task.database.dialects import notifies, pipelines
from async_task.database.driver_errors import sqlstate_of
from async_task.database.pipeline import Step, StepFailed, try_in_turn
from async_task.schema.tables import companion_tables
from async_task.wakeup.in_process import table_key

logger = logging.getLogger("async_task")
OPEN = "SAVEPOINT async_task_notice"
UNDO = "ROLLBACK TO SAVEPOINT async_task_notice"
CLOSE = "RELEASE SAVEPOINT async_task_notice"
LONGEST_NAME, LONGEST_PAYLOAD = 63, 7_999
"""Of a channel and of a payload, in bytes."""
DEAD_AFTER = 60.0
"""Seconds without a heartbeat after which a sleeping worker counts as dead."""
NOTIFIED, NOBODY_FOR, UNABLE_FOR = 0.0, 0.02, 60.0
"""Seconds for which we do not ask again: after a notification, if no worker slept, and if the database refused."""


def channel_of(table: Table) -> str:
    """The channel for this table: its name with its schema, or a hash of that if it is too long. Tables that an engine
    translates to other schemas share one: a worker that is woken for another one polls in vain."""
    name = table.fullname
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"async_task_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def switch_notify(table: Table, on: bool) -> None:
    """Let this process notify others of new rows of this table, or not."""
    (_off.discard if on else _off.add)(table)


def may_notify(engine: Engine, table: Table) -> bool:
    """Whether `notify_sleepers` would ask the database now. Executes no statement."""
    if table in _off or not notifies(engine.dialect):
        return False
    known = _known.get(_key(engine, table))
    return known is None or time.monotonic() >= known.quiet_until


def notify_sleepers(connection: Connection, table: Table, counts: Mapping[str, int], *, ends: bool = False) -> None:
    """Notify sleeping workers, when this connection's transaction commits, of the number of new rows by queue.

    The transaction stays usable, whatever fails here. `ends`: it is about to commit, which releases the SAVEPOINT.
    """
    if not may_notify(connection.engine, table) or not counts or _is_twophase(connection):
        return
    key = _key(connection, table)
    known = _known.get(key) or _known.setdefault(key, _Known(table))
    now = time.monotonic()
    known.quiet_until = now + _find_and_notify(connection, known, counts, ends=ends)


def payload(counts: Mapping[str, int]) -> str:
    """A line for each queue: the number of its new rows, and its name. As many lines as fit: a worker polls all of its
    queues when it is woken."""
    lines: list[str] = []
    room = LONGEST_PAYLOAD + 1  # the last line has no end
    for queue, number in counts.items():
        line = f"{number} {queue}"
        room -= len(line.encode()) + 1
        if room < 0:
            break
        lines.append(line)
    return "\n".join(lines)


def read_payload(text: str) -> dict[str, int]:
    """The number of new rows by queue; lines that are not ours are left out."""
    lines = (line.partition(" ") for line in text.split("\n"))
    return {queue: int(number) for number, _, queue in lines if queue and number.isascii() and number.isdigit()}


def _key(where: Engine | Connection, table: Table) -> Any:
    """Of this table in this database, and in the schema that it is translated to."""
    translated = where.get_execution_options().get("schema_translate_map") or {}
    return table_key(table, where.engine.url), translated.get(table.schema)


class _Known:
    """What this process knows about sleeping workers for one table in one database."""

    def __init__(self, table: Table) -> None:
        self.channel = channel_of(table)
        self.statement = _statement(table)
        self.quiet_until = 0.0


_off: "weakref.WeakSet[Table]" = weakref.WeakSet()
_known: dict[Any, _Known] = {}


def _statement(table: Table) -> Any:
    workers = companion_tables(table).workers.c
    sleeper = exists().where(
        workers.asleep, workers.job_type == table.name, workers.beat_at >= statement_now(-DEAD_AFTER)
    )  # fmt: skip
    return select(func.pg_notify(bindparam("channel", type_=Text()), bindparam("payload", type_=Text()))).where(sleeper)


def _find_and_notify(connection: Connection, known: _Known, counts: Mapping[str, int], *, ends: bool) -> float:
    """Notify sleeping workers; return for how many seconds we do not ask again."""
    values = {"channel": known.channel, "payload": payload(counts)}
    is_autocommit = bool(getattr(connection.connection.dbapi_connection, "autocommit", False))
    if pipelines(connection) and not is_autocommit:
        return _find_and_notify_pipelined(connection, known, values, ends=ends)
    is_open = False
    try:
        if not is_autocommit:  # there each statement stands alone: the rows are committed, and nothing is aborted
            # As SQL text: SQLAlchemy compiles its own SAVEPOINT again each time, which is most of its cost.
            connection.exec_driver_sql(OPEN)
            is_open = True
        is_notified = bool(connection.execute(known.statement, values).all())
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        if is_open:
            connection.exec_driver_sql(UNDO)
        return _quiet_after(error.orig)
    if is_open and not ends:
        connection.exec_driver_sql(CLOSE)
    return NOTIFIED if is_notified else NOBODY_FOR


def _find_and_notify_pipelined(
    connection: Connection, known: _Known, values: Mapping[str, str], *, ends: bool
) -> float:  # fmt: skip
    """The same in one round trip. A text of three statements would be planned each time, and a DO block returns
    nothing."""
    from psycopg.pq import TransactionStatus

    driver: Any = connection.connection.driver_connection
    if driver.info.transaction_status == TransactionStatus.INERROR:
        return NOTIFIED  # it will be rolled back
    ends_with = () if ends else (Step(CLOSE),)
    try:
        _, found, *_ = try_in_turn(connection, Step(OPEN), Step(known.statement, values), *ends_with)
    except StepFailed as failed:
        error: Any = failed.error
        if error.connection_invalidated:
            raise error from failed.__cause__
        connection.exec_driver_sql(UNDO)
        return _quiet_after(error.orig)
    return NOTIFIED if found.rows else NOBODY_FOR


def _quiet_after(error: BaseException | None) -> float:
    """For how many seconds we do not ask again after this error. Long where the database refuses the question itself
    (SQLSTATE 42...); any other error is one of this transaction, and says nothing about the next one."""
    logger.info("sleeping workers are not notified of new attempts: %s", type(error).__name__)
    return UNABLE_FOR if str(sqlstate_of(error)).startswith("42") else NOBODY_FOR


def _is_twophase(connection: Connection) -> bool:
    # PostgreSQL cannot prepare a transaction that has executed a NOTIFY.
    return isinstance(connection.get_transaction(), TwoPhaseTransaction)
