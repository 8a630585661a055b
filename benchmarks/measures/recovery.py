"""The time from the death of a worker until its jobs run again."""

import contextlib
import os
import signal
import time

from benchmarks.child import Worker
from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage
from benchmarks.system import BARE, OURS

RUNNING = 2


def subjects(stage: Stage) -> list[Subject]:
    return [Subject(name, name) for name in stage.names if name != BARE]


def take(stage: Stage, subject: Subject) -> Sample:
    """A second worker runs when the first is killed, or is started then if only a restart recovers the jobs."""
    by_restart = stage.ask(subject.system, "by_restart")
    again = {"lanes": RUNNING, "defaults": True, "hold": 0}  # jobs that run one after the other may end at once
    with (
        stage.database(subject.system) as database,
        stage.worker(subject.system, database, lanes=RUNNING, defaults=True) as first,
        contextlib.ExitStack() as until,
    ):
        url, numbers = stage.server.url(database), list(range(RUNNING))
        stage.ask(subject.system, "enqueue", url=url, kind="hold", numbers=numbers, delay=0.0)
        stage.await_(lambda: all(map(first.board.start, numbers)), "the jobs ran", [first])
        if by_restart:
            first.kill()
            killed = time.monotonic()
            second = until.enter_context(stage.worker(subject.system, database, **again))
        else:
            second = until.enter_context(stage.worker(subject.system, database, **again))
            time.sleep(min(3.0, stage.plan.recovery / 5))  # until it is idle
            first.kill()
            killed = time.monotonic()
        while not all(map(second.board.start, numbers)):
            second.check()
            if time.monotonic() > killed + stage.plan.recovery:
                break
            time.sleep(0.005)
        starts = [start for start in map(second.board.start, numbers) if start is not None]
    return _sample(killed, starts, stage.plan.recovery, RUNNING)


def _sample(killed: float, starts: list[float], patience: float, wanted: int) -> Sample:
    found: Sample = {"first": min(starts) - killed} if starts else {}
    return {**found, "all": max(starts) - killed} if len(starts) == wanted else {**found, "more": patience}


MEASURE = Measure(
    name="recovery",
    title="After kill -9 of a worker with running jobs",
    said="Two jobs run in a worker, and a second worker is idle. The first is killed. Seconds until the jobs run "
    "again, with default settings (the process of dbos is started again under the same id, which recovers them). "
    "All systems wait at the same time, each in a database of its own.",
    columns=(
        Column("first", "s until the first", 2),
        Column("all", "s until both", 2),
        Column("more", "s: not by then"),
    ),
    subjects=subjects,
    take=take,
    rounds=1,
    at_once=True,
)


ONE, BOTH = "one of two children", "both children"


def _ours(stage: Stage) -> list[Subject]:
    return [
        Subject(label, name, {"jobs": jobs})
        for name in stage.names if name == OURS
        for label, jobs in ((ONE, 1), (BOTH, 2))
    ]  # fmt: skip


def take_supervised(stage: Stage, subject: Subject) -> Sample:
    """Kill the children that run jobs, one job each. Their supervisor recovers the jobs and starts other children."""
    numbers = list(range(subject.options["jobs"]))
    with (
        stage.database(subject.system) as database,
        stage.worker(subject.system, database, lanes=1, processes=2) as worker,
    ):
        url = stage.server.url(database)
        stage.ask(subject.system, "enqueue", url=url, kind="hold", numbers=numbers, delay=0.0)
        stage.await_(lambda: all(map(worker.board.start, numbers)), "the jobs ran", [worker])
        before = [worker.board.start(number) or 0.0 for number in numbers]
        holders = _holders(stage, database)
        killed = time.monotonic()
        for pid in holders:
            os.kill(pid, signal.SIGKILL)
        late = killed + stage.plan.recovery
        while len(starts := _later(worker, before)) < len(numbers) and time.monotonic() < late:
            worker.check()
            time.sleep(0.002)
    return _sample(killed, starts, stage.plan.recovery, len(numbers))


def _holders(stage: Stage, database: str) -> list[int]:
    """The processes that have claims: a worker is named host:pid:..."""
    with stage.server.connect(database) as connection:
        rows = connection.execute("SELECT DISTINCT claimed_by FROM async_task_attempts WHERE claim_id IS NOT NULL")
        return [int(name.split(":")[-2]) for (name,) in rows]


def _later(worker: Worker, before: list[float]) -> list[float]:
    starts = (worker.board.start(number) or 0.0 for number in range(len(before)))
    return [start for start, first in zip(starts, before, strict=True) if start > first]


SUPERVISED = Measure(
    name="supervised",
    title="After kill -9 of a child that a supervisor watches",
    said="One child of `async-task worker --processes 2` is killed, and the other one can claim its job; or both "
    "are killed, each with a running job, so that others have to be started.",
    columns=(Column("first", "s until the first", 2), Column("all", "s until all", 2), MEASURE.columns[2]),
    subjects=_ours,
    take=take_supervised,
)
