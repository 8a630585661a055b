"""`/system`: the tables and their sizes, the server, the settings of this process, and what `check` finds."""

from async_task.web.view import Asked, Page, View

COLUMNS = ("table", "rows", "bytes", "index_bytes", "dead_rows")


def read(asked: Asked) -> View:
    outbox = asked.outbox
    facts, health = outbox.system(), outbox.health()
    settings = {
        "Database": outbox.address, "Table": outbox.table_name, "Lease": f"{outbox.lease.total_seconds():g} s",
        "Targets": ", ".join(outbox.target_names) or "none", "Encryptors": ", ".join(outbox.encryptor_names),
        "Keeps": "as `keep=` says" if outbox.keeps else "everything",
    }  # fmt: skip
    values = {"system": facts, "health": health, "settings": settings, "now": facts.read_at}
    rows = [(one.name, one.rows, one.bytes, one.index_bytes, one.dead_rows) for one in facts.tables]
    return View(values, {"system": facts, "health": health, "settings": settings}, COLUMNS, rows, "async-task check")


PAGE = Page("System", "/system", "system.html", read)
