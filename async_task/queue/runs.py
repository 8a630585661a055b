"""Runs: batches at work on one attempts table, on whatever machine. Each is known to the others by its worker's row."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert, select
from sqlalchemy.exc import IntegrityError

from async_task.queue.predicates import has_beaten
from async_task.queue.workers import enroll
from async_task.schema.tables import SCHEMA_VERSION, beside

KIND = "run-batch"


@dataclass(frozen=True, slots=True)
class Run:
    """A batch that is at work: the name of its worker, its machine, its process, and since when."""

    worker: str
    host: str
    pid: int
    started_at: dt.datetime

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started_at:%Y-%m-%d %H:%M:%S} UTC"


def begin(engine: Engine, table: Table, worker: str, lease: dt.timedelta, *, alone: bool) -> Run | None:
    """Write down that `worker` is a run. `alone`: only if no other has beaten within one `lease`; else answer the one
    that began first."""
    try:
        return _begin(engine, table, worker, lease, alone=alone)
    except IntegrityError:  # two met where the version was not written down yet
        return _begin(engine, table, worker, lease, alone=alone)


def at_work(connection: Connection, table: Table, lease: dt.timedelta, *, besides: str = "") -> Run | None:
    """The run that began first of those at work on this table."""
    c = beside(table).workers.c
    others = (c.kind == KIND, c.job_type == table.name, c.name != besides, has_beaten(table, lease))
    columns: Any = select(c.name, c.host, c.pid, c.started_at)
    row = connection.execute(columns.where(*others).order_by(c.started_at, c.name).limit(1)).first()
    return None if row is None else Run(*row)


def _begin(engine: Engine, table: Table, worker: str, lease: dt.timedelta, *, alone: bool) -> Run | None:
    with engine.begin() as connection:
        if alone:
            _take_turns(connection, table)
            if (other := at_work(connection, table, lease, besides=worker)) is not None:
                return other
        enroll(connection, table, worker, KIND)
    return None


def _take_turns(connection: Connection, table: Table) -> None:
    """Until this transaction ends, nobody else gets past here: a lock on a row needs no session, so that it works
    behind a pooler too. (On SQLite the transaction itself is the lock.)"""
    version = beside(table).version
    if connection.scalar(select(version.c.version).with_for_update()) is None:
        # As `create_schema` does for tables that somebody else's `create_all` has made: there must be a row to lock.
        connection.execute(insert(version).values(version=SCHEMA_VERSION))
