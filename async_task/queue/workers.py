"""Workers: each process that performs attempts has a row with its heartbeat, beside the attempts.

1. Its name.
2. `beat`, `register`, `mark_asleep`, `mark_awake`: written by itself.
3. `deregister`, `deregister_dead`, `forget_workers`: its end.
4. `running_workers`, `names_of`, `alive_here`: read by others.
"""

import datetime as dt
import json
import os
import secrets
import socket
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from async_task.database.clock import clock_now, statement_now
from async_task.database.dialects import locks_rows, notifies
from async_task.errors import AlreadyRunning
from async_task.queue.backlog import MOST_COUNTED, num_claims
from async_task.queue.predicates import has_beaten, has_claim, is_claimed
from async_task.queue.processes import Process, has_ended, is_running, process_started
from async_task.schema.states import extending, is_pending
from async_task.schema.tables import companion_tables

WORKER = "worker"
"""The kind of a process that performs what is due for as long as it lives."""
CLOCK = "clock"
"""The kind of a clock, which performs nothing: its heartbeat is a tick, and without ticks it enqueues nothing."""
HOST_BESIDE_A_NAME = 40
"""Characters of the host that a name holds beside the one that was given."""
IDLE_PAUSE = 15.0
"""Seconds between two heartbeats of a worker that has no claims, and has claimed nothing for half a lease."""


def worker_name(given: str | None = None) -> str:
    """A new name: host, process id, and eight random hexadecimal digits; before these the name that was `given` to it.
    Each runtime has a name of its own: under one for the process, the heartbeats of later runtimes would keep alive
    what an earlier one left claimed."""
    host = socket.gethostname().replace("@", "_")
    where = host[:64] if given is None else f"{given}@{host[:HOST_BESIDE_A_NAME]}"
    return f"{where}:{os.getpid()}:{secrets.token_hex(4)}"


def given_name(worker: str) -> str:
    """The name that was given to a worker; empty if it has none."""
    return worker.rpartition("@")[0]


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


def register(
    connection: Connection, table: Table, worker: str, kind: str | None, *, is_first: bool = False, **values: Any
) -> None:
    """Write this process's heartbeat and `values`, by column; at first also its kind, host and process.

    Raises AlreadyRunning if the row of a worker with a given name is gone, and this is not the first time (`is_first`):
    another worker has taken over its name."""
    workers = companion_tables(table).workers
    beats = update(workers).where(workers.c.name == worker).values(beat_at=clock_now(), **values)
    if is_first or not connection.execute(beats).rowcount:
        if given_name(worker) and not is_first:
            raise AlreadyRunning(f"another worker has taken over the name {given_name(worker)}: {worker} ends")
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
    if not claimed and kind == WORKER and notifies(engine.dialect):
        # An idle worker begins and commits no transaction for one statement. Elsewhere AUTOCOMMIT is a statement too.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            register(connection, table, worker, kind)
        return
    with engine.begin() as connection:
        if claimed:
            mine = (table.c.id.in_(claimed), table.c.claimed_by == worker, is_pending(table))
            free = select(table.c.id).where(*mine).with_for_update(skip_locked=True, key_share=True)
            ids = list(connection.scalars(free))
            connection.execute(update(table).where(table.c.id.in_(ids)).values(extending(lease)))
        # Last: while it waits for a table that somebody has locked, this process can still say that it ends.
        register(connection, table, worker, kind)


def deregister(engine: Engine, table: Table, worker: str) -> None:
    """Delete the row of a process that performs nothing any more: what it left claimed is an orphan from now on."""
    workers = companion_tables(table).workers
    with engine.begin() as connection:
        connection.execute(delete(workers).where(workers.c.name == worker))


LONGEST_SILENCE = dt.timedelta(minutes=1)
"""A worker without claims sends a heartbeat more often than that."""
STOPPED = "stopped"
"""The kind of a worker that has stopped, and could not release its claims."""


def leave_claims(engine: Engine, table: Table, worker: str, lease: dt.timedelta) -> None:
    """Mark the row of a process that performs nothing any more and could not release its claims: a sweep releases them
    uncharged when their leases are past. Needs no lock on the attempts, which may be what it could not get."""
    workers = companion_tables(table).workers
    ended = {"kind": STOPPED, "asleep": False, "beat_at": statement_now(-lease.total_seconds())}
    with engine.begin() as connection:
        connection.execute(update(workers).where(workers.c.name == worker).values(ended))


def stopped_among(connection: Connection, table: Table, names: Collection[str]) -> set[str]:
    """Those of these workers that have stopped and left their claims."""
    workers = companion_tables(table).workers
    found = select(workers.c.name).where(workers.c.name.in_(names), workers.c.kind == STOPPED)
    return set(connection.scalars(found)) if names else set()


def deregister_dead(engine: Engine, table: Table, names: Sequence[str]) -> bool:
    """Delete the rows, without claims, of workers that have died. Whether nothing is left of them."""
    workers = companion_tables(table).workers
    left: Any = select(table.c.id).where(*is_claimed(table), table.c.claimed_by.in_(names)).limit(1)
    with engine.begin() as connection:
        connection.execute(delete(workers).where(workers.c.name.in_(names), ~has_claim(table)))
        return connection.execute(left).first() is None


def forget_workers(engine: Engine, table: Table, older_than: dt.timedelta) -> None:
    """Delete the rows, without claims, of processes whose last heartbeat is older than that."""
    workers = companion_tables(table).workers
    with engine.begin() as connection:
        connection.execute(delete(workers).where(*_is_forgotten(workers, table, older_than)))


