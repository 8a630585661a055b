"""A worker at full rate for minutes: its memory, and its rate while another session holds a snapshot."""

import contextlib
import time
from collections.abc import Iterator

from benchmarks import processor
from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage
from benchmarks.system import OURS

POINTS = 20
"""The number of points of a curve."""


def _ours(stage: Stage) -> list[Subject]:
    return [Subject(name, name) for name in stage.names if name == OURS]


def take_snapshot(stage: Stage, subject: Subject) -> Sample:
    """The rate in each of 20 equal spans, and the ratio of the last three to the first three."""
    with stage.database(subject.system) as database, _snapshot(stage, database):
        rates = [rate for rate, _ in _sustain(stage, subject, database, stage.plan.snapshot)]
    first, last = sum(rates[:3]), sum(rates[-3:])
    return {"first": first / 3, "last": last / 3, "kept": last / first if first else 0.0, "curve": rates}


def take_memory(stage: Stage, subject: Subject) -> Sample:
    """Memory after a tenth of the time, when everything is loaded and pools are full, and at the end."""
    with stage.database(subject.system) as database:
        points = list(_sustain(stage, subject, database, stage.plan.memory))
    sizes = [size for _, size in points]
    begin, end = sizes[POINTS // 10], max(sizes[-3:])
    mib = [size / 2**20 for size in sizes]
    return {"begin": begin / 2**20, "end": end / 2**20, "growth": (end / begin - 1) * 100, "curve": mib}


def _sustain(stage: Stage, subject: Subject, database: str, seconds: float) -> Iterator[tuple[float, float]]:
    """Jobs a second and bytes of memory in each of 20 spans, for a worker that always has due jobs."""
    heap = max(50, stage.plan.drain)
    filled = heap * 2
    stage.fill(subject.system, database, filled)
    with stage.worker(subject.system, database) as worker:
        begun = stage.await_(lambda: worker.board.count > 0, "the first job was done", [worker])
        seen, since = worker.board.count, begun
        for number in range(1, POINTS + 1):
            while time.monotonic() < begun + seconds * number / POINTS:
                if filled - worker.board.count < heap:
                    stage.ask(subject.system, "enqueue_many", url=stage.server.url(database), count=heap)
                    filled += heap
                worker.check()
                time.sleep(0.01)
            now, done = time.monotonic(), worker.board.count
            yield (done - seen) / (now - since), processor.resident([worker.pid])
            seen, since = done, now


@contextlib.contextmanager
def _snapshot(stage: Stage, database: str) -> Iterator[None]:
    """Another session that holds a snapshot, so that no dead row version can be removed."""
    with stage.server.connect(database) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM pg_class")
        yield
        connection.execute("ROLLBACK")


SNAPSHOT = Measure(
    name="snapshot",
    title="Drain while another session holds a snapshot",
    said="A session reads once at REPEATABLE READ and stays in its transaction. The worker drains for 10 minutes, "
    "and the queue is filled up as it empties. The curve is the rate in each twentieth of the time.",
    columns=(
        Column("first", "jobs/s at first"),
        Column("last", "jobs/s at last"),
        Column("kept", "last over first", 2),
    ),
    subjects=_ours,
    take=take_snapshot,
    rounds=1,
)
MEMORY = Measure(
    name="memory",
    title="Memory at full rate",
    said="Resident memory of the worker and its child processes while it drains for 5 minutes, measured from the "
    "end of the first tenth.",
    columns=(Column("begin", "MiB at first", 1), Column("end", "MiB at last", 1), Column("growth", "% more", 1)),
    subjects=_ours,
    take=take_memory,
    rounds=1,
)
