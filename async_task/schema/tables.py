"""The ready-made base, and the companion tables of an attempts table: job events, workers, queues, schedule entries,
occurrences, schema version."""

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Boolean,
    Connection,
    Double,
    Index,
    MetaData,
    Table,
    event,
    insert,
    inspect,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from async_task.database.clock import clock_now
from async_task.schema.columns import Counter, Identifier, Instant, LongText, Name, RowNumber

SCHEMA_VERSION = 7


class Base(DeclarativeBase):
    """The base of the ready-made tables."""

    metadata = MetaData()


metadata = Base.metadata


class JobEvent(Base):
    """An event of a job: an error of a try, a crash, a note, or what a person did and why. Append-only.

    `job_type` is the name of the job's table, and `job_id` its key. There is no foreign key: events outlive jobs.
    `fingerprint`: what errors of one cause share.
    """

    __tablename__ = "async_task_job_events"

    id: Mapped[int] = mapped_column(RowNumber(), primary_key=True, autoincrement=True)
    job_type: Mapped[str] = mapped_column(Name(128))
    job_id: Mapped[str] = mapped_column(Name(64))
    kind: Mapped[str] = mapped_column(Name(32))
    num_attempt: Mapped[int | None] = mapped_column(Counter())
    actor: Mapped[str | None] = mapped_column(Name(255))
    message: Mapped[str | None] = mapped_column(LongText())
    detail: Mapped[str | None] = mapped_column(LongText())
    created_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    fingerprint: Mapped[str | None] = mapped_column(Name(16))

    __table_args__ = (
        Index("ix_async_task_job_events_job", "job_type", "job_id", "id"),
        Index(
            "ix_async_task_job_events_fingerprint",
            *("job_type", "fingerprint", "id"),
            postgresql_where=text("fingerprint IS NOT NULL"),
            sqlite_where=text("fingerprint IS NOT NULL"),
        ),
    )


class Worker(Base):
    """A process that performs attempts, or a clock. It renews `beat_at` while it has claims, or is a run: a claim whose
    worker has not beaten for one lease is an orphan.

    `job_type`: the name of the table whose jobs it performs. `kind`: what it is, as "run-batch". `asleep`: it waits to
    be notified of due attempts. `about`: its description of itself, as a JSON object.
    """

    __tablename__ = "async_task_workers"

    name: Mapped[str] = mapped_column(Name(128), primary_key=True)
    host: Mapped[str] = mapped_column(Name(255))
    pid: Mapped[int] = mapped_column(Counter())
    process_started: Mapped[str] = mapped_column(Name(64))
    started_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    beat_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    kind: Mapped[str | None] = mapped_column(Name(32))
    job_type: Mapped[str | None] = mapped_column(Name(128))
    asleep: Mapped[bool] = mapped_column(Boolean(), default=False, server_default="0")
    about: Mapped[str | None] = mapped_column(LongText())


class Queue(Base):
    """A queue that is paused or limited; others have no row.

    `max_running`: the maximum of calls that run at a time, on all machines together. `rate`: the maximum of starts a
    second in the long run, and `burst` of starts at once. `tokens`: how many starts were free at `refilled_at`.
    """

    __tablename__ = "async_task_queues"

    name: Mapped[str] = mapped_column(Name(64), primary_key=True)
    paused_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    paused_by: Mapped[str | None] = mapped_column(Name(255))
    pause_reason: Mapped[str | None] = mapped_column(LongText())
    max_running: Mapped[int | None] = mapped_column(Counter())
    rate: Mapped[float | None] = mapped_column(Double())
    burst: Mapped[int | None] = mapped_column(Counter())
    tokens: Mapped[float | None] = mapped_column(Double())
    refilled_at: Mapped[dt.datetime | None] = mapped_column(Instant())


class ScheduleEntry(Base):
    """An entry of a schedule that a clock has seen.

    `job_type`: the name of the table in which its attempts are written. `rule`: when it fires, in words. Everything up
    to `decided_until` is decided. `last_attempt_id`: the attempt of its last occurrence that has one.
    """

    __tablename__ = "async_task_schedules"

    job_type: Mapped[str] = mapped_column(Name(128), primary_key=True)
    schedule_key: Mapped[str] = mapped_column(Name(255), primary_key=True)
    rule: Mapped[str] = mapped_column(LongText())
    decided_until: Mapped[dt.datetime] = mapped_column(Instant())
    last_attempt_id: Mapped[uuid.UUID | None] = mapped_column(Identifier())
    paused_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    paused_by: Mapped[str | None] = mapped_column(Name(255))
    pause_reason: Mapped[str | None] = mapped_column(LongText())


class Occurrence(Base):
    """A time at which an entry fired, or was to fire: one row, however many clocks there are.

    `status`: "enqueued" with the `attempt_id`, or "skipped" or "missed" with a `reason`.
    """

    __tablename__ = "async_task_occurrences"

    job_type: Mapped[str] = mapped_column(Name(128), primary_key=True)
    schedule_key: Mapped[str] = mapped_column(Name(255), primary_key=True)
    fire_at: Mapped[dt.datetime] = mapped_column(Instant(), primary_key=True)
    status: Mapped[str] = mapped_column(Name(16))
    reason: Mapped[str | None] = mapped_column(LongText())
    attempt_id: Mapped[uuid.UUID | None] = mapped_column(Identifier())
    created_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())


class SchemaVersion(Base):
    """The version of the tables in this database: one row."""

    __tablename__ = "async_task_schema"

    version: Mapped[int] = mapped_column(Counter(), primary_key=True, autoincrement=False)


@dataclass(frozen=True, slots=True)
class CompanionTables:
    """The tables that belong to an attempts table."""

    events: Table
    workers: Table
    queues: Table
    schedules: Table
    occurrences: Table
    version: Table


COMPANIONS = (JobEvent, Worker, Queue, ScheduleEntry, Occurrence, SchemaVersion)


def companion_tables(table: Table) -> CompanionTables:
    """The companion tables of this attempts table, in its own schema.

    They are copied into its own metadata, so that whoever creates or migrates that metadata has them too.
    """
    return CompanionTables(*(_copied(kind.__table__, table) for kind in COMPANIONS))


def _copied(made: Any, table: Table) -> Table:
    existing = table.metadata.tables.get(made.name if table.schema is None else f"{table.schema}.{made.name}")
    if existing is not None:
        return existing
    copy: Table = made.to_metadata(table.metadata, schema=table.schema)
    if made.name == SchemaVersion.__tablename__:
        event.listen(copy, "after_create", _stamp)
    return copy


def _stamp(version: Any, connection: Connection, **_: Any) -> None:
    connection.execute(insert(version).values(version=SCHEMA_VERSION))


event.listen(SchemaVersion.__table__, "after_create", _stamp)


def table_of(attempt: Any) -> Table:
    """The table with the state of this attempt or model: that of the root of its inheritance."""
    mapper: Any = inspect(attempt if isinstance(attempt, type) else type(attempt))
    table = mapper.base_mapper.local_table
    assert isinstance(table, Table)
    return table
