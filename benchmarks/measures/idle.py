"""What an idle worker costs."""

import time

from benchmarks import processor
from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.places import ELSEWHERE
from benchmarks.stage import Stage
from benchmarks.system import BARE, OURS

SETTLING = 0.2
"""The share of the measured time to wait first: a worker that starts is not idle."""


def subjects(stage: Stage) -> list[Subject]:
    found = [Subject(name, name) for name in stage.names if name != BARE]
    elsewhere = [Subject(f"{OURS} on {place}", OURS, place=place) for place in ELSEWHERE if OURS in stage.names]
    return found + elsewhere


def take(stage: Stage, subject: Subject) -> Sample:
    with stage.database(subject.system) as database, stage.worker(subject.system, database, defaults=True) as worker:
        url = stage.place.url(database)
        stage.ask(subject.system, "enqueue", url=url, kind="noop", numbers=[0], delay=0.0)
        stage.await_(lambda: worker.board.count >= 1, "the worker was awake", [worker])
        time.sleep(stage.plan.idle * SETTLING)
        sent, used, begun = stage.place.statements(database), processor.times([worker.pid]), time.monotonic()
        time.sleep(stage.plan.idle)
        worker.check()
        minutes = (time.monotonic() - begun) / 60
        share = processor.spent(used, processor.times([worker.pid])) / minutes / 60
        sent_now = stage.place.statements(database)
    counted = {} if sent is None or sent_now is None else {"statements": (sent_now - sent) / minutes}
    return {**counted, "core": share * 100}


MEASURE = Measure(
    name="idle",
    title="Idle",
    said="Statements a minute (pg_stat_statements) that one worker process sends while nothing is due, and its "
    "share of a core. All systems wait at the same time, each in a database of its own. MariaDB counts the "
    "statements of its whole server, also those of other clients. SQLite does not count them.",
    columns=(Column("statements", "statements a minute"), Column("core", "% of a core", 2)),
    subjects=subjects,
    take=take,
    rounds=1,
    at_once=True,
)
