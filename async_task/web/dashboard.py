"""The ASGI application: which function answers which path."""

from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from async_task.web.forms.verbs import FORMS
from async_task.web.mount_path import MountPath, with_whole_path
from async_task.web.pages import audit, job, jobs, overview, schedules, stuck, system, targets, workers
from async_task.web.probes import healthz, metrics, readyz
from async_task.web.redirects import with_relative_redirects
from async_task.web.rendering.html import render
from async_task.web.security.access import Authorize
from async_task.web.security.guard import WENT_WRONG, Guard
from async_task.web.security.refusal import Refused, data_page, phrase_of, plain_page
from async_task.web.site import BUSY, Site, refusal_of
from async_task.web.view import Page

if TYPE_CHECKING:
    from async_task.application.app import AsyncTask

PAGES = (
    overview.PAGE, jobs.PAGE, stuck.PAGE, targets.PAGE, workers.PAGE, schedules.PAGE, system.PAGE, audit.PAGE, job.PAGE
)  # fmt: skip


TITLES = {
    400: "This cannot be done", 403: "Not allowed", 404: "Not found", 409: "Nothing was changed",
    500: "Something went wrong", 503: "Not available now",
}  # fmt: skip
"""The headings of refusals."""
WORDS = {404: "There is no such page.", 405: "This address takes a form of a page of the dashboard."}
"""What is said where Starlette's router finds nothing that answers."""
FORMS_BELOW = "/act/"


def dashboard(
    outbox: "AsyncTask",
    *,
    authorize: Authorize,
    read_only: bool = False,
    open_metrics: bool = False,
    base_path: str | None = None,
    settings: Mapping[str, tuple[str, str]] | None = None,
) -> ASGIApp:
    """The pages, verbs and probes of an application, to be mounted or served. See `AsyncTask.dashboard`."""
    site = Site(outbox, PAGES, settings or {})
    routes: list[BaseRoute] = [route for page in PAGES for route in _routes_of(site, page)]
    routes += [Route(f"{FORMS_BELOW}{name}", partial(_act, site, act), methods=["POST"]) for name, act in FORMS.items()]
    probes = {"/readyz": readyz, "/metrics": metrics}
    routes += [Route(path, partial(_probe, site, probe)) for path, probe in probes.items()]
    routes.append(Route("/healthz", _alive))
    routes.append(Mount("/static", StaticFiles(directory=str(files("async_task.web") / "static")), name="static"))
    inner = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
    app = with_relative_redirects(inner)
    guarded = Guard(
        app, authorize=authorize, read_only=read_only, open_metrics=open_metrics, forms=FORMS_BELOW, page=_refusal_page
    )  # fmt: skip
    return with_whole_path(guarded if base_path is None else MountPath(guarded, base_path))


def _routes_of(site: Site, page: Page) -> list[BaseRoute]:
    if "{" in page.path:  # its last part may hold a dot: the format is the end of that
        return [Route(page.path, partial(_page, site, page))]
    return [
        Route(page.path, partial(_page, site, page)),
        *(Route(f"{page.stem({})}.{kind}", partial(_page, site, page, kind=kind)) for kind in ("json", "csv")),
    ]


async def _page(site: Site, page: Page, request: Request, kind: str = "html") -> Response:
    try:
        response: Response = await site.run(partial(site.answer, page, request, kind))
        return response
    except Refused as refused:
        if refused.words != BUSY:
            raise
        return site.answer_while_busy(page, request, kind)


async def _act(site: Site, act: Any, request: Request) -> Response:
    try:
        response: Response = await act(site, request)
    except Exception as error:
        raise refusal_of(error, "Nothing was changed: ") or error from error
    return response


async def _alive(request: Request) -> Response:
    return healthz()  # also where no thread is free


async def _probe(site: Site, probe: Any, request: Request) -> Response:
    if probe is metrics and request.state.access.user is not None:
        raise Refused(403, "These are figures of the jobs of all.")
    response: Response = await site.run(partial(probe, site))
    return response


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refused = error if isinstance(error, Refused) else Refused(error.status_code, _words(error), error.headers)
    return _refusal_page(request, refused)


async def _failed(request: Request, error: Exception) -> Response:
    return _refusal_page(request, Refused(500, WENT_WRONG))


def _words(error: HTTPException) -> str:
    return WORDS.get(error.status_code, f"{error.detail}.")


def _refusal_page(request: Request, refused: Refused) -> Response:
    if (found := data_page(request, refused)) is not None:
        return found
    if "state" not in request.scope or "access" not in request.scope["state"]:
        return plain_page(request, refused)
    values = {
        "refused": refused, "title": TITLES.get(refused.status, phrase_of(refused.status)),
        "before": _page_before(request), "sought": request.query_params.get("q", ""),
    }  # fmt: skip
    html = render(request, "refused.html", PAGES, values)
    return HTMLResponse(html, refused.status, refused.headers)


def _page_before(request: Request) -> str | None:
    """The path below this dashboard, with its query, of the page that led to this one."""
    before, here = urlsplit(request.headers.get("referer", "")), request.url
    base = str(request.scope.get("root_path", ""))
    if before.netloc != here.netloc or not before.path.startswith(f"{base}/") or before.path == here.path:
        return None
    path = before.path.removeprefix(base)
    if path.startswith("//"):  # a browser would take it for another host
        return None
    return f"{path}?{before.query}" if before.query else path
