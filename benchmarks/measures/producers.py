"""Many producers at once, with and without a sleeping worker."""

import contextlib

from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage


def subjects(stage: Stage) -> list[Subject]:
    return [
        Subject(f"{name}, {'a worker' if sleeper else 'no worker'}", name, {"sleeper": sleeper})
        for name in stage.names
        for sleeper in (False, True)
    ]


def take(stage: Stage, subject: Subject) -> Sample:
    with stage.database(subject.system) as database, contextlib.ExitStack() as until:
        url, plan = stage.server.url(database), stage.plan
        if subject.options["sleeper"]:
            worker = until.enter_context(stage.worker(subject.system, database))
            stage.ask(subject.system, "enqueue", url=url, kind="noop", numbers=[0], delay=0.0)
            stage.await_(lambda: worker.board.count >= 1, "the worker was awake", [worker])
        made = stage.ask(subject.system, "produce", url=url, producers=plan.producers, seconds=plan.produce)
        return {"rate": made / plan.produce}


MEASURE = Measure(
    name="producers",
    title="32 concurrent producers",
    said="32 connections in one process (threads, or tasks of an event loop) commit one job a transaction. They run "
    "alone, and beside a worker that slept when they began and performs their jobs on the same cores.",
    columns=(Column("rate", "tx/s"),),
    subjects=subjects,
    take=take,
)
