"""Which processes are at work: each has a row, with its beat, in the table beside the attempts."""

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
from async_task.queue import predicates
from async_task.queue.predicates import has_beaten
from async_task.schema.states import extending, is_pending
from async_task.schema.tables import SCHEMA_VERSION, companion_tables


class Process(NamedTuple):
    """A process of some machine; `started` tells it from a later one with the same id."""

    host: str
    pid: int
    started: str


def worker_name() -> str:
    """A readable name for this process that no other has: host, process id, and eight random hexadecimal digits."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"


def process_started(pid: int) -> str | None:
    """What tells a process from a later one with the same id; None where there is no such process.

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
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, held: Sequence[uuid.UUID],
    *, kind: str | None = None,
) -> None:  # fmt: skip
    """Say that this process lives, and extend the leases of the claims it holds; rows locked meanwhile are skipped."""
    try:
        _beat(engine, table, worker, lease, held, kind)
    except IntegrityError:  # the first beats of two lanes met
        _beat(engine, table, worker, lease, held, kind)


def register(connection: Connection, table: Table, worker: str, kind: str | None, **said: Any) -> None:
    """Say that this process lives, what else is `said` by column, and at first also what it is."""
    workers = companion_tables(table).workers
    beats = update(workers).where(workers.c.name == worker).values(beat_at=clock_now(), **said)
    if not connection.execute(beats).rowcount:
        started = process_started(os.getpid()) or ""
        me = {"name": worker, "host": socket.gethostname(), "pid": os.getpid(), "process_started": started}
        connection.execute(insert(workers).values(me | {"kind": kind, "job_type": table.name} | said))


def mark_asleep(where: Engine | Connection, table: Table, worker: str, *, kind: str | None = None) -> None:
    """From its commit on, who makes attempts due tells this process by a NOTIFY; for one minute, or until `awake`.

    What was committed before was not told: look once more. Who sleeps longer says so again within the minute.
    """
    _say(where, table, worker, kind, asleep=True)


def mark_awake(where: Engine | Connection, table: Table, worker: str, *, kind: str | None = None) -> None:
    """Nobody need tell this process anything: it looks by itself."""
    _say(where, table, worker, kind, asleep=False)


def _say(where: Engine | Connection, table: Table, worker: str, kind: str | None, **said: Any) -> None:
    if isinstance(where, Connection):  # one on which each statement is a transaction by itself
        register(where, table, worker, kind, **said)
        return
    try:
        with where.begin() as connection:
            register(connection, table, worker, kind, **said)
    except IntegrityError:  # its first beat came between
        with where.begin() as connection:
            register(connection, table, worker, kind, **said)


def _beat(
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, held: Sequence[uuid.UUID], kind: str | None
) -> None:
    with engine.begin() as connection:
        register(connection, table, worker, kind)
        if held:
            mine = (table.c.id.in_(held), table.c.claimed_by == worker, is_pending(table))
            free = select(table.c.id).where(*mine).with_for_update(skip_locked=True, key_share=True)
            ids = list(connection.scalars(free))
            connection.execute(update(table).where(table.c.id.in_(ids)).values(extending(lease)))


def forget_workers(engine: Engine, table: Table, older_than: dt.timedelta) -> None:
    """Drop the rows of processes that have not beaten for `older_than` and hold nothing."""
    workers = companion_tables(table).workers
    silent = workers.c.beat_at < statement_now(-older_than.total_seconds())
    with engine.begin() as connection:
        connection.execute(delete(workers).where(silent, ~predicates.holds(table)))


def deregister(engine: Engine, table: Table, worker: str) -> None:
    """Take the row of a process back that performs nothing any more: what it left claimed is an orphan from now on."""
    with engine.begin() as connection:
        workers = companion_tables(table).workers
        connection.execute(delete(workers).where(workers.c.name == worker))


def names_of(connection: Connection, table: Table, process: Process) -> list[str]:
    """Under which names this process has performed what is in this table."""
    workers = companion_tables(table).workers
    return list(connection.scalars(select(workers.c.name).where(*_is_of(workers, table, process))))


def deregister_process(engine: Engine, table: Table, process: Process) -> bool:
    """Take the rows of a process back that has died and holds nothing any more. Whether none is left."""
    workers = companion_tables(table).workers
    with engine.begin() as connection:
        connection.execute(delete(workers).where(*_is_of(workers, table, process), ~predicates.holds(table)))
        return not names_of(connection, table, process)


