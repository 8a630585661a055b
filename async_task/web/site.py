"""What answers for a page: reads its view, and sends it as HTML, JSON or CSV."""

import datetime as dt
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, TypeVar

import anyio
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from async_task.database.driver_errors import is_unavailable
from async_task.errors import AsyncTaskError, InvalidState, ReadTimeout, SchemaMismatch, UnknownAttempt, UnknownTarget
from async_task.web.last_good import Answer, LastGood
from async_task.web.pages import job
from async_task.web.rendering.formats import as_csv, as_json
from async_task.web.rendering.html import begun, render
from async_task.web.requests.query import Query
from async_task.web.security.access import Access
from async_task.web.security.guard import access_of
from async_task.web.security.refusal import Refused
from async_task.web.view import Asked, Page, View

if TYPE_CHECKING:
    from async_task.application.app import AsyncTask


T = TypeVar("T")
WITHIN = 2.0
"""Seconds that a statement of a page may take."""
THREADS, CHANGES = 8, 4
"""How many pages, and how many changes, ask the database at once. The server ends what takes too long, but where it is
frozen, or the network is silent, a thread waits for longer; the application around this one has its own to do. A change
also waits for locks of others, for longer than a page, and must keep no page from being shown."""
PAUSE, PATIENCE = 0.02, 250
"""Seconds between two looks for a free thread, and how many looks."""
BUSY = "The database does not answer those who have asked before you."
CHANGING = "Other changes still wait for the database."


class Site:
    """The application behind the pages, and their last good answers."""

    def __init__(self, outbox: "AsyncTask", pages: tuple[Page, ...], settings: Mapping[str, tuple[str, str]]) -> None:
        self.outbox = outbox
        self.pages = pages
        self._settings = settings
        self._slots = threading.BoundedSemaphore(THREADS)
        self._slots_of_changes = threading.BoundedSemaphore(CHANGES)
        self.last_good = LastGood(is_passing)

    def answer(self, page: Page, request: Request, kind: str) -> Response:
        """The response of a page. `kind`: html, json or csv. Raises Refused."""
        parts = dict(request.path_params)
        if "key" in parts:
            parts, kind = self._without_format(parts)
        access, query = access_of(request), Query(request.query_params.multi_items())
        asked = self.asked(query, access, parts)
        refuse_others(access, page)
        found = self._view(page, asked, _question(page, query, access, parts))
        if kind != "html" and found.problem is not None:
            raise Refused(503, away_words(found.problem))
        return self._send(request, page, parts, found, query, kind)

    def answer_while_busy(self, page: Page, request: Request, kind: str) -> Response:
        """The last good answer of a page, without a thread for the database. Raises Refused where there is none."""
        access, query = access_of(request), Query(request.query_params.multi_items())
        busy = Refused(503, BUSY)
        parts = dict(request.path_params)
        found = self.last_good.kept(_question(page, query, access, parts), busy)
        if found is None or kind != "html":
            raise busy
        return self._send(request, page, parts, found, query, kind)

    async def run(self, work: Callable[[], T]) -> T:
        """Do work that reads the database, on a thread; of these there are THREADS at once. Raises Refused where none
        is free for long."""
        return await _when_free(self._slots, work, BUSY)

    async def change(self, work: Callable[[], T]) -> T:
        """Do work that changes the database, on a thread; of these there are CHANGES at once. Raises Refused where none
        is free for long."""
        return await _when_free(self._slots_of_changes, work, f"{CHANGING} Nothing was changed: try again.")

    def _without_format(self, parts: dict[str, str]) -> tuple[dict[str, str], str]:
        """The parts of the path of a job, and the format at the end of its key; that may belong to the key of a row."""
        stem, dot, kind = parts["key"].rpartition(".")
        if not dot or kind not in ("json", "csv") or self._is_row(parts):
            return parts, "html"
        return {**parts, "key": stem}, kind

    def _is_row(self, parts: Mapping[str, str]) -> bool:
        if parts["kind"] == job.ATTEMPTS:
            return False
        try:
            with self.outbox.reading(within=WITHIN):
                self.outbox.job(parts["kind"], parts["key"])
        except Exception as error:
            if isinstance(error, AsyncTaskError) or is_passing(error):
                return False
            raise
        return True

    def asked(self, query: Query, access: Access, parts: Mapping[str, str]) -> Asked:
        """One look at a page."""
        return Asked(self.outbox, query, access, self._recent, parts, self._settings)

    def _recent(self, figure: str, read: Callable[[], T], max_age: float) -> T:
        answer = self.last_good.read(("figure", figure), read, max_age)
        if answer.problem is not None:  # the whole page is then of one time
            raise answer.problem
        value: T = answer.value
        return value

    def _view(self, page: Page, asked: Asked, question: Hashable) -> Answer:
        try:
            return self.last_good.read(question, lambda: self._read(page, asked), keeps=_is_small)
        except Exception as error:
            told = refusal_of(error)
            if told is not None and isinstance(error, UnknownTarget) and asked.parts:  # the path names a model
                told = Refused(404, told.words)
            raise told or error from error

    def _read(self, page: Page, asked: Asked) -> View:
        with self.outbox.reading(within=WITHIN):
            return page.read(asked)

    def _send(
        self, request: Request, page: Page, parts: Mapping[str, str], found: Answer, query: Query, kind: str
    ) -> Response:
        view: View = found.value
        headers = {} if view.next is None else {"Link": f'<{query.link(after=view.next)}>; rel="next"'}
        if kind == "json":
            text = as_json(view.data).encode("utf-8", "backslashreplace")
            return Response(text, media_type="application/json", headers=headers)
        if kind == "csv":
            headers["Content-Disposition"] = f'attachment; filename="{page.name.lower() or "job"}.csv"'
            return Response(as_csv(view.columns, view.rows), media_type="text/csv", headers=headers)
        values = dict(view.values) | {
            "page": page, "title": view.title or page.name, "query": query, "command": view.command,
            "done": done(query), "problem": None if found.problem is None else away_words(found.problem),
            "read_here_at": found.read_at, "has_csv": bool(view.columns),
            "age": max(0, round((dt.datetime.now(dt.UTC) - found.read_at).total_seconds())),
            "stem": page.stem(parts),
        }  # fmt: skip
        return HTMLResponse(render(request, view.template or page.template, self.pages, values))


