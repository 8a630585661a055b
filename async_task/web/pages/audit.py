"""`/audit`: who did what to which jobs, why, and what that changed."""

from typing import Any

from async_task.web.view import Asked, Page, View

LIMIT = 50
KINDS = {"async_task_queues": "queue", "async_task_schedules": "schedule"}
"""What a person calls the types of jobs that are none."""
COLUMNS = ("at", "actor", "verb", "type", "id", "reason", "before", "after")


def read(asked: Asked) -> View:
    query = asked.query
    filters: dict[str, Any] = {name: query.text(name) for name in ("actor", "verb")}
    filters |= {name: query.moment(name) for name in ("since", "until")}
    page = asked.outbox.attempts.audit(**filters, limit=LIMIT, after=query.cursor())
    values = {
        "kinds": KINDS, "events": page.events, "next": page.next, "now": asked.outbox.now(), "filters": filters,
        "table_name": asked.outbox.table_name, "is_first": query.text("after") is None,
    }  # fmt: skip
    rows = [
        (one.created_at, one.actor, one.kind, one.job_type, one.job_id, one.message, one.before, one.after)
        for one in page.events
    ]  # fmt: skip
    return View(values, {"events": page.events, "next": page.next}, COLUMNS, rows, next=page.next)


PAGE = Page("Audit", "/audit", "audit.html", read)