def to_forget(connection: Connection, table: Table, older_than: dt.timedelta, limit: int) -> Sequence[Any]:
    """The names and last heartbeats of up to `limit` processes that `forget_workers` would forget."""
    workers = companion_tables(table).workers
    found: Any = select(workers.c.name, workers.c.beat_at).where(*_is_forgotten(workers, table, older_than))
    rows: Sequence[Any] = connection.execute(found.order_by(workers.c.beat_at).limit(limit)).all()
    return rows


def _is_forgotten(workers: Table, table: Table, older_than: dt.timedelta) -> tuple[ColumnElement[bool], ...]:
    return workers.c.beat_at < statement_now(-older_than.total_seconds()), ~has_claim(table)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A process that performs attempts, or a clock, by its row.

    `kind`: "worker", "run-batch", "clock", or None for a single call of the library. `silent_for`: since its last
    heartbeat, by the database's clock. `is_asleep`: it waits to be notified. `about`: what it says of itself: queues,
    worker threads, version; of a clock the number of entries. `claims`: how many attempts it has claimed; of all
    processes together 10,000 are counted at most.

    `is_dead`: it has ended, as this machine knows, if it is of this machine and of the same container. Of another one:
    its heartbeats are missing for one lease. A worker without claims sends them every 15 s, all others more often. A
    clock is dead without them although its process runs: it hangs.
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
    is_dead: bool

    @property
    def served_queues(self) -> list[str]:
        """The queues that it was told to serve; none: all. Without the own queues of their targets, which it serves
        too, and which are the last ones of `about["queues"]`."""
        queues, num_own = self.about.get("queues"), self.about.get("own_queues")
        names = list(queues) if isinstance(queues, (dict, list)) else []
        return names[: len(names) - num_own] if isinstance(num_own, int) else names


def running_workers(engine: Engine, table: Table, lease: dt.timedelta) -> list[WorkerInfo]:
    """The processes that perform attempts of this table, or did lately: the living first, and of these those that began
    first."""
    workers = companion_tables(table).workers
    mine = or_(workers.c.job_type.is_(None), workers.c.job_type == table.name)
    with engine.begin() as connection:
        found: Any = connection.execute(num_claims(table, table.c.claimed_by, MOST_COUNTED)).all()
        claims: dict[str, int] = dict(found)
        chosen: Any = select(workers, statement_now().label("now"))
        rows = connection.execute(chosen.where(mine).order_by(workers.c.started_at, workers.c.name)).all()
    return sorted((_info(row, claims.get(row.name, 0), lease) for row in rows), key=lambda one: one.is_dead)


def _info(row: Any, claims: int, lease: dt.timedelta) -> WorkerInfo:
    silent = max(row.now - row.beat_at, dt.timedelta(0))
    runs = is_running(Process(row.host, row.pid, row.process_started))
    is_silent = silent > _longest_silence(row, claims, lease)
    is_dead = row.kind == STOPPED or (is_silent if runs is None else not runs or (row.kind == CLOCK and is_silent))
    return WorkerInfo(
        row.name, row.host, row.pid, row.kind, row.started_at, row.beat_at, silent, bool(row.asleep),
        about_of(row.about), claims, is_dead,
    )  # fmt: skip


def about_of(text: str | None) -> dict[str, Any]:
    """What a process tells of itself; empty for what is no JSON object."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _longest_silence(row: Any, claims: int, lease: dt.timedelta) -> dt.timedelta:
    """For which the process can live."""
    is_idle = row.kind in (WORKER, CLOCK) and not claims and not given_name(row.name)
    return lease + dt.timedelta(seconds=IDLE_PAUSE) if is_idle else lease


def first_with_mark(engine: Engine, table: Table, lease: dt.timedelta, kind: str, mark: str) -> str | None:
    """The name of the live worker that began first, of those of this kind that tell of the same `mark`."""
    c = companion_tables(table).workers.c
    live = (c.kind == kind, c.job_type == table.name, has_beaten(table, max(lease, LONGEST_SILENCE)))
    with engine.begin() as connection:
        rows = connection.execute(select(c.name, c.about).where(*live).order_by(c.started_at, c.name)).all()
    return next((name for name, about in rows if about_of(about).get("prunes") == mark), None)


def names_of(connection: Connection, table: Table, process: Process) -> list[str]:
    """The names under which this process has performed attempts of this table."""
    workers = companion_tables(table).workers
    return list(connection.scalars(select(workers.c.name).where(*_is_of(workers, table, process))))


def _is_of(workers: Table, table: Table, process: Process) -> tuple[ColumnElement[bool], ...]:
    c = workers.c
    named = (c.host == process.host, c.pid == process.pid, c.process_started == process.started)
    return (*named, or_(c.job_type.is_(None), c.job_type == table.name))


def gone_here(connection: Connection, table: Table) -> list[Process]:
    """The processes with claims that have ended on this machine, as far as that is certain: of this boot, and of this
    process's own namespace of ids. Others may run where this process cannot see them."""
    c = companion_tables(table).workers.c
    here = (c.host == socket.gethostname(), or_(c.job_type.is_(None), c.job_type == table.name), has_claim(table))
    found = connection.execute(select(c.host, c.pid, c.process_started).where(*here)).all()
    return [one for one in {Process(*row) for row in found} if has_ended(one)]


def alive_here(connection: Connection, table: Table) -> list[str]:
    """Where rows cannot be locked (SQLite): the names of the workers whose processes run on this machine."""
    if locks_rows(connection.dialect):
        return []
    c = companion_tables(table).workers.c
    is_stopped = func.coalesce(c.kind, "") == STOPPED
    here = select(c.name, c.pid, c.process_started).where(c.host == socket.gethostname(), ~is_stopped)
    return [row.name for row in connection.execute(here) if process_started(row.pid) == row.process_started]