async def _when_free(slots: threading.BoundedSemaphore, work: Callable[[], T], busy: str) -> T:
    for _ in range(PATIENCE):
        if slots.acquire(blocking=False):
            try:
                return await run_in_threadpool(work)
            finally:
                slots.release()
        await anyio.sleep(PAUSE)
    raise Refused(503, busy)


STATUSES: dict[type[AsyncTaskError], int] = {UnknownAttempt: 404, SchemaMismatch: 503, InvalidState: 409}
"""The status of the response to these errors; others of the library have 400."""


def refusal_of(error: Exception, prefix: str = "") -> Refused | None:
    """What a person is told of an error of the library or the database, after `prefix`; None for a fault of ours."""
    if isinstance(error, Refused):
        return error
    if is_passing(error):
        return Refused(503, away_words(error))
    if not isinstance(error, AsyncTaskError):
        return None
    status = next((status for kind, status in STATUSES.items() if issubclass(type(error), kind)), 400)
    words = str(error) if prefix else begun(str(error))
    return Refused(status, f"{prefix}{words}{'' if words.endswith('.') else '.'}")


def _question(page: Page, query: Query, access: Access, parts: Mapping[str, str]) -> Hashable:
    return page.path, *parts.values(), query.items, access


def _is_small(view: View) -> bool:
    return not view.is_large


def is_passing(error: Exception) -> bool:
    """Whether the database is away, or too slow, or has no connection left."""
    return isinstance(error, (ReadTimeout, PoolTimeout)) or is_unavailable(error)


def away_words(error: Exception) -> str:
    """A sentence for a person: the database's own words without values."""
    if isinstance(error, Refused):
        return error.words.rstrip(".")
    if isinstance(error, ReadTimeout):
        return f"The database is too slow now: it has not answered within {WITHIN:g} s"
    # By its name: the words of a driver name the host and the port.
    return f"The database cannot be used now: {type(getattr(error, 'orig', None) or error).__name__}"


def refuse_others(access: Access, page: Page) -> None:
    """Raises Refused for a person who may see only their own jobs, but on the page of a job, which looks itself."""
    if access.user is not None and "{key" not in page.path:
        raise Refused(403, "You may see your own jobs only, each by its own link.")


DONE = {
    "retry": "It is due now: the next worker performs it.",
    "reschedule": "It is due at the new time.", "expire": "It has ended as expired.", "fail": "It has ended as failed.",
    "cancel": "It has ended as canceled.", "note": "The note is added.", "pause": "It is paused: nothing of it starts.",
    "submit": "It is submitted.", "submit_for_processing": "It is submitted.",
    "resume": "It is resumed.", "run": "It is enqueued.",
    "restart": "It begins again, now.",
}  # fmt: skip
"""What was done, by the word that the redirect after it carries: a link cannot make a page say anything else."""


def done(query: Query) -> str:
    """What was done by the form before this page; empty if nothing was."""
    return DONE.get(query.text("done") or "", "")
