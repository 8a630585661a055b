"""`/system`: the tables and their sizes, the server, and the settings of this process."""

from async_task.application.app import AsyncTask
from async_task.web.view import Asked, Page, View

COLUMNS = ("table", "rows", "bytes", "index_bytes", "dead_rows")


def read(asked: Asked) -> View:
    outbox = asked.outbox
    facts, health = outbox.system(), outbox.health()
    settings = {**_of_application(outbox), **asked.settings}
    values = {"system": facts, "health": health, "settings": settings, "now": facts.read_at}
    rows = [(one.name, one.rows, one.bytes, one.index_bytes, one.dead_rows) for one in facts.tables]
    return View(values, {"system": facts, "health": health, "settings": settings}, COLUMNS, rows, "async-task check")


def _of_application(outbox: AsyncTask) -> dict[str, tuple[str, str]]:
    """By name, the value and where it comes from."""
    found = {
        "database": outbox.address, "table": outbox.table_name, "lease": f"{outbox.lease.total_seconds():g} s",
        "targets": ", ".join(outbox.target_names) or "none", "encryptors": ", ".join(outbox.encryptor_names),
        "keep": "its own, or those of its targets" if outbox.keeps else "everything",
    }  # fmt: skip
    return {name: (value, "the application") for name, value in found.items()}


PAGE = Page("System", "/system", "system.html", read)
