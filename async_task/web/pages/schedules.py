"""`/schedules`: what clocks enqueue: by which rule, when next, and what came of the last times."""

from async_task.web.view import Asked, Page, View

NEXT, LAST = 5, 10
COLUMNS = ("key", "rule", "zone", "call", "next_at", "last_at", "last_status", "last_reason", "paused_at")


def read(asked: Asked) -> View:
    schedule = asked.outbox.schedule
    entries = schedule.list()
    upcoming = {one.key: schedule.next(NEXT, key=one.key) for one in entries}
    history = {one.key: schedule.occurrences(one.key, limit=LAST) for one in entries}
    values = {"entries": entries, "now": asked.outbox.now(), "upcoming": upcoming, "history": history}
    rows = [
        (
            one.key, one.rule, one.tz, one.call, one.next_at, one.last and one.last.fire_at,
            one.last and one.last.status, one.last and one.last.reason, one.paused_at,
        )
        for one in entries
    ]  # fmt: skip
    data = {"entries": entries, "next": upcoming, "history": history}
    return View(values, data, COLUMNS, rows, "async-task schedule list")


PAGE = Page("Schedules", "/schedules", "schedules.html", read)
