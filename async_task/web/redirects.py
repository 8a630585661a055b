"""Redirects inside of the dashboard: relative, whatever host a request names and whoever ends TLS before it."""

from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def with_relative_redirects(app: ASGIApp) -> ASGIApp:
    """The application, of whose redirects only the path and the query are sent. Starlette's router makes those for a
    slash at the end of a path from the header `Host`, which a client chooses, and from the scheme that a proxy uses."""

    async def relative(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_relative(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "location" in headers:
                    headers["location"] = _path_in(headers["location"])
            await send(message)

        await app(scope, receive, send_relative)

    return relative


def to_same_address(request: Request) -> RedirectResponse:
    """A redirect to the same path and query, which a browser gets by GET."""
    # A relative address: a path that begins with // would lead to another site.
    return RedirectResponse(f"?{request.url.query}", 303)


def _path_in(address: str) -> str:
    parts = urlsplit(address)
    if not parts.netloc:
        return address
    path = f"/{parts.path.lstrip('/')}"  # a browser would take a second slash for another host
    return f"{path}?{parts.query}" if parts.query else path
