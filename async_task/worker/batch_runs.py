"""The record of each run: when it began and ended, its figures, and why it stopped; as an event.

The events of runs have the table of the attempts as their job type, and no attempt as their job.
"""

import datetime as dt
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from sqlalchemy import Connection, Engine, Table, insert, select
from sqlalchemy.orm import Session

from async_task.database.dialects import delete_by_key
from async_task.database.lanes import Lane
from async_task.error_text import describe, storable
from async_task.schema.audit import RUN, current_actor
from async_task.schema.tables import companion_tables
from async_task.worker.batch_report import BatchReport
from async_task.worker.runtime import Runtime

logger = logging.getLogger("async_task")
JOB_ID = "run-batch"
KEPT = 2_000
"""How many runs are kept: of a crontab that begins one each minute, those of 33 hours."""
MOST_DELETED = 100
"""How many older ones a run deletes at most."""
Why = Literal["done", "limit", "time", "stopped", "error"]
FIGURES = (
    "claimed", "succeeded", "retried", "failed", "expired", "canceled", "parked", "superseded", "recovered", "seconds",
    "left", "paused", "unknown",
)  # fmt: skip
"""What is kept of a report."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run of `run_batch`, which has ended. `id`: later runs have a higher one. `actor`: who began it, as `acting`
    says; else the same as `worker`. `worker`: the name under which it claimed, with host and process.

    `why`: why it stopped: it was "done", had started as many as its `limit`, had no "time" left, was "stopped" by a
    signal or its `stop`, or raised an "error". `error`: what it raised. `report`: its figures, those so far if it was
    stopped by an error; without its `failures`. `started_at`, `ended_at`: by the database's clock.
    """

    id: int
    actor: str
    worker: str
    started_at: dt.datetime
    ended_at: dt.datetime
    why: Why
    error: str | None
    report: BatchReport


def record_run(lane: Lane, runtime: Runtime, report: BatchReport, why: Why, error: BaseException | None = None) -> None:
    """Write the record of a run that has ended, and delete old ones: one transaction. That it cannot be written is
    logged."""
    said = None if error is None else storable(describe(error).summary)
    figures = {name: value for name, value in asdict(report).items() if name in FIGURES}
    values = {
        "job_type": runtime.table.name, "job_id": JOB_ID, "kind": RUN, "actor": current_actor() or runtime.worker,
        "message": why, "detail": json.dumps({"worker": runtime.worker, "error": said, **figures}),
    }  # fmt: skip
    try:
        lane.run(lambda: _write(lane.engine, runtime.table, values))
    except Exception as failure:  # the database is away: the batch itself has said so, or is done
        logger.warning("the record of a run is not written: %s", describe(failure).summary)


def runs_of(session: Session, table: Table, limit: int, after: int | None) -> tuple[RunInfo, ...]:
    """The newest first; those older than the run `after`."""
    events = companion_tables(table).events
    c = events.c
    older = [] if after is None else [c.id < after]
    found: Any = select(c.id, c.actor, c.created_at, c.message, c.detail).where(*_is_run(table), *older)
    return tuple(_info(*row) for row in session.execute(found.order_by(c.id.desc()).limit(limit)))


def _write(engine: Engine, table: Table, values: dict[str, Any]) -> None:
    events = companion_tables(table).events
    with engine.begin() as connection:
        connection.execute(insert(events).values(values))
        delete_by_key(connection, events, _too_old(connection, table))


def _too_old(connection: Connection, table: Table) -> list[int]:
    key = companion_tables(table).events.c.id
    older = select(key).where(*_is_run(table)).order_by(key.desc()).limit(MOST_DELETED).offset(KEPT)
    return list(connection.scalars(older))


def _is_run(table: Table) -> tuple[Any, ...]:
    c = companion_tables(table).events.c
    return c.job_type == table.name, c.job_id == JOB_ID


def _info(number: int, actor: str | None, ended_at: dt.datetime, why: str | None, detail: str | None) -> RunInfo:
    told = _told(detail)
    report = BatchReport(**{name: told[name] for name in FIGURES if isinstance(told.get(name), (int, float))})
    worker = str(told.get("worker", ""))
    began = ended_at - dt.timedelta(seconds=report.seconds)
    return RunInfo(number, actor or worker, worker, began, ended_at, cast(Why, why), told.get("error"), report)


def _told(detail: str | None) -> Mapping[str, Any]:
    try:
        found = json.loads(detail or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
