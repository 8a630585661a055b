"""What a job adds to a business transaction."""

from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage


def subjects(stage: Stage) -> list[Subject]:
    doors = ((name, door) for name in stage.names for door in stage.ask(name, "doors"))
    return [Subject(f"{name}, {door}" if door else name, name, {"door": door}) for name, door in doors]


def take(stage: Stage, subject: Subject) -> Sample:
    """Without and with the job in turns, so that both run on the same machine. The first turn is the warm-up."""
    count = max(1, stage.plan.transactions // 4)
    with stage.database(subject.system) as database:
        url, door = stage.place.url(database), subject.options["door"]
        taken = {False: 0.0, True: 0.0}
        for turn in range(5):
            for enqueue in (False, True):
                words = {"count": count, "door": door, "enqueue": enqueue}
                seconds = stage.ask(subject.system, "transactions", url=url, **words)
                taken[enqueue] += seconds if turn else 0.0
    return {
        "overhead": taken[True] / taken[False],
        "without": 4 * count / taken[False],
        "with": 4 * count / taken[True],
    }


MEASURE = Measure(
    name="enqueue",
    title="A job in a transaction with one business INSERT",
    said="One connection. Each transaction is one INSERT into a table of the application, with and without a job "
    "that the system enqueues in it. The overhead is the time with the job over the time without.",
    columns=(Column("overhead", "x", 2), Column("without", "tx/s without"), Column("with", "tx/s with")),
    subjects=subjects,
    take=take,
)
