"""Claims of workers that do not perform them: as a worker makes them that then dies, or is another one."""

import datetime as dt
import os
import socket
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, insert, select, update

from async_task import Attempt
from async_task.queue import fetch
from async_task.queue.claim import Claim
from async_task.queue.processes import process_started
from async_task.schema.tables import Worker
from clockwork import let_pass
from outbox import Client

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__
GONE = "gone:1:0"
"""A worker that has no row."""


def claimed(
    engine: Engine, attempt_id: uuid.UUID, worker: str = GONE, *, lease: dt.timedelta = dt.timedelta(seconds=1)
) -> Claim:
    """This attempt, claimed by `worker`."""
    claim = fetch.claim_one(engine, TABLE, worker, lease, attempt_id, uuid.uuid4())
    assert isinstance(claim, Claim)
    return claim


def orphan(engine: Engine, write: Write, *, worker: str = GONE) -> Attempt:
    """An attempt whose claim by `worker` has a lease in the past."""
    attempt = write(Client, "ping")
    claimed(engine, attempt.id, worker)
    let_pass(engine, 2)
    return attempt


def beat_ago(engine: Engine, worker: str, ago: dt.timedelta) -> None:
    """The last heartbeat of `worker`, in this process, is that long ago."""
    pid = os.getpid()
    me = {"name": worker, "host": socket.gethostname(), "pid": pid, "process_started": process_started(pid)}
    with engine.begin() as connection:
        connection.execute(insert(Worker).values(me))
        beat = connection.scalar(select(Worker.beat_at).where(Worker.name == worker))
        assert beat is not None
        connection.execute(update(Worker).where(Worker.name == worker).values(beat_at=beat - ago))


def seconds_from_now(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
