"""A measure, and how its rounds are run: interleaved, each round in another order, so that a machine that slows down
slows down for all systems."""

import concurrent.futures
import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.child import Broken
from benchmarks.stage import Stage
from benchmarks.system import FASTEST, PEERS, Cannot

Sample = dict[str, Any]
"""Figures by column; a curve is a list."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A row of the table: a system and one way to use it."""

    label: str
    system: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    place: str = ""
    """One of `places.PLACES`, if the measure compares databases."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One figure. `digits`: decimal places."""

    name: str
    heading: str
    digits: int = 0


@dataclasses.dataclass(frozen=True)
class Measure:
    """`take(stage, subject)` takes one sample. `said`: how it is measured. `rounds`: other than those of the plan;
    where the plan has one, one."""

    name: str
    title: str
    said: str
    columns: Sequence[Column]
    subjects: Callable[[Stage], list[Subject]]
    take: Callable[[Stage, Subject], Sample]
    rounds: int | None = None
    at_once: bool = False
    """Measure all subjects at the same time. They only wait, and each has a database of its own."""


@dataclasses.dataclass
class Result:
    """The samples of one row, or the reason why there are none."""

    subject: Subject
    samples: list[Sample] = dataclasses.field(default_factory=list)
    reason: str | None = None


def run(stage: Stage, measure: Measure, until: float | None, tell: Callable[[str], None]) -> list[Result]:
    """Run all rounds of a measure. `until` (monotonic): a sample that has not begun by then is left out."""
    results = [Result(subject) for subject in measure.subjects(stage) if _takes_part(stage, measure, subject)]
    for number in range(1 if stage.plan.rounds == 1 else measure.rounds or stage.plan.rounds):
        open_ones = [one for one in _turned(results, number) if one.reason is None or one.samples]
        with concurrent.futures.ThreadPoolExecutor(max(1, len(open_ones)) if measure.at_once else 1) as pool:
            list(pool.map(lambda one: _take(stage, measure, one, until, tell), open_ones))
    return results


def _takes_part(stage: Stage, measure: Measure, subject: Subject) -> bool:
    plan = stage.plan
    if subject.system not in PEERS:
        return True
    if measure.name in plan.fastest_in:
        return subject.system in FASTEST
    return plan.peers_in is None or measure.name in plan.peers_in


def _take(stage: Stage, measure: Measure, result: Result, until: float | None, tell: Callable[[str], None]) -> None:
    if until is not None and time.monotonic() > until:
        result.reason = result.reason or "no time was left in this run"
        tell(f"{measure.name:12} {result.subject.label:34} {result.reason}")
        return
    begun = time.monotonic()
    try:
        sample = measure.take(stage.at(result.subject.place), result.subject)
    except (Cannot, Broken) as error:
        result.reason = str(error)
    except Exception as error:
        # An error, also one of our own, ends this row and not the run. The log says where it happened.
        traceback.print_exc()
        result.reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        result.samples.append(sample)
    told = result.reason if not result.samples else _said(measure, result.samples[-1])
    tell(f"{measure.name:12} {result.subject.label:34} {told}   ({time.monotonic() - begun:.1f} s)")


def _said(measure: Measure, sample: Sample) -> str:
    figures = ((one, sample.get(one.name)) for one in measure.columns)
    return ", ".join(
        f"{value:,.{one.digits}f} {one.heading}" for one, value in figures if isinstance(value, int | float)
    )


def _turned(results: list[Result], number: int) -> list[Result]:
    first = number % len(results) if results else 0
    return results[first:] + results[:first]
