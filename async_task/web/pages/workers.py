"""`/workers`: which processes live and what they have claimed, and which batches have run."""

from typing import Any

from async_task.web.rendering.charts import beats
from async_task.web.view import Asked, Page, View

LIMIT = 50
COLUMNS = ("name", "kind", "host", "pid", "started_at", "beat_at", "claims", "is_dead")


def read(asked: Asked) -> View:
    outbox = asked.outbox
    found, now = outbox.workers(), outbox.now()
    runs = outbox.runs(limit=LIMIT, after=asked.query.cursor())
    values = {
        "workers": found,
        "now": now,
        "runs": runs,
        "beats": beats(runs, now),
        "states": {one.name: _state(one) for one in found},
    }
    rows = [tuple(getattr(one, name) for name in COLUMNS) for one in found]
    return View(values, {"workers": found, "runs": runs, "read_at": now}, COLUMNS, rows, "async-task workers")


def _state(one: Any) -> str:
    return "dead" if one.is_dead else "alive"


PAGE = Page("Workers", "/workers", "workers.html", read)
