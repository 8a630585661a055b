"""What `Attempt.call` costs with many registered targets, against one.

As a program (`python -m benchmarks.measures.targets CALLS TARGETS`) it prints microseconds a call, as JSON.
"""

import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.measure import Column, Measure, Sample, Subject
from benchmarks.stage import Stage
from benchmarks.system import OURS

TARGETS = 1_000
TURNS = 5


def subjects(stage: Stage) -> list[Subject]:
    return [Subject(OURS, OURS)] if OURS in stage.names else []


def take(stage: Stage, _subject: Subject) -> Sample:
    """In a process of its own: what is registered stays registered."""
    command = [sys.executable, "-m", "benchmarks.measures.targets", str(stage.plan.transactions), str(TARGETS)]
    costs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"ratio": costs["many"] / costs["one"], **costs}


MEASURE = Measure(
    name="targets",
    title=f"A call with {TARGETS:,} registered targets",
    said="Attempt.call in a session that writes nothing, with one target (a class with two methods) in the process and "
    f"with {TARGETS:,}; the quickest of {TURNS} turns.",
    columns=(Column("ratio", "x", 2), Column("one", "us with one", 1), Column("many", "us with all", 1)),
    subjects=subjects,
    take=take,
)


def main(calls: int, targets: int) -> None:
    first = _registered(0)
    costs = {"one": _cost(first, calls)}
    for number in range(1, targets):
        _registered(number)
    costs["many"] = _cost(first, calls)
    print(json.dumps(costs))


def _registered(number: int) -> Any:
    from async_task import target

    def fulfill(order_number: int) -> None: ...
    def cancel(order_number: int) -> None: ...

    made = type(f"Client{number}", (), {"fulfill": staticmethod(fulfill), "cancel": staticmethod(cancel)})
    return target(made, name=f"bench.client{number}")


def _cost(client: Any, calls: int) -> float:
    from sqlalchemy.orm import Session

    from async_task import Attempt

    found = []
    for _ in range(TURNS):
        with Session() as session:
            options = Attempt.options(session=session)
            begun = time.perf_counter()
            for number in range(calls):
                options.call(client.fulfill, number)
            found.append((time.perf_counter() - begun) / calls * 1e6)
            session.expunge_all()
    return min(found)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
