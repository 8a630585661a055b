"""Names that are given to workers (`worker --name`): one living worker has a name, and the next one of that name takes
over what it has left.

A worker that has a name registers as NAME@host:pid:digits, so that the claims of two workers of one name are never
mixed up: what the first one claimed, only its own claim ids settle.

1. `try_to_take` decides, under a lock that only one can have, whether the workers of the name before this one are dead;
   if so it registers this one and deletes their rows.
2. A worker whose row was deleted has lost its name: its next heartbeat says so, and it ends. Its claims are recovered,
   so that its fenced writes change nothing.
"""

import datetime as dt
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, select

from async_task.database.clock import statement_now
from async_task.database.server_sessions import server_uptime
from async_task.errors import ConfigurationError
from async_task.queue.processes import Process, is_running
from async_task.queue.running_batches import lock_version
from async_task.queue.workers import STOPPED, WORKER, given_name, register
from async_task.schema.tables import companion_tables

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def check_worker_name(name: object) -> str | None:
    """Raises ConfigurationError for what is no name of a worker."""
    if name is None or (isinstance(name, str) and _NAME.fullmatch(name)):
        return name
    raise ConfigurationError(
        f"name is 1 to 63 letters, digits, '.', '_' or '-', with a letter or digit at both ends: it was {name!r:.80}"
    )


class Verdict(Enum):
    LIVES = "lives"
    DEAD = "dead"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of an earlier worker of the name. `runs`: whether its process runs; None if this process cannot
    see that. `silent_for`: since its last heartbeat. `has_beaten`: whether there was one since it was first seen here.
    `is_cut_off`: whether its connection is certainly gone, by a lock that the server ends with it."""

    is_stopped: bool
    runs: bool | None
    silent_for: dt.timedelta
    has_beaten: bool
    is_cut_off: bool


def judge(evidence: Evidence, lease: dt.timedelta, *, is_server_young: bool) -> Verdict:
    """Whether that worker lives. While the server is younger than a lease, neither silence nor a missing connection
    says anything: all workers lost theirs."""
    if evidence.is_stopped or evidence.runs is False:
        return Verdict.DEAD
    if evidence.runs or evidence.has_beaten:
        return Verdict.LIVES
    is_gone = evidence.is_cut_off or evidence.silent_for > lease
    return Verdict.DEAD if is_gone and not is_server_young else Verdict.UNDECIDED


@dataclass(frozen=True, slots=True)
class Namesake:
    """A worker of the same name, by its row."""

    worker: str
    host: str
    pid: int
    silent_for: dt.timedelta

    def __str__(self) -> str:
        seconds = max(self.silent_for.total_seconds(), 0.0)
        return f"process {self.pid} on {self.host}, last heartbeat {seconds:.1f} s ago"


@dataclass(frozen=True, slots=True)
class Taking:
    """What `try_to_take` found. `taken`: this worker has the name. `living`: the one that has it. With neither, it is
    not decided yet. `beats`: the last heartbeats, by worker. `dead`: the workers before this one."""

    taken: bool
    living: Namesake | None
    beats: dict[str, dt.datetime]
    dead: tuple[str, ...] = ()


def try_to_take(
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, about: str,
    *, first_seen: dict[str, dt.datetime], lock: bytes | None,
) -> Taking:  # fmt: skip
    """Register `worker` if every earlier worker of its name is dead. `first_seen`: the `beats` of the first time.
    `lock`: the lock of the name, if this process has it, so that no other worker has it any more."""
    with engine.begin() as connection:
        lock_version(connection, table)
        uptime = server_uptime(connection)
        is_server_young = uptime is not None and uptime < lease.total_seconds()
        beats, dead = {}, []
        for row in _namesakes(connection, table, worker):
            beats[row.name] = row.beat_at
            evidence = _evidence(row, first_seen, lock)
            verdict = judge(evidence, lease, is_server_young=is_server_young)
            if verdict is Verdict.LIVES:
                return Taking(False, Namesake(row.name, row.host, row.pid, evidence.silent_for), beats)
            if verdict is Verdict.DEAD:
                dead.append(row.name)
        if len(dead) < len(beats):
            return Taking(False, None, beats)
        _delete_rows(connection, table, dead)
        register(connection, table, worker, WORKER, is_first=True, about=about_with(about, lock))
        return Taking(True, None, beats, tuple(dead))


def lock_of(table: Table, database: str, name: str) -> bytes:
    """Eight bytes that stand for this name, of the workers of this table in this database."""
    return hashlib.sha256(f"async-task/{database}/{table.fullname}/{name}".encode()).digest()[:8]


def about_with(about: str, lock: bytes | None) -> str:
    """What a worker tells about itself, and the lock that it has. One that began without this lock (`--no-listen`, or
    another spelling of the database in its URL) is not cut off because the lock is free."""
    return about if lock is None else json.dumps(json.loads(about) | {"lock": lock.hex()})


def _namesakes(connection: Connection, table: Table, worker: str) -> list[Any]:
    workers = companion_tables(table).workers
    c, given = workers.c, given_name(worker)
    mine = (c.name.startswith(f"{given}@", autoescape=True), c.name != worker, c.job_type == table.name)
    shown: Any = select(
        c.name, c.host, c.pid, c.process_started, c.kind, c.beat_at, c.about, statement_now().label("now")
    )  # fmt: skip
    rows = connection.execute(shown.where(*mine).order_by(c.started_at, c.name)).all()
    return [row for row in rows if given_name(row.name) == given]  # LIKE ignores case on SQLite


def _evidence(row: Any, first_seen: dict[str, dt.datetime], lock: bytes | None) -> Evidence:
    return Evidence(
        is_stopped=row.kind == STOPPED,
        runs=is_running(Process(row.host, row.pid, row.process_started)),
        silent_for=row.now - row.beat_at,
        has_beaten=row.beat_at > first_seen.get(row.name, row.beat_at),
        is_cut_off=lock is not None and json.loads(row.about or "{}").get("lock") == lock.hex(),
    )


def _delete_rows(connection: Connection, table: Table, names: Sequence[str]) -> None:
    """Delete the rows of these workers, so that a process that goes on sees at its next heartbeat that it has lost its
    name. Not of those that have stopped: these rows tell that nobody is to be charged."""
    c = companion_tables(table).workers.c
    is_stopped = (c.kind == STOPPED) & c.kind.is_not(None)
    connection.execute(delete(c.name.table).where(c.name.in_(names), ~is_stopped))
