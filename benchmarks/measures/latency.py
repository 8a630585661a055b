"""The time from the producer's commit to the start of the job."""

import statistics
import time
from functools import partial

from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage
from benchmarks.system import BARE

COLUMNS = (Column("p50", "p50 ms", 2), Column("p95", "p95 ms", 2), Column("p99", "p99 ms", 2))


def subjects(stage: Stage) -> list[Subject]:
    named = {BARE: Subject("psycopg, NOTIFY and a claim", BARE, {"on_notice": True})}
    return [named.get(name, Subject(name, name)) for name in stage.names]


def take(stage: Stage, subject: Subject, rate: float) -> Sample:
    count = stage.plan.paced if rate < 50 else stage.plan.paced * 5
    with (
        stage.database(subject.system) as database,
        stage.worker(subject.system, database, **subject.options) as worker,
    ):
        url = stage.place.url(database)
        stage.ask(subject.system, "enqueue", url=url, kind="mark", numbers=[60_000], delay=0.0)
        stage.await_(lambda: worker.board.start(60_000) is not None, "the worker was awake", [worker])
        time.sleep(stage.plan.settled)
        commits = stage.ask(subject.system, "pace", url=url, count=count, rate=rate)
        stage.await_(lambda: worker.board.count >= count + 1, "all jobs began", [worker])
        starts = [worker.board.start(number) or 0.0 for number in range(count)]
    # A job may begin before its commit has returned to the producer: that counts as 0.
    waits = sorted(max(0.0, start - commit) * 1000 for start, commit in zip(starts, commits, strict=True))
    return {"p50": statistics.median(waits), "p95": _at(waits, 0.95), "p99": _at(waits, 0.99)}


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


HOW = (
    "The worker has done a job, and has run for a second since then: otherwise the p99 would be what it does once, as "
    "it starts. A producer in another process commits jobs at equal intervals, each in a transaction of its own. The "
    "latency is from the return of the commit to the start of the call, on the machine's monotonic clock."
)
MEASURE = Measure(
    "latency", "Commit to start at 10 jobs a second", HOW, COLUMNS, subjects, partial(take, rate=10.0)
)  # fmt: skip
HUNDRED = Measure(
    "latency100", "Commit to start at 100 jobs a second", HOW, COLUMNS, subjects, partial(take, rate=100.0)
)  # fmt: skip