def _is_of(workers: Table, table: Table, process: Process) -> tuple[ColumnElement[bool], ...]:
    c = workers.c
    named = (c.host == process.host, c.pid == process.pid, c.process_started == process.started)
    return (*named, or_(c.job_type.is_(None), c.job_type == table.name))


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A process that performs attempts, as its row has it.

    `kind`: "worker", "run-batch", or None for a single verb. `silent_for`: since its last beat, by the database's
    clock; `is_asleep`: it waits to be told of something due. `about`: what it says of itself: queues, lanes, version.
    `claims`: how many attempts it has in hand; of all processes together 10,000 are counted at most.
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
    """Who performs what is in this table, or did lately: the longest at work first."""
    c = companion_tables(table).workers.c
    asked: Any = select(c.name, c.host, c.pid, c.kind, c.started_at, c.beat_at, c.asleep, c.about, statement_now())
    mine = or_(c.job_type.is_(None), c.job_type == table.name)
    with engine.begin() as connection:
        found: Any = connection.execute(predicates.in_hand(table, table.c.claimed_by, 10_000)).all()
        claims: dict[str, int] = dict(found)
        rows = connection.execute(asked.where(mine).order_by(c.started_at, c.name)).all()
    return [_as_presence(claims, *row) for row in rows]


def _as_presence(
    claims: Mapping[str, int], name: str, host: str, pid: int, kind: str | None, started_at: dt.datetime,
    beat_at: dt.datetime, asleep: bool, about: str | None, now: dt.datetime,
) -> WorkerInfo:  # fmt: skip
    silent = max(now - beat_at, dt.timedelta(0))
    said = json.loads(about) if about else {}
    return WorkerInfo(name, host, pid, kind, started_at, beat_at, silent, bool(asleep), said, claims.get(name, 0))


def alive_here(connection: Connection, table: Table) -> list[str]:
    """On SQLite, which cannot tell by a lock: the workers that are processes of this machine and still run."""
    if locks_rows(connection.dialect):
        return []
    c = companion_tables(table).workers.c
    here = select(c.name, c.pid, c.process_started).where(c.host == socket.gethostname())
    return [row.name for row in connection.execute(here) if process_started(row.pid) == row.process_started]


KIND = "run-batch"


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """A batch that is at work: the name of its worker, its machine, its process, and since when."""

    worker: str
    host: str
    pid: int
    started_at: dt.datetime

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started_at:%Y-%m-%d %H:%M:%S} UTC"


def begin(engine: Engine, table: Table, worker: str, lease: dt.timedelta, *, alone: bool) -> RunningBatch | None:
    """Write down that `worker` is a run. `alone`: only if no other has beaten within one `lease`; else answer the one
    that began first."""
    try:
        return _begin(engine, table, worker, lease, alone=alone)
    except IntegrityError:  # two met where the version was not written down yet
        return _begin(engine, table, worker, lease, alone=alone)


def running_batch(
    connection: Connection, table: Table, lease: dt.timedelta, *, besides: str = ""
) -> RunningBatch | None:
    """The run that began first of those at work on this table."""
    c = companion_tables(table).workers.c
    others = (c.kind == KIND, c.job_type == table.name, c.name != besides, has_beaten(table, lease))
    columns: Any = select(c.name, c.host, c.pid, c.started_at)
    row = connection.execute(columns.where(*others).order_by(c.started_at, c.name).limit(1)).first()
    return None if row is None else RunningBatch(*row)


def _begin(engine: Engine, table: Table, worker: str, lease: dt.timedelta, *, alone: bool) -> RunningBatch | None:
    with engine.begin() as connection:
        if alone:
            _take_turns(connection, table)
            if (other := running_batch(connection, table, lease, besides=worker)) is not None:
                return other
        register(connection, table, worker, KIND)
    return None


def _take_turns(connection: Connection, table: Table) -> None:
    """Until this transaction ends, nobody else gets past here: a lock on a row needs no session, so that it works
    behind a pooler too. (On SQLite the transaction itself is the lock.)"""
    version = companion_tables(table).version
    if connection.scalar(select(version.c.version).with_for_update()) is None:
        # As `create_schema` does for tables that somebody else's `create_all` has made: there must be a row to lock.
        connection.execute(insert(version).values(version=SCHEMA_VERSION))
