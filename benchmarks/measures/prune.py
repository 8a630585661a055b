"""How fast `async-task prune` deletes finished rows, and what a worker beside it does meanwhile."""

import json
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.child import HOME, Broken, Worker
from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage
from benchmarks.system import OURS

OLD = {
    # A UUIDv7 of 40 days ago: prune walks along the ids from the begin.
    "id": "(lpad(to_hex((extract(epoch FROM now() - interval '40 d') * 1000)::bigint + n / 100), 12, '0') || '7' "
    "|| substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid",
    "created_at": "now() - interval '40 d'",
    "completed_at": "now() - interval '39 d'",
}


def subjects(stage: Stage) -> list[Subject]:
    return [Subject(name, name) for name in stage.names if name == OURS]


def take(stage: Stage, subject: Subject) -> Sample:
    """The worker always has due jobs: before, while and after the rows are pruned."""
    seconds = min(20.0, stage.plan.snapshot)
    with stage.database(subject.system) as database:
        stage.fill_finished(subject.system, database, stage.plan.others, fresh=OLD)
        stage.fill(subject.system, database, max(50, stage.plan.drain))
        stage.place.settle(database)
        with stage.worker(subject.system, database) as worker:
            stage.await_(lambda: worker.board.count > 0, "the first job was done", [worker])
            run = _Run(stage, subject, database, worker)
            run.rate(lambda since: since >= seconds / 2)  # it warms up
            before = run.rate(lambda since: since >= seconds)
            pruning = _prune(stage, database)
            during = run.rate(lambda _: pruning.poll() is not None)
            report = json.loads(pruning.communicate()[0] or "{}")
            after = run.rate(lambda since: since >= seconds)
    if pruning.returncode or report["deleted"] < stage.plan.others - 1:
        raise Broken(f"prune ended with {pruning.returncode}: {report}")
    kept = {"kept": during / before, "then": after / before} if before else {}
    rates = {"before": before, "during": during, "after": after}
    return {"rate": report["deleted"] / report["seconds"], "seconds": report["seconds"], **rates, **kept}


def _prune(stage: Stage, database: str) -> "subprocess.Popen[str]":
    url = stage.place.url(database).replace("postgresql://", "postgresql+psycopg://")
    words = ["prune", "--older-than", "30d", "--json", "--database-url", url]
    return subprocess.Popen(
        [sys.executable, "-m", "async_task_cli", *words], cwd=HOME, text=True, stdout=subprocess.PIPE
    )


class _Run:
    """A worker whose queue is filled up as it empties."""

    def __init__(self, stage: Stage, subject: Subject, database: str, worker: Worker) -> None:
        self.stage, self.subject, self.database, self.worker = stage, subject, database, worker
        self.heap = max(50, stage.plan.drain)
        self.filled = self.heap

    def rate(self, is_over: Callable[[float], bool]) -> float:
        """Jobs a second until `is_over(seconds)`."""
        since, seen = time.monotonic(), self.worker.board.count
        while not is_over(time.monotonic() - since):
            if self.filled - self.worker.board.count < self.heap:
                url = self.stage.place.url(self.database)
                self.stage.ask(self.subject.system, "enqueue_many", url=url, count=self.heap)
                self.filled += self.heap
            self.worker.check()
            time.sleep(0.01)
        return (self.worker.board.count - seen) / (time.monotonic() - since)


MEASURE = Measure(
    name="prune",
    title="Prune 1,000,000 rows beside a worker",
    said="A worker drains a queue that is filled up as it empties. `async-task prune --older-than 30d` then deletes "
    "1,000,000 rows that ended 39 days ago, in pages of 500. The rate of the worker for 20 seconds before, while rows "
    "are deleted, and for 20 seconds after.",
    columns=(
        Column("rate", "rows/s pruned"),
        Column("seconds", "s", 1),
        Column("before", "jobs/s before"),
        Column("during", "jobs/s during"),
        Column("after", "jobs/s after"),
        Column("kept", "during over before", 2),
        Column("then", "after over before", 2),
    ),
    subjects=subjects,
    take=take,
    rounds=1,
)
