"""Workers: each process that performs attempts has a row with its heartbeat, beside the attempts.

1. Its name, and what tells its process from a later one with the same id.
2. `beat`, `register`, `mark_asleep`, `mark_awake`: written by itself.
3. `deregister`, `deregister_process`, `forget_workers`: its end.
4. `running_workers`, `names_of`, `alive_here`: read by others.
"""

import datetime as dt
import json
import os
import secrets
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from async_task.database.clock import clock_now, statement_now
from async_task.database.dialects import locks_rows
from async_task.queue.backlog import MOST_COUNTED, num_claims
from async_task.queue.predicates import has_claim
from async_task.schema.states import extending, is_pending
from async_task.schema.tables import companion_tables


class Process(NamedTuple):
    """A process of some machine; `started` tells it from a later one with the same id."""

    host: str
    pid: int
    started: str


def worker_name() -> str:
    """A new name: host, process id, and eight random hexadecimal digits. Each runtime has a name of its own: under one
    for the process, the heartbeats of later runtimes would keep alive what an earlier one left claimed."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"


def process_started(pid: int) -> str | None:
    """What tells a process from a later one with the same id; None if there is no such process.

    Linux: boot and start time in clock ticks. Elsewhere the empty string: only the id is known there.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        # The command's name stands in parentheses and may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + ":" + fields[19]
    except OSError:
        return ""


def beat(
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, claimed: Sequence[uuid.UUID],
    *, kind: str | None = None,
) -> None:  # fmt: skip
    """Write this process's heartbeat, and extend the leases of the attempts that it has `claimed`; locked rows are
    skipped. Their leases are not needed until the lock is lost with its connection."""
    try:
        _beat(engine, table, worker, lease, claimed, kind)
    except IntegrityError:  # another lane wrote the first heartbeat at the same time
        _beat(engine, table, worker, lease, claimed, kind)


def register(connection: Connection, table: Table, worker: str, kind: str | None, **values: Any) -> None:
    """Write this process's heartbeat and `values`, by column; at first also its kind, host and process."""
    workers = companion_tables(table).workers
    beats = update(workers).where(workers.c.name == worker).values(beat_at=clock_now(), **values)
    if not connection.execute(beats).rowcount:
        started = process_started(os.getpid()) or ""
        me = {"name": worker, "host": socket.gethostname(), "pid": os.getpid(), "process_started": started}
        connection.execute(insert(workers).values(me | {"kind": kind, "job_type": table.name} | values))


def mark_asleep(where: Engine | Connection, table: Table, worker: str, *, kind: str | None = None) -> None:
    """From this commit on, transactions that make attempts due notify this process, for one minute or until
    `mark_awake`. Earlier ones do not: poll once more. To sleep longer, mark again within the minute."""
    _mark(where, table, worker, kind, asleep=True)


def mark_awake(where: Engine | Connection, table: Table, worker: str, *, kind: str | None = None) -> None:
    """This process polls by itself: it need not be notified."""
    _mark(where, table, worker, kind, asleep=False)


def _mark(where: Engine | Connection, table: Table, worker: str, kind: str | None, *, asleep: bool) -> None:
    if isinstance(where, Connection):  # one on which each statement is a transaction by itself
        register(where, table, worker, kind, asleep=asleep)
        return
    try:
        with where.begin() as connection:
            register(connection, table, worker, kind, asleep=asleep)
    except IntegrityError:  # its first heartbeat was written at the same time
        with where.begin() as connection:
            register(connection, table, worker, kind, asleep=asleep)


def _beat(
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, claimed: Sequence[uuid.UUID], kind: str | None
) -> None:
    with engine.begin() as connection:
        register(connection, table, worker, kind)
        if claimed:
            mine = (table.c.id.in_(claimed), table.c.claimed_by == worker, is_pending(table))
            free = select(table.c.id).where(*mine).with_for_update(skip_locked=True, key_share=True)
            ids = list(connection.scalars(free))
            connection.execute(update(table).where(table.c.id.in_(ids)).values(extending(lease)))


