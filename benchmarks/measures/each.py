"""The same worker on each database: async-task alone, without peers."""

import dataclasses
from collections.abc import Callable

from benchmarks.measure import Measure, Subject
from benchmarks.measures import bulk, drain, enqueue, latency
from benchmarks.places import PLACES
from benchmarks.stage import Stage
from benchmarks.system import OURS


def _each(measure: Measure, said: str = "", ways: Callable[[Stage], list[Subject]] | None = None) -> Measure:
    """One of the measures on every database, with the same code. `ways`: the ways to use async-task, if they differ."""

    def subjects(stage: Stage) -> list[Subject]:
        ours = [one for one in (ways or measure.subjects)(stage) if one.system == OURS]
        return [
            dataclasses.replace(one, label=one.label.replace(OURS, place), place=place)
            for place in PLACES
            for one in ours
        ]

    return dataclasses.replace(
        measure,
        name=f"each-{measure.name}",
        title=f"{measure.title}: async-task on each database",
        said=f"As in `{measure.name}`; on MariaDB and SQLite async-task enqueues all jobs. {said}".strip(),
        subjects=subjects,
        rounds=2,
    )


def _lanes(stage: Stage) -> list[Subject]:
    named = {1: "1 lane", 8: "8 lanes"}
    return [Subject(f"{OURS}, {label}", OURS, {"lanes": lanes}) for lanes, label in named.items()]


def _threads(stage: Stage) -> list[Subject]:
    return [one for one in drain.WRITES.subjects(stage) if "tasks" not in one.options]


PROCESSOR = "SQLite has no server: the worker does its work. MariaDB's processor time is that of its whole process."
FAMILY = (
    _each(drain.MEASURE, PROCESSOR),
    _each(drain.SINGLE, PROCESSOR, _lanes),
    _each(drain.WRITES, PROCESSOR, _threads),
    _each(enqueue.MEASURE),
    _each(bulk.MEASURE),
    _each(latency.MEASURE),
)
