"""The figures that `stats` and `top` show: what waits and runs, and how fast it ends, by queue and by target."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from async_task import (
    MOST_COUNTED,
    AsyncTask,
    FailureReport,
    QueueDepth,
    QueueRate,
    Rate,
    Rates,
    TargetDepth,
    TargetRate,
)
from async_task_cli.columns import Column
from async_task_cli.terminal import brief_span, briefly, span

NONE = Rate(0, 0)
NUMBERS = (
    Column("DUE", is_number=True), Column("LATER", is_number=True), Column("RUNNING", is_number=True),
    Column("OLDEST", is_number=True), Column("RATE", is_number=True), Column("15 MIN", is_number=True),
)  # fmt: skip
QUEUE_COLUMNS = (Column("QUEUE", shortest=12), *NUMBERS, Column("STATE"))
TARGET_COLUMNS = (Column("TARGET", shortest=12), *NUMBERS, Column("FAILED", is_number=True))
FAILURE_COLUMNS = (
    Column("COUNT", is_number=True), Column("TARGET", shortest=12), Column("ERROR", shortest=12), Column("FIRST"),
    Column("LAST"), Column("FINGERPRINT"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """One queue, one target, or all together. `later`: due later. `oldest_due`: for how long the oldest has been due;
    None where nothing is. `minute`, `quarter`: how many ended a second in the last one, and in the last 15."""

    name: str
    due: int
    later: int
    running: int
    oldest_due: dt.timedelta | None
    minute: Rate
    quarter: Rate
    is_paused: bool = False

    @property
    def weight(self) -> tuple[float, ...]:
        """The larger, the more there is to see."""
        return (self.due, self.running, self.minute.ended, self.quarter.ended, self.later)


@dataclass(frozen=True, slots=True)
class Figures:
    """`total`: of all together. `is_counted`, `is_rated`: whether no number, and no rate, leaves anything out."""

    total: Figure
    queues: Sequence[Figure]
    targets: Sequence[Figure]
    is_counted: bool
    is_rated: bool
    read_at: dt.datetime


def figures_of(app: AsyncTask, rates: Rates | None = None) -> Figures:
    """A few bounded queries; without rates that were read before, with these."""
    depths, rates = app.attempts.depths(), rates or app.attempts.rates()
    paused = [one.name for one in app.queues() if one.paused_at is not None]
    queues = _joined({one.queue: one for one in depths.by_queue}, {one.queue: one for one in rates.by_queue}, paused)
    targets = _joined({one.target: one for one in depths.by_target}, {one.target: one for one in rates.by_target}, ())
    oldest = max((one.oldest_due for one in queues if one.oldest_due is not None), default=None)
    total = Figure(
        "", sum(one.due for one in queues), sum(one.later for one in queues), sum(one.running for one in queues),
        oldest, rates.minute, rates.quarter,
    )  # fmt: skip
    return Figures(total, queues, targets, depths.is_complete, rates.is_complete, depths.read_at)


def _joined(
    depths: Mapping[str, QueueDepth | TargetDepth], rates: Mapping[str, QueueRate | TargetRate], paused: Iterable[str]
) -> list[Figure]:
    stopped = frozenset(paused)
    return [
        _figure(name, depths.get(name), rates.get(name), name in stopped)
        for name in sorted({*depths, *rates, *stopped})
    ]  # fmt: skip


def _figure(
    name: str, depth: QueueDepth | TargetDepth | None, rate: QueueRate | TargetRate | None, is_paused: bool
) -> Figure:
    minute, quarter = (NONE, NONE) if rate is None else (rate.minute, rate.quarter)
    if depth is None:
        return Figure(name, 0, 0, 0, None, minute, quarter, is_paused)
    return Figure(name, depth.due, depth.waiting, depth.claimed, depth.oldest_due, minute, quarter, is_paused)


def busiest(figures: Figures, num_queues: int, num_targets: int) -> Figures:
    """The same with no more queues and targets than these, the busiest first."""
    queues, targets = (
        sorted(some, key=lambda one: one.weight, reverse=True)[:number]
        for some, number in ((figures.queues, num_queues), (figures.targets, num_targets))
    )
    return replace(figures, queues=queues, targets=targets)


def headlines(figures: Figures) -> list[str]:
    """All together, in words; each line in 80 columns."""
    one = figures.total
    oldest = "" if one.oldest_due is None else f", the oldest for {span(one.oldest_due.total_seconds())}"
    more = " at least" if not figures.is_counted and any(map(_is_long, figures.queues)) else ""
    minute, quarter = (
        f"{_rate(rate.ended)}{f' ({_rate(rate.failed)} failed)' if rate.failed else ''}"
        for rate in (one.minute, one.quarter)
    )
    return [
        f"{one.due:,} due{more}{oldest}; {one.later:,} due later; {one.running:,} running.",
        f"Ended: {minute} in the last minute, {quarter} in 15.",
    ]


def queue_rows(figures: Figures) -> list[Sequence[Text | str]]:
    return [
        (*_cells(one, is_cut=not figures.is_counted and _is_long(one)), "paused" if one.is_paused else "")
        for one in figures.queues
    ]


def target_rows(figures: Figures) -> list[Sequence[Text | str]]:
    return [
        (
            *_cells(one, is_cut=not figures.is_counted and one.due + one.later > 0),
            _rate(one.quarter.failed) if one.quarter.failed else "",
        )
        for one in figures.targets
    ]  # fmt: skip


def failure_rows(report: FailureReport, now: dt.datetime, limit: int | None = None) -> list[Sequence[Text | str]]:
    return [
        (
            f"{one.count:,}", one.target or "", ": ".join(filter(None, (one.exception, one.message))),
            briefly(one.first, now), briefly(one.last, now), one.fingerprint or "",
        )
        for one in report.groups[:limit]
    ]  # fmt: skip


def as_data(one: Figure, name: str) -> dict[str, Any]:
    """For programs."""
    return {
        **({name: one.name} if name else {}),
        "due": one.due, "later": one.later, "running": one.running,
        "oldest_due_seconds": None if one.oldest_due is None else round(one.oldest_due.total_seconds(), 3),
        "ended_per_second": round(one.minute.ended, 6), "ended_per_second_15min": round(one.quarter.ended, 6),
        "failed_per_second": round(one.minute.failed, 6), "failed_per_second_15min": round(one.quarter.failed, 6),
        **({"paused": one.is_paused} if name == "queue" else {}),
    }  # fmt: skip


def failures_as_data(report: FailureReport) -> list[dict[str, Any]]:
    return [
        {
            "target": one.target, "exception": one.exception, "message": one.message, "count": one.count,
            "attempts": one.attempts, "first_at": one.first.isoformat(), "last_at": one.last.isoformat(),
            "latest": str(one.latest), "fingerprint": one.fingerprint,
        }
        for one in report.groups
    ]  # fmt: skip


def _is_long(queue: Figure) -> bool:
    """Whether some of it may not be counted."""
    return queue.due + queue.later >= MOST_COUNTED


def _cells(one: Figure, *, is_cut: bool) -> tuple[str, ...]:
    more = "+" if is_cut else ""
    oldest = "" if one.oldest_due is None else brief_span(one.oldest_due.total_seconds())
    numbers = f"{one.due:,}{more}", f"{one.later:,}{more}", f"{one.running:,}"
    return one.name, *numbers, oldest, _rate(one.minute.ended), _rate(one.quarter.ended)


def _rate(each_second: float) -> str:
    """`12/s`, `7/min`, `3/h`, `0`."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        number = each_second * seconds
        if number >= 1 or (number and unit == "h"):
            return f"{number:.1f}/{unit}" if number < 9.95 and unit == "s" else f"{number:,.0f}/{unit}"
    return "0"
