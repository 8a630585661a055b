"""Notices: on PostgreSQL, a NOTIFY to who sleeps, in the transaction that makes attempts due. Nobody asleep, none sent.

1. One statement asks whether a worker is asleep and tells it. What it answers "nobody" to is believed for 20 ms.
2. It must never cost the caller its transaction: it runs in a SAVEPOINT, always, because the next transaction may have
   another role or another search path. The COMMIT that follows releases it. psycopg sends all of it at once.
3. If it cannot be (no such table, no such column, no right to read it), that is believed for a minute.
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
from sqlalchemy.sql.compiler import SQLCompiler

from async_task.database.clock import statement_now
from async_task.database.dialects import notifies, pipelines
from async_task.schema.tables import companion_tables
from async_task.wakeup.in_process import place_of

logger = logging.getLogger("async_task")
OPEN = "SAVEPOINT async_task_notice"
UNDO = "ROLLBACK TO SAVEPOINT async_task_notice"
CLOSE = "RELEASE SAVEPOINT async_task_notice"
LONGEST_NAME, LONGEST_PAYLOAD = 63, 7_999
"""Of a channel, and of what is said on it, in bytes."""
SILENT = 60.0
"""Seconds after which a sleeper that has not beaten is taken for dead."""
NOBODY_FOR = 0.02
UNABLE_FOR = 60.0
_QUIET = {True: 0.0, False: NOBODY_FOR, None: UNABLE_FOR}


def channel_of(table: Table) -> str:
    """The channel on which this table's news come: its name, with its schema's; shortened where that is too long."""
    name = table.fullname
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"async_task_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def switch(table: Table, on: bool) -> None:
    """From now on, this process tells others of new rows of this table, or does not."""
    (_off.discard if on else _off.add)(table)


def may_notify(engine: Engine, table: Table) -> bool:
    """Whether `tell` would ask now. Costs no statement."""
    if table in _off or not notifies(engine.dialect):
        return False
    known = _known.get(place_of(table, engine.url))
    return known is None or time.monotonic() >= known.quiet_until


def notify_sleepers(connection: Connection, table: Table, counts: Mapping[str, int], *, ends: bool = False) -> None:
    """Tell whoever sleeps, at the commit of this connection's transaction, how many rows are new by queue.

    The transaction lives on, whatever is missing. `ends`: it is about to end, and little is still written in it.
    """
    if not may_notify(connection.engine, table) or not counts or _is_twophase(connection):
        return
    place = place_of(table, connection.engine.url)
    known = _known.get(place) or _known.setdefault(place, _Known(table))
    now = time.monotonic()
    known.quiet_until = now + _QUIET[_was_heard(connection, known, counts, ends=ends)]


def payload(counts: Mapping[str, int]) -> str:
    """Numbers of new rows and their queues, a line each: as many lines as fit. Who is woken by one looks anyway."""
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
    """How many rows are new, by queue; nothing for a text that is none of ours."""
    lines = (line.partition(" ") for line in text.split("\n"))
    return {queue: int(number) for number, _, queue in lines if queue and number.isascii() and number.isdigit()}


class _Known:
    """What this process knows of one table in one database."""

    def __init__(self, table: Table) -> None:
        self.channel = channel_of(table)
        self.statement = _statement(table)
        self.compiled: SQLCompiler | None = None
        self.quiet_until = 0.0

    def written_out(self, connection: Connection) -> SQLCompiler:
        """The statement as psycopg takes it."""
        compiled = self.compiled
        if compiled is None:
            compiled = self.compiled = self.statement.compile(dialect=connection.dialect)
        return compiled


_off: "weakref.WeakSet[Table]" = weakref.WeakSet()
_known: dict[Any, _Known] = {}


def _statement(table: Table) -> Any:
    workers = companion_tables(table).workers.c
    sleeper = exists().where(
        workers.asleep, workers.job_type == table.name, workers.beat_at >= statement_now(-SILENT)
    )  # fmt: skip
    return select(func.pg_notify(bindparam("channel", type_=Text()), bindparam("payload", type_=Text()))).where(sleeper)


def _was_heard(connection: Connection, known: _Known, counts: Mapping[str, int], *, ends: bool) -> bool | None:
    """Whether anybody was asleep, and is told; None where that cannot be asked."""
    values = {"channel": known.channel, "payload": payload(counts)}
    if pipelines(connection):
        return _was_heard_at_once(connection, known, values, ends=ends)
    is_safe = False
    try:
        # As texts: SQLAlchemy compiles its own SAVEPOINT anew each time, which is most of what it costs.
        connection.exec_driver_sql(OPEN)
        is_safe = True
        is_heard = bool(connection.execute(known.statement, values).all())
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        if is_safe:
            connection.exec_driver_sql(UNDO)
        _say_unable(error.orig)
        return None
    if not ends:
        connection.exec_driver_sql(CLOSE)
    return is_heard


def _was_heard_at_once(
    connection: Connection, known: _Known, values: Mapping[str, str], *, ends: bool
) -> bool | None:  # fmt: skip
    """The same on one way to the server and back. What is broken for good, the next statement says."""
    from psycopg import Error
    from psycopg.pq import TransactionStatus

    driver: Any = connection.connection.driver_connection
    if driver.autocommit or driver.info.transaction_status == TransactionStatus.INERROR:
        _say_unable(None)
        return None
    asked = known.written_out(connection)
    try:
        with driver.pipeline():
            driver.execute(OPEN)
            found = driver.execute(asked.string, {**asked.params, **values})
            if not ends:
                driver.execute(CLOSE)
    except Error as error:
        connection.exec_driver_sql(UNDO)
        _say_unable(error)
        return None
    return bool(found.rowcount)


def _say_unable(error: BaseException | None) -> None:
    reason = "no transaction that lives" if error is None else type(error).__name__
    logger.info("workers that sleep are not told of new attempts: %s", reason)


def _is_twophase(connection: Connection) -> bool:
    # Such a transaction cannot be prepared once it holds a NOTIFY.
    return isinstance(connection.get_transaction(), TwoPhaseTransaction)
