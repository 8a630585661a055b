"""How fast workers empty a queue."""

import contextlib
import time
from typing import Any

from benchmarks import processor
from benchmarks.child import Worker
from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage
from benchmarks.system import BARE, OURS

COLUMNS = (
    Column("rate", "jobs/s"),
    Column("worker", "worker CPU s per 1,000", 3),
    Column("server", "server CPU s per 1,000", 3),
)
HOW = (
    "The jobs are in the table, which is vacuumed and analysed, and a checkpoint is done. Then the worker starts. The "
    "clock runs from the job after the warm-up (a tenth) until the database has the last one recorded as done."
)


GATHER = 3.0
"""Seconds for several workers to start, before the table is unlocked."""


def drain(stage: Stage, subject: Subject, database: str, total: int, warm: int, *, processes: int = 1,
          url: str | None = None, recorded: bool = True, **options: Any) -> Sample:  # fmt: skip
    """The rate and processor time of workers that empty a filled database. `recorded`: until the database has all jobs
    recorded as done, and not only until they were called."""
    stage.place.settle(database)
    with contextlib.ExitStack() as until:
        workers: list[Worker] = []
        spawned = time.monotonic()
        with stage.held(subject.system, database) if processes > 1 else contextlib.nullcontext():
            for _ in range(processes):
                workers.append(until.enter_context(stage.worker(subject.system, database, url=url, **options)))
            if processes > 1:
                time.sleep(GATHER)  # the first one must not be done before the second has started

        def done() -> int:
            return sum(one.board.count for one in workers)

        began = stage.await_(lambda: done() >= warm, f"{warm} jobs were done", workers)
        first, before = done(), _times(stage, workers)
        stage.await_(
            lambda: done() >= total or time.monotonic() > began + stage.plan.longest, f"{total} jobs were done", workers
        )
        if recorded and done() >= total:
            stage.await_(lambda: stage.unfinished(subject.system, database) == 0, "all jobs were recorded", workers)
        ended, after = time.monotonic(), _times(stage, workers)
        if first >= total:  # all were called before we looked: then include the start of the worker
            first, began = 0, spawned
        jobs = min(done(), total) - first
    worker, server = (processor.spent(*one) / jobs * 1000 for one in zip(before, after, strict=True))
    sample: Sample = {"rate": jobs / (ended - began)}
    if processor.is_told():
        sample["worker"] = worker
    if processor.is_told() and stage.place.pids:
        sample["server"] = server
    return sample


def _times(stage: Stage, workers: list[Worker]) -> tuple[processor.Times, processor.Times]:
    return processor.times([one.pid for one in workers]), processor.times(stage.place.pids)


def _all(stage: Stage) -> list[Subject]:
    return [Subject(f"{name}, batch of 100" if name == BARE else name, name) for name in stage.names]


def take(stage: Stage, subject: Subject) -> Sample:
    return _drained(stage, subject, stage.plan.drain, 1)


def take_two(stage: Stage, subject: Subject) -> Sample:
    return _drained(stage, subject, stage.plan.drain, 2)


def _drained(stage: Stage, subject: Subject, count: int, processes: int, **options: Any) -> Sample:
    warm = min(stage.plan.warm, count // 10)
    with stage.database(subject.system) as database:
        stage.fill(subject.system, database, count + warm, options.get("kind", "noop"))
        return drain(stage, subject, database, count + warm, warm, processes=processes, **options)


def _ours_and_bare(stage: Stage) -> list[Subject]:
    label = {OURS: "async-task, settle_within=0, 8 lanes", BARE: "psycopg, a loop in 8 threads"}
    return [Subject(label[name], name) for name in stage.names if name in label]


def take_single(stage: Stage, subject: Subject) -> Sample:
    return _drained(stage, subject, stage.plan.single, 1, single=True, **subject.options)


def _writers(stage: Stage) -> list[Subject]:
    found = []
    for lanes in (1, 8):
        label = {
            OURS: f"async-task, session: Session, lanes: {lanes}",
            BARE: f"SQLAlchemy ORM, a loop, threads: {lanes}",
        }
        found += [Subject(label[name], name, {"lanes": lanes, "orm": True}) for name in stage.names if name in label]
    kinds = {1: ("write", "Session on an AsyncEngine, lanes: 1"), 10: ("write_later", "AsyncSession, coroutines: 10")}
    for tasks, (kind, session) in kinds.items():
        label = {OURS: f"async-task, session: {session}", BARE: f"SQLAlchemy AsyncSession, a loop, tasks: {tasks}"}
        options = {"kind": kind, "tasks": tasks, "lanes": min(tasks, 2)}
        found += [Subject(label[name], name, options) for name in stage.names if name in label]
    bare = "psycopg, the INSERT in the job's transaction, 8 threads"
    return [*found, *(Subject(bare, name, {"lanes": 8}) for name in stage.names if name == BARE)]


def take_writes(stage: Stage, subject: Subject) -> Sample:
    return _drained(stage, subject, stage.plan.single, 1, single=True, **{"kind": "write", **subject.options})


MEASURE = Measure("drain", "Drain of no-op jobs, one process", HOW, COLUMNS, _all, take)
TWO = Measure(
    "two",
    "Drain of no-op jobs, two processes",
    f"{HOW} The table is locked until both processes have started, so that they begin together.",
    COLUMNS,
    _all,
    take_two,
)
SINGLE = Measure(
    "single",
    "One commit a job, one process",
    f"{HOW} Each job has a transaction of its own: its row is locked, the call made, the outcome written, committed. "
    "The bare loop knows beforehand which rows there are, claims nothing and counts nothing durably.",
    COLUMNS,
    _ours_and_bare,
    take_single,
)
WRITES = Measure(
    "writes",
    "A job that writes a row in the transaction of its outcome, one process",
    f"{HOW} The row and the outcome commit together.",
    COLUMNS,
    _writers,
    take_writes,
)