def deregister(engine: Engine, table: Table, worker: str) -> None:
    """Delete the row of a process that performs nothing any more: what it left claimed is an orphan from now on."""
    workers = companion_tables(table).workers
    with engine.begin() as connection:
        connection.execute(delete(workers).where(workers.c.name == worker))


def deregister_process(engine: Engine, table: Table, process: Process) -> bool:
    """Delete the rows, without claims, of a process that has died. Whether none is left."""
    workers = companion_tables(table).workers
    with engine.begin() as connection:
        connection.execute(delete(workers).where(*_is_of(workers, table, process), ~has_claim(table)))
        return not names_of(connection, table, process)


def forget_workers(engine: Engine, table: Table, older_than: dt.timedelta) -> None:
    """Delete the rows, without claims, of processes whose last heartbeat is older than that."""
    workers = companion_tables(table).workers
    silent = workers.c.beat_at < statement_now(-older_than.total_seconds())
    with engine.begin() as connection:
        connection.execute(delete(workers).where(silent, ~has_claim(table)))


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A process that performs attempts, by its row.

    `kind`: "worker", "run-batch", or None for a single call of the library. `silent_for`: since its last heartbeat, by
    the database's clock. `is_asleep`: it waits to be notified. `about`: what it says of itself: queues, worker threads,
    version. `claims`: how many attempts it has claimed; of all processes together 10,000 are counted at most.
    """

    name: str
    host: str
    pid: int
    kind: str | None
    started_at: dt.datetime
    beat_at: dt.datetime
    silent_for: dt.timedelta
    is_asleep: bool
    about: Mapping[str, Any]
    claims: int


def running_workers(engine: Engine, table: Table) -> list[WorkerInfo]:
    """The processes that perform attempts of this table, or did lately; those that began first come first."""
    c = companion_tables(table).workers.c
    columns: Any = select(c.name, c.host, c.pid, c.kind, c.started_at, c.beat_at, c.asleep, c.about, statement_now())
    mine = or_(c.job_type.is_(None), c.job_type == table.name)
    with engine.begin() as connection:
        found: Any = connection.execute(num_claims(table, table.c.claimed_by, MOST_COUNTED)).all()
        claims: dict[str, int] = dict(found)
        rows = connection.execute(columns.where(mine).order_by(c.started_at, c.name)).all()
    return [_info(claims, *row) for row in rows]


def _info(
    claims: Mapping[str, int], name: str, host: str, pid: int, kind: str | None, started_at: dt.datetime,
    beat_at: dt.datetime, asleep: bool, about: str | None, now: dt.datetime,
) -> WorkerInfo:  # fmt: skip
    silent = max(now - beat_at, dt.timedelta(0))
    said = json.loads(about) if about else {}
    return WorkerInfo(name, host, pid, kind, started_at, beat_at, silent, bool(asleep), said, claims.get(name, 0))


def names_of(connection: Connection, table: Table, process: Process) -> list[str]:
    """The names under which this process has performed attempts of this table."""
    workers = companion_tables(table).workers
    return list(connection.scalars(select(workers.c.name).where(*_is_of(workers, table, process))))


def _is_of(workers: Table, table: Table, process: Process) -> tuple[ColumnElement[bool], ...]:
    c = workers.c
    named = (c.host == process.host, c.pid == process.pid, c.process_started == process.started)
    return (*named, or_(c.job_type.is_(None), c.job_type == table.name))


def alive_here(connection: Connection, table: Table) -> list[str]:
    """Where rows cannot be locked (SQLite): the names of the workers whose processes run on this machine."""
    if locks_rows(connection.dialect):
        return []
    c = companion_tables(table).workers.c
    here = select(c.name, c.pid, c.process_started).where(c.host == socket.gethostname())
    return [row.name for row in connection.execute(here) if process_started(row.pid) == row.process_started]
