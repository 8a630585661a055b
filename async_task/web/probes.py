"""`/healthz`, `/readyz` and `/metrics`: for programs that watch."""

from starlette.responses import JSONResponse, PlainTextResponse, Response

from async_task.reading.metrics import prometheus_text
from async_task.web.site import WITHIN, Site, refusal_of

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def healthz() -> Response:
    """Whether this process answers: it asks no database, whose absence a restart would not mend."""
    return JSONResponse({"status": "ok"})


def readyz(site: Site) -> Response:
    """Whether the pages can show anything: 503 while the database is away, or its tables do not fit."""
    check = site.outbox.health().check("database")
    is_ready = check is not None and check.state == "ok"
    return JSONResponse({"status": "ok" if is_ready else "unavailable"}, 200 if is_ready else 503)


def metrics(site: Site) -> Response:
    """Gauges in the text format of Prometheus, from the same bounded queries as the overview."""
    try:
        with site.outbox.reading(within=WITHIN):
            return PlainTextResponse(prometheus_text(site.outbox.gauges()), media_type=PROMETHEUS)
    except Exception as error:
        if (told := refusal_of(error)) is None:
            raise
        return PlainTextResponse(f"{told.words}\n", told.status)
