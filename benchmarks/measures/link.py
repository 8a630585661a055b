"""Drains over a link with a round trip of half a millisecond."""

from benchmarks.link import delayed
from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.measures.drain import COLUMNS, drain
from benchmarks.stage import Stage
from benchmarks.system import BARE, OURS

ROUND_TRIP = 0.0005


def subjects(stage: Stage) -> list[Subject]:
    named = {
        OURS: (("async-task", False), ("async-task, settle_within=0, 8 lanes", True)),
        BARE: (("psycopg, batch of 100", False), ("psycopg, a loop in 8 threads", True)),
    }
    return [
        Subject(label, name, {"single": single})
        for name in stage.names
        if name in named
        for label, single in named[name]
    ]


def take(stage: Stage, subject: Subject) -> Sample:
    single = subject.options["single"]
    count = stage.plan.single if single else stage.plan.drain
    warm = min(stage.plan.warm, count // 10)
    with stage.database(subject.system) as database, delayed(stage.server.folder, ROUND_TRIP / 2) as port:
        stage.fill(subject.system, database, count + warm)
        url = f"postgresql://postgres@127.0.0.1:{port}/{database}?sslmode=disable"
        return drain(stage, subject, database, count + warm, warm, url=url, single=single)


MEASURE = Measure(
    name="link",
    title="Drain over a link with a round trip of 0.5 ms",
    said="As in the drain, through a proxy on loopback that delays each byte by 0.25 ms in either direction. The "
    "proxy takes processor time of the same cores.",
    columns=(*COLUMNS[:2], Column("server", "server CPU s per 1,000", 3)),
    subjects=subjects,
    take=take,
)
