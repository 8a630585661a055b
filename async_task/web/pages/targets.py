"""`/targets`: how often each call is made, how long it takes and fails, what waits, and by which rules."""

import datetime as dt
from dataclasses import fields
from typing import Any

from async_task.targets.registry import own_queue, registered_targets
from async_task.targets.retry import Retry
from async_task.web.pages.overview import DEPTH_AGE, FIGURE_AGE
from async_task.web.rendering.charts import sparkline
from async_task.web.rendering.times import span
from async_task.web.view import Asked, Page, View

COLUMNS = (
    "target", "per_minute", "failed_per_minute", "due", "later", "running", "oldest_due_seconds", "ended", "p50", "p95",
    "p99", "failed_share",
)  # fmt: skip


def read(asked: Asked) -> View:
    outbox = asked.outbox
    depths = asked.recent("depths", outbox.attempts.depths, DEPTH_AGE)
    rates = asked.recent("rates", outbox.attempts.rates, FIGURE_AGE)
    durations = asked.recent("durations", outbox.attempts.durations, FIGURE_AGE)
    paused = {one.name: one for one in outbox.queues()}
    waits, ends = {one.target: one for one in depths.by_target}, {one.target: one for one in rates.by_target}
    took = _took(durations)
    names = sorted({*waits, *ends, *took, *(one.name for one in registered_targets())})
    rows = [_row(name, waits.get(name), ends.get(name), took.get(name, ()), paused) for name in names]
    values = {
        "rows": rows, "now": depths.read_at, "queues": depths.by_queue, "paused": paused,
        "is_complete": depths.is_complete,
    }  # fmt: skip
    return View(values, {"targets": rows, "queues": list(paused.values())}, COLUMNS, _cells(rows), "async-task stats")


def _took(durations: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for one in durations.by_call:
        found.setdefault(one.target, []).append(one)
    return found


def _row(name: str, waits: Any, ends: Any, took: Any, paused: dict[str, Any]) -> dict[str, Any]:
    return {
        "target": name, "waits": waits, "failed_share": _failed_share(took), "calls": list(took),
        "minute": None if ends is None else ends.minute,
        "spark": None if ends is None else sparkline(ends.by_minute),
        "policy": _policy(name), "paused": paused.get(own_queue(name)), "own_queue": own_queue(name),
    }  # fmt: skip


def _failed_share(calls: Any) -> float:
    number = sum(one.number for one in calls)
    return sum(one.failed * one.number for one in calls) / number if number else 0.0


def _policy(name: str) -> dict[str, str] | None:
    """The rules that a target sets, in words; None where this process does not know it."""
    known = {one.name: one.policy for one in registered_targets()}
    if name not in known:
        return None
    policy = known[name]
    return {one.name: words(value) for one in fields(policy) if (value := getattr(policy, one.name)) is not None}


def words(value: Any) -> str:
    """The value of a setting."""
    if isinstance(value, dt.timedelta):
        return span(value)
    if isinstance(value, Retry):
        most = "" if value.max_attempts is None else f", at most {value.max_attempts} errors"
        return f"{value.name}{most}{'' if value.until is None else f', until {span(value.until)}'}"
    if isinstance(value, tuple) and all(isinstance(one, type) for one in value):
        return ", ".join(one.__name__ for one in value) or "none"
    return ", ".join(sorted(map(str, value))) if isinstance(value, frozenset) else str(value)


def _cells(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    found = []
    for one in rows:
        waits, minute = one["waits"], one["minute"]
        first = (one["target"], minute and minute.ended * 60, minute and minute.failed * 60)
        depth = (waits.due, waits.waiting, waits.claimed, waits.oldest_due) if waits else (0, 0, 0, None)
        for call in one["calls"] or [None]:
            last = (call.number, call.p50, call.p95, call.p99, call.failed) if call else (None,) * 5
            found.append((*first, *depth, *last))
    return found


PAGE = Page("Targets", "/targets", "targets.html", read)
