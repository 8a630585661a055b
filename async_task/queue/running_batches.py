"""Running batches. Each is a row of the workers table with a heartbeat, and needs no session: a pooler has none, and a
killed batch counts as running for one lease."""

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, insert, select
from sqlalchemy.exc import IntegrityError

from async_task.queue.predicates import has_beaten
from async_task.queue.workers import register
from async_task.schema.tables import SCHEMA_VERSION, companion_tables

KIND = "run-batch"


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """The name of its worker, its machine, its process, and since when it runs."""

    worker: str
    host: str
    pid: int
    started_at: dt.datetime

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started_at:%Y-%m-%d %H:%M:%S} UTC"


def begin(engine: Engine, table: Table, worker: str, lease: dt.timedelta, *, alone: bool) -> RunningBatch | None:
    """Register `worker` as a batch. `alone`: unless another one has a heartbeat within one `lease`; then the one that
    began first is returned, and nothing is registered."""
    try:
        return _begin(engine, table, worker, lease, alone=alone)
    except IntegrityError:  # two batches began where there was no row of the version yet
        return _begin(engine, table, worker, lease, alone=alone)


def running_batch(
    connection: Connection, table: Table, lease: dt.timedelta, *, besides: str = ""
) -> RunningBatch | None:
    """The batch that began first of those running on this table, without the worker `besides`."""
    c = companion_tables(table).workers.c
    others = (c.kind == KIND, c.job_type == table.name, c.name != besides, has_beaten(table, lease))
    columns: Any = select(c.name, c.host, c.pid, c.started_at)
    row = connection.execute(columns.where(*others).order_by(c.started_at, c.name).limit(1)).first()
    return None if row is None else RunningBatch(*row)


def _begin(engine: Engine, table: Table, worker: str, lease: dt.timedelta, *, alone: bool) -> RunningBatch | None:
    with engine.begin() as connection:
        if alone:
            lock_version(connection, table)
            if (other := running_batch(connection, table, lease, besides=worker)) is not None:
                return other
        register(connection, table, worker, KIND)
    return None


def lock_version(connection: Connection, table: Table) -> None:
    """Until this transaction ends, no other batch, and no worker that takes a name, passes here. (On SQLite the
    transaction itself is the lock.)"""
    version = companion_tables(table).version
    if connection.scalar(select(version.c.version).with_for_update()) is None:
        # Tables that somebody else's `create_all` made have no row yet: there must be one to lock.
        connection.execute(insert(version).values(version=SCHEMA_VERSION))
