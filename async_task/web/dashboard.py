"""The ASGI application: which function answers which path."""

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from async_task.web.access import Authorize
from async_task.web.guard import Guard, access_of

if TYPE_CHECKING:
    from async_task.application.app import AsyncTask


def dashboard(
    outbox: "AsyncTask", *, authorize: Authorize, read_only: bool = False, open_metrics: bool = False
) -> ASGIApp:
    """The pages of an application, to be mounted or served. See `AsyncTask.dashboard`."""

    async def home(request: Request) -> Response:
        return PlainTextResponse(f"{outbox.table_name}: {access_of(request)}")

    app = Starlette(routes=[Route("/", home)])
    return Guard(app, authorize=authorize, read_only=read_only, open_metrics=open_metrics)
