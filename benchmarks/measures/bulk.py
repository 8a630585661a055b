"""Enqueue many jobs at once."""

from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage


def subjects(stage: Stage) -> list[Subject]:
    return [Subject(name, name) for name in stage.names]


def take(stage: Stage, subject: Subject) -> Sample:
    count = stage.plan.bulk
    with stage.database(subject.system) as database:
        url = stage.place.url(database)
        stage.ask(subject.system, "enqueue_many", url=url, count=10)
        return {"rate": count / stage.ask(subject.system, "enqueue_many", url=url, count=count)}


MEASURE = Measure(
    name="bulk",
    title="Bulk enqueue of 10,000",
    said="The system's own call for many jobs, in one transaction if possible, on a connection that is open already.",
    columns=(Column("rate", "jobs/s"),),
    subjects=subjects,
    take=take,
)
