"""The time from `kill -9` of a worker of async-task until its calls run again, by who takes its place."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.child import Worker
from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage
from benchmarks.system import OURS

RUNNING = 2
AGAIN: dict[str, Any] = {"lanes": RUNNING, "defaults": True, "hold": 0}
NAMED: dict[str, Any] = {"given_name": "bench"}


def subjects(stage: Stage) -> list[Subject]:
    return [Subject(label, OURS, {"case": label}) for label in CASES] if OURS in stage.names else []


def take(stage: Stage, subject: Subject) -> Sample:
    return CASES[subject.options["case"]](stage, subject)


def same_machine(stage: Stage, subject: Subject) -> Sample:
    """A worker is started when the first was killed. Both are of this machine."""
    return _restarted(stage, subject, {}, moved=False)


def name_taken_over(stage: Stage, subject: Subject) -> Sample:
    """The same with a name. For its successor, the first is of another machine."""
    return _restarted(stage, subject, NAMED, moved=True)


def other_machine(stage: Stage, subject: Subject) -> Sample:
    """A second worker is idle. For it, the first is of another machine."""
    with _running(stage, subject, {}) as (database, first), stage.worker(OURS, database, **AGAIN) as second:
        _move_elsewhere(stage, database, first)
        time.sleep(min(3.0, stage.plan.recovery / 5))  # until it is idle
        first.kill()
        killed = time.monotonic()
        return {"again": _await_calls(stage, second, killed) - killed}


def supervisor(stage: Stage, subject: Subject) -> Sample:
    """Both children of a supervisor are killed, of which one runs a call: it has to start others."""
    with (
        stage.database(subject.system) as database,
        stage.worker(OURS, database, lanes=1, processes=2) as worker,
    ):
        stage.await_(lambda: len(_children(stage, database)) == 2, "both had begun", [worker])
        stage.ask(OURS, "enqueue", url=stage.server.url(database), kind="hold", numbers=[0], delay=0.0)
        stage.await_(lambda: worker.board.start(0) is not None, "the call ran", [worker])
        before = worker.board.start(0)
        children = _children(stage, database)
        killed = time.monotonic()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        stage.await_(lambda: worker.board.start(0) != before, "the call ran again", [worker])
        return {"again": (worker.board.start(0) or killed) - killed}


def _children(stage: Stage, database: str) -> list[int]:
    with stage.server.connect(database) as connection:
        return [pid for (pid,) in connection.execute("SELECT pid FROM async_task_workers WHERE kind = 'worker'")]


CASES: dict[str, Callable[[Stage, Subject], Sample]] = {
    "same machine": same_machine,
    "other machine": other_machine,
    "supervisor": supervisor,
    "name taken over": name_taken_over,
}


def _restarted(stage: Stage, subject: Subject, options: dict[str, Any], *, moved: bool) -> Sample:
    with _running(stage, subject, options) as (database, first):
        if moved:
            _move_elsewhere(stage, database, first)
        first.kill()
        killed = time.monotonic()
        with stage.worker(OURS, database, **AGAIN, **options) as second:
            begun = _await_row(stage, database, second)
            again = _await_calls(stage, second, killed)
    return {"again": again - killed, "start": begun - killed, "then": again - begun}


@contextlib.contextmanager
def _running(stage: Stage, subject: Subject, options: dict[str, Any]) -> Iterator[tuple[str, Worker]]:
    """A database, and a worker in which the calls run."""
    numbers = list(range(RUNNING))
    with (
        stage.database(subject.system) as database,
        stage.worker(OURS, database, lanes=RUNNING, defaults=True, **options) as first,
    ):
        stage.ask(OURS, "enqueue", url=stage.server.url(database), kind="hold", numbers=numbers, delay=0.0)
        stage.await_(lambda: all(map(first.board.start, numbers)), "the calls ran", [first])
        yield database, first


def _move_elsewhere(stage: Stage, database: str, worker: Worker) -> None:
    with stage.server.connect(database) as connection:
        connection.execute(
            "UPDATE async_task_workers SET host = 'elsewhere', process_started = 'another boot:1:2' WHERE pid = %s",
            [worker.pid],
        )


def _await_row(stage: Stage, database: str, worker: Worker) -> float:
    """When the worker is known to the database."""
    asked = "SELECT 1 FROM async_task_workers WHERE pid = %s AND host <> 'elsewhere'"
    with stage.server.connect(database) as connection:
        while not connection.execute(asked, [worker.pid]).fetchall():
            worker.check()
            time.sleep(0.002)
    return time.monotonic()


def _await_calls(stage: Stage, worker: Worker, killed: float) -> float:
    """When the last of the calls began in this worker. Raises Broken."""
    numbers = list(range(RUNNING))
    stage.await_(lambda: all(map(worker.board.start, numbers)), "the calls ran again", [worker])
    return max(worker.board.start(number) or killed for number in numbers)


MEASURE = Measure(
    name="restart",
    title="After kill -9: who takes the place of the worker",
    said="Two calls run in a worker, which is killed. Seconds until both run again, with a lease of 5 s. Same machine: "
    "a worker is started at once, and its start is a part of the time. Other machine: a second worker is idle, for "
    "which the first was of another machine. Supervisor: both children of `--processes 2` are killed, one with "
    "a call, and it starts others. Name taken over: as on the same machine, with `--name`, for a successor on another "
    "machine.",
    columns=(
        Column("again", "s until both run again", 2),
        Column("start", "s of these until the new worker has begun", 2),
        Column("then", "s from there", 2),
    ),
    subjects=subjects,
    take=take,
    rounds=3,
)
