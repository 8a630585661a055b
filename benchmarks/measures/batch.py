"""How fast `outbox.run_batch` empties a queue, as cron would have it."""

import time

from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage
from benchmarks.system import OURS

COMMITS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
COUNTED_AFTER = 1.1
"""Seconds in which a backend that has become idle reports its commits."""


def subjects(stage: Stage) -> list[Subject]:
    return [Subject(name, name) for name in stage.names if name == OURS]


def take(stage: Stage, subject: Subject) -> Sample:
    count, warm = stage.plan.drain // 5, max(10, stage.plan.warm // 10)
    with stage.database(subject.system) as database:  # the copies of a filling must not be of a finished job
        stage.fill(subject.system, database, warm)
        stage.ask(subject.system, "run_batch", url=stage.place.url(database))
    with stage.database(subject.system) as database:
        url = stage.place.url(database)
        stage.fill(subject.system, database, count)
        stage.place.settle(database)
        before = _commits(stage, database)
        done, seconds, processor = stage.ask(subject.system, "run_batch", url=url)
        commits = _commits(stage, database) - before - 1  # that of the question before
    return {"rate": done / seconds, "client": processor / done * 1000, "commits": commits / done}


def _commits(stage: Stage, database: str) -> int:
    time.sleep(COUNTED_AFTER)
    return stage.place.number(database, COMMITS)


MEASURE = Measure(
    name="batch",
    title="run_batch on no-op jobs",
    said="The jobs are there, the table is vacuumed and analysed, a checkpoint is done; then one call of "
    "`outbox.run_batch()` with its defaults, timed from outside: with its sweep, its threads and their connections.",
    columns=(
        Column("rate", "jobs/s"),
        Column("client", "client CPU ms a job", 3),
        Column("commits", "commits a job", 3),
    ),
    subjects=subjects,
    take=take,
)
