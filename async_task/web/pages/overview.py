"""`/`: for how long the oldest call has been due, how much waits, how much ends, and what needs somebody."""

import re
from functools import partial
from typing import Any, get_args

from async_task.reading.depths import Depths
from async_task.reading.failures import FailureGroup
from async_task.reading.history import Span
from async_task.schema.states import Status
from async_task.web.rendering.charts import stacked
from async_task.web.requests.query import LONGEST
from async_task.web.view import Asked, Page, View

SPANS: tuple[Span, ...] = get_args(Span)
MOST_GROUPS, MOST_TARGETS = 8, 10
KILLED = ("crash", "loss")
_DIFFERING = re.compile(r"N|UUID|WORKER|'\.\.\.'")
"""What stands in the message of a group for what differs between its errors."""
KINDS = {
    "succeeded": "succeeded", "retried": "retried", "failed": "failed or expired", "canceled": "canceled",
    "waiting": "waiting or running",
}  # fmt: skip
"""What the parts of a bar mean."""
DEPTH_AGE, FIGURE_AGE, HISTORY_AGE = 1.0, 5.0, 20.0
"""Seconds for which figures are shown that thousands of rows are read for."""


def read(asked: Asked) -> View:
    outbox = asked.outbox
    span: Span = asked.query.choice("span", SPANS, SPANS[2])
    depths = asked.recent("depths", outbox.attempts.depths, DEPTH_AGE)
    health = asked.recent("health", outbox.health, DEPTH_AGE)
    figures = _figures(asked, depths)
    history = asked.recent(f"history {span}", partial(outbox.attempts.history, span), HISTORY_AGE)
    failures = asked.recent("failures", outbox.attempts.failures, FIGURE_AGE)
    lags = asked.recent("lags", outbox.attempts.lags, FIGURE_AGE)
    left = [one for one in failures.groups if one.left]
    values = {
        "figures": figures, "now": depths.read_at, "depths": depths, "spans": SPANS, "span": span,
        "bars": stacked(history), "history": history, "health": health, "lags": lags,
        "failures": failures, "groups": [(one, _link(one)) for one in left[:MOST_GROUPS]],
        "num_more": len(left[MOST_GROUPS:]), "kinds": KINDS,
        "is_empty": _is_empty(figures, history),
        "targets": sorted(depths.by_target, key=_weight, reverse=True)[:MOST_TARGETS],
    }  # fmt: skip
    data = {
        "figures": figures, "depths": depths, "history": history, "health": health, "lags": lags,
        "failures": failures,
    }  # fmt: skip
    rows = [(one.queue, one.due, one.waiting, one.claimed, one.oldest_due) for one in depths.by_queue]
    return View(values, data, ("queue", "due", "later", "running", "oldest_due_seconds"), rows, "async-task stats")


def _figures(asked: Asked, depths: Depths) -> dict[str, Any]:
    attempts = asked.outbox.attempts
    oldest = asked.recent("oldest due", attempts.oldest_due, DEPTH_AGE)
    rates = asked.recent("rates", attempts.rates, FIGURE_AGE)
    counts = asked.recent("counts", attempts.counts, FIGURE_AGE)
    return {
        "oldest_due": oldest,
        "due": sum(one.due for one in depths.by_queue),
        "later": sum(one.waiting for one in depths.by_queue),
        "running": sum(one.claimed for one in depths.by_queue),
        "is_counted": depths.is_complete,
        "done_per_minute": rates.minute.ended * 60,
        "failed_per_minute": rates.minute.failed * 60,
        "failed": counts.by_status.get(Status.FAILED, 0),
        "expired": counts.by_status.get(Status.EXPIRED, 0),
        "is_counts_complete": counts.is_complete,
    }


def _is_empty(figures: dict[str, Any], history: Any) -> bool:
    return not any(figures[name] for name in ("due", "later", "running", "failed", "expired")) and not any(
        one.total for one in history.buckets
    )


def _link(group: FailureGroup) -> dict[str, str]:
    """The filters of the list that shows the attempts of a group."""
    target = {} if group.target is None else {"target": group.target}
    said = ": ".join(filter(None, (group.exception, _DIFFERING.split(group.message, maxsplit=1)[0])))
    error = {} if group.exception in KILLED else {"error": said[:LONGEST].rstrip()}
    return {"status": "pending,failed,expired", **target, **{name: text for name, text in error.items() if text}}


def _weight(one: Any) -> int:
    return int(one.due + one.waiting + one.claimed)


PAGE = Page("Overview", "/", "overview.html", read)
