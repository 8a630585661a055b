"""The geometry of the drawings: bars over time, and the time line of one attempt. Templates draw them as SVG."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from async_task.attempts.info import AttemptInfo
from async_task.reading.events import EventInfo
from async_task.web.rendering.times import span

WIDTH, HEIGHT = 720, 120
"""Of a drawing, in units of its own: it is scaled to the page."""
KINDS = ("succeeded", "retried", "failed", "canceled", "waiting")
"""The parts of a bar, from the bottom."""


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of a bar."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Bars:
    """`labels`: one for each bar, most of them empty. `highest`: the number that the full height means. `words`: the
    same for those who do not see it."""

    parts: Sequence[Part]
    labels: Sequence[str]
    highest: int
    words: str


def stacked(history: Any) -> Bars:
    """Bars of an `AttemptHistory`."""
    buckets = history.buckets
    highest = max((sum(getattr(one, kind) for kind in KINDS) for one in buckets), default=0)
    step = WIDTH / max(1, len(buckets))
    parts = [
        part for number, one in enumerate(buckets) for part in _bar(one, number * step, step * 0.82, max(1, highest))
    ]
    totals = {kind: sum(getattr(one, kind) for one in buckets) for kind in KINDS}
    said = ", ".join(f"{number:,} {kind}" for kind, number in totals.items() if number)
    return Bars(parts, _labels(buckets), highest, said or "no attempts")


def _bar(bucket: Any, x: float, width: float, highest: int) -> list[Part]:
    parts, bottom = [], float(HEIGHT)
    for kind in KINDS:
        number = getattr(bucket, kind)
        if number:
            height = max(1.0, number / highest * HEIGHT)
            bottom -= height
            parts.append(Part(kind, round(x, 2), round(max(0.0, bottom), 2), round(width, 2), round(height, 2)))
    return parts


def _labels(buckets: Sequence[Any]) -> list[str]:
    if not buckets:
        return []
    span = buckets[-1].begin - buckets[0].begin
    form = "%a %d" if span > dt.timedelta(days=2) else "%H:%M"
    step, last = max(1, len(buckets) // 6), len(buckets) * 0.92
    return [f"{one.begin:{form}}" if at % step == 0 and at < last else "" for at, one in enumerate(buckets)]


ASIDE = ("message", "note")
"""Events that change nothing: they may be later than the end."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened: `x` from 0 to WIDTH, its state, words, and when."""

    x: float
    kind: str
    words: str
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class Stretch:
    """A length of time: waiting or running."""

    kind: str
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class TimeLine:
    """From the creation of an attempt until now, or until it ended."""

    marks: Sequence[Mark]
    stretches: Sequence[Stretch]
    begin: dt.datetime
    end: dt.datetime


def time_line(attempt: AttemptInfo, events: Sequence[EventInfo]) -> TimeLine:
    """The marks in the order of time."""
    end = max(attempt.completed_at or attempt.read_at, attempt.created_at)
    length = max((end - attempt.created_at).total_seconds(), 0.001)

    def x_of(when: dt.datetime) -> float:
        share = (when - attempt.created_at).total_seconds() / length
        return round(min(max(share, 0.0), 1.0) * WIDTH, 2)

    happened: list[tuple[dt.datetime, str, str]] = [(attempt.created_at, "created", "created")]
    happened += [(one.created_at, _kind(one), _words(one)) for one in events if one.kind not in ASIDE]
    if attempt.attempted_at is not None:
        happened.append((attempt.attempted_at, "started", "its last try began"))
    if attempt.completed_at is not None:
        happened.append((attempt.completed_at, attempt.status.value, attempt.status.value))
    marks = [Mark(x_of(at), kind, words, at) for at, kind, words in sorted(happened, key=lambda one: one[0])]
    return TimeLine(marks, list(_stretches(attempt, x_of, end)), attempt.created_at, end)


def _stretches(attempt: AttemptInfo, x_of: Any, end: dt.datetime) -> Sequence[Stretch]:
    if attempt.attempted_at is None:
        return [Stretch("waits", 0, x_of(end))]
    began = x_of(attempt.attempted_at)
    runs = attempt.completed_at is not None or attempt.is_performing
    last = Stretch("runs" if runs else "waits", began, max(2.0, round(x_of(end) - began, 2)))
    return [Stretch("waits", 0, began), last]


def _kind(event: EventInfo) -> str:
    return "failed" if event.kind in ("error", "crash", "loss", "failed") else event.kind


def _words(event: EventInfo) -> str:
    number = "" if event.num_attempt is None else f" of try {event.num_attempt}"
    return f"{event.kind}{number}{f', by {event.actor}' if event.actor else ''}"


@dataclass(frozen=True, slots=True)
class Sparkline:
    """A small line. `points`: as SVG writes them. `words`: the numbers."""

    points: str
    words: str


SPARK_WIDTH, SPARK_HEIGHT = 90, 20


def sparkline(numbers: Sequence[int | None]) -> Sparkline | None:
    """Of numbers at equal distances; from the last one that is not known on. None where no two are known."""
    first = max((place + 1 for place, one in enumerate(numbers) if one is None), default=0)
    known = [one for one in numbers[first:] if one is not None]
    if len(known) < 2:
        return None
    highest, step = max(1, *known), SPARK_WIDTH / (len(numbers) - 1)
    points = [
        f"{(first + place) * step:.1f},{SPARK_HEIGHT - 1 - one / highest * (SPARK_HEIGHT - 2):.1f}"
        for place, one in enumerate(known)
    ]
    return Sparkline(" ".join(points), f"ended in each of the last {len(known)} minutes: {', '.join(map(str, known))}")


@dataclass(frozen=True, slots=True)
class Beats:
    """When batches have run, so that a gap is seen."""

    parts: Sequence[Part]
    begin: dt.datetime
    words: str


def beats(runs: Sequence[Any], now: dt.datetime) -> Beats:
    """Of the `RunInfo`s of a page, the newest first."""
    begin = min((one.started_at for one in runs), default=now)
    length = max((now - begin).total_seconds(), 1.0)
    parts = []
    for one in runs:
        x = (one.started_at - begin).total_seconds() / length * WIDTH
        width = max(1.5, (one.ended_at - one.started_at).total_seconds() / length * WIDTH)
        parts.append(Part("failed" if one.error else one.why, round(x, 2), 4, round(width, 2), 16))
    return Beats(parts, begin, _longest_gap(runs, now))


def _longest_gap(runs: Sequence[Any], now: dt.datetime) -> str:
    ordered = sorted(runs, key=lambda one: one.started_at)
    begins = [*(one.started_at for one in ordered[1:]), now]
    gaps = [later - one.ended_at for one, later in zip(ordered, begins, strict=False)]
    number = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    return f"{number}, the longest gap {span(max(gaps))}" if gaps else number
