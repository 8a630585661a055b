"""Drain a queue beside many rows that are not due."""

from functools import partial

from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.measures.drain import drain
from benchmarks.stage import DAY, Stage
from benchmarks.system import BARE, OURS

TEN = {"priority": "(n % 10)"}
"""Our copies of a row have priorities 0 to 9 in turn."""


def subjects(stage: Stage) -> list[Subject]:
    found = [Subject(f"{name}, batch of 100" if name == BARE else name, name) for name in stage.names]
    return [
        *found,
        *(Subject("async-task, ten priorities", OURS, {"fresh": TEN}) for name in stage.names if name == OURS),
    ]


def take(stage: Stage, subject: Subject, others: str) -> Sample:
    # The empty table comes just before and just after: a machine changes its speed by a half within minutes.
    before, beside, after = (_rate(stage, subject, around) for around in ("", others, ""))
    empty = (before + after) / 2
    return {"rate": beside, "empty": empty, "kept": beside / empty}


def _rate(stage: Stage, subject: Subject, others: str) -> float:
    count, fresh = stage.plan.beside, subject.options.get("fresh")
    with stage.database(subject.system) as database:
        if others == "future":
            stage.fill(subject.system, database, stage.plan.others, delay=DAY, fresh=fresh)
        elif others == "finished":
            stage.fill_finished(subject.system, database, stage.plan.others)
        stage.fill(subject.system, database, count, fresh=fresh)
        return float(drain(stage, subject, database, count, count // 10, recorded=False)["rate"])


HOW = (
    "As in the drain, beside rows that are {}; and before and after that in a table with nothing else. The clock runs "
    "from the job after the warm-up until the last one was called."
)
COLUMNS = (
    Column("rate", "jobs/s"),
    Column("empty", "jobs/s in an empty table"),
    Column("kept", "beside over empty", 2),
)
FUTURE = Measure(
    "future", "Drain of 60,000 beside 1,000,000 future rows", HOW.format("due in a day"), COLUMNS, subjects,
    partial(take, others="future"), rounds=2,
)  # fmt: skip
FINISHED = Measure(
    "finished", "Drain of 60,000 beside 1,000,000 finished rows", HOW.format("done"), COLUMNS, subjects,
    partial(take, others="finished"), rounds=2,
)  # fmt: skip
