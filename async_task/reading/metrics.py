"""The figures for monitoring, as gauges: `/metrics`, `async-task metrics`, and collectors show the same ones."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from async_task.queue.workers import WorkerInfo
from async_task.reading.depths import Depths
from async_task.reading.oldest_due import OldestDue
from async_task.reading.rates import Rates

PREFIX = "async_task_"
UP = "up"
WORDS = {
    UP: "Whether the figures could be read from the database.",
    "oldest_due_seconds": "For how long the oldest attempt has been due.",
    "attempts_due": "Attempts that could be started now, by queue; a lower bound past 10,000.",
    "attempts_waiting": "Attempts that are due later, by queue; a lower bound past 10,000.",
    "attempts_claimed": "Attempts that are being performed, by queue; a lower bound past 10,000.",
    "queue_oldest_due_seconds": "The same age by queue.",
    "attempts_ended_per_second": "Attempts that ended a second, in the last minute.",
    "attempts_failed_per_second": "Attempts that failed a second, in the last minute.",
    "processes": "Processes with a heartbeat, by kind.",
}
"""Each gauge without its prefix, and what it measures."""
Samples = Iterable[tuple[Mapping[str, str], float]]


@dataclass(frozen=True, slots=True)
class GaugeSample:
    """One value of a gauge. `labels`: by name; empty where the gauge has one value."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Gauge:
    """One gauge, such as `async_task_attempts_due`. `words`: what it measures, as a sentence. `samples`: empty while
    there is nothing to measure."""

    name: str
    words: str
    samples: tuple[GaugeSample, ...]


def gauges_of(depths: Depths, rates: Rates, oldest: OldestDue, workers: Iterable[WorkerInfo]) -> tuple[Gauge, ...]:
    """All gauges, also those that have nothing to measure."""
    queues, targets = depths.by_queue, rates.by_target
    ages = [({"queue": one.queue}, _seconds(one.oldest_due)) for one in queues if one.oldest_due is not None]
    samples: dict[str, Samples] = {
        UP: [({}, 1.0)],
        "oldest_due_seconds": [({}, _seconds(oldest.age))],
        "attempts_due": [({"queue": one.queue}, one.due) for one in queues],
        "attempts_waiting": [({"queue": one.queue}, one.waiting) for one in queues],
        "attempts_claimed": [({"queue": one.queue}, one.claimed) for one in queues],
        "queue_oldest_due_seconds": ages,
        "attempts_ended_per_second": [({"target": one.target}, one.minute.ended) for one in targets],
        "attempts_failed_per_second": [({"target": one.target}, one.minute.failed) for one in targets],
        "processes": _by_kind(workers),
    }
    return tuple(gauge(name, samples[name]) for name in WORDS)


def gauge(name: str, samples: Samples = ()) -> Gauge:
    """The gauge of this name, without the prefix that all have."""
    return Gauge(PREFIX + name, WORDS[name], tuple(GaugeSample(labels, float(value)) for labels, value in samples))


def prometheus_text(gauges: Sequence[Gauge]) -> str:
    """The gauges in the text format of Prometheus, version 0.0.4, in UTF-8."""
    return "\n".join(line for one in gauges for line in _lines(one)) + "\n"


def _lines(one: Gauge) -> Iterator[str]:
    yield f"# HELP {one.name} {one.words}"
    yield f"# TYPE {one.name} gauge"
    for sample in one.samples:
        named = ",".join(f'{key}="{_escaped(text)}"' for key, text in sample.labels.items())
        value = int(sample.value) if sample.value.is_integer() else sample.value
        yield f"{one.name}{f'{{{named}}}' if named else ''} {value}"


def _by_kind(workers: Iterable[WorkerInfo]) -> Samples:
    numbers = Counter(one.kind or "call" for one in workers if not one.is_dead)
    return [({"kind": kind}, number) for kind, number in sorted(numbers.items())]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _seconds(length: dt.timedelta) -> float:
    return length.total_seconds()
