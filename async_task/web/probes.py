"""`/healthz`, `/readyz` and `/metrics`: for programs that watch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from async_task.web.site import WITHIN, Site, refusal_of

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
WAITING = {"due": "could be started now", "waiting": "are due later", "claimed": "are being performed"}
Sample = tuple[Mapping[str, str], float | None]


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
            return PlainTextResponse("\n".join(_lines(site)) + "\n", media_type=PROMETHEUS)
    except Exception as error:
        if (told := refusal_of(error)) is None:
            raise
        return PlainTextResponse(f"{told.words}\n", told.status)


def _lines(site: Site) -> Iterator[str]:
    attempts = site.outbox.attempts
    depths, rates, oldest, workers = attempts.depths(), attempts.rates(), attempts.oldest_due(), site.outbox.workers()
    living = [one for one in workers if not one.is_dead]
    yield from _gauge(
        "oldest_due_seconds", "For how long the oldest attempt has been due.", [({}, _seconds(oldest.age))]
    )
    for name, words in WAITING.items():
        samples: list[Sample] = [({"queue": one.queue}, float(getattr(one, name))) for one in depths.by_queue]
        yield from _gauge(f"attempts_{name}", f"Attempts that {words}, by queue; a lower bound past 10,000.", samples)
    ages: list[Sample] = [({"queue": one.queue}, _seconds(one.oldest_due)) for one in depths.by_queue]
    yield from _gauge("queue_oldest_due_seconds", "The same age by queue.", ages)
    for name in ("ended", "failed"):
        by_target: list[Sample] = [({"target": one.target}, getattr(one.minute, name)) for one in rates.by_target]
        yield from _gauge(
            f"attempts_{name}_per_second", f"Attempts that {name} a second, in the last minute.", by_target
        )
    kinds = sorted({one.kind or "call" for one in living})
    counted: list[Sample] = [
        ({"kind": kind}, float(sum((one.kind or "call") == kind for one in living))) for kind in kinds
    ]
    yield from _gauge("processes", "Processes with a heartbeat, by kind.", counted)


def _gauge(name: str, words: str, samples: Sequence[Sample]) -> Iterator[str]:
    yield f"# HELP async_task_{name} {words}"
    yield f"# TYPE async_task_{name} gauge"
    for labels, value in samples:
        if value is not None:
            named = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            yield f"async_task_{name}{f'{{{named}}}' if named else ''} {value:g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _seconds(length: Any) -> float | None:
    return None if length is None else float(length.total_seconds())
