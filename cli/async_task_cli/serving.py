"""Serving an ASGI application on a port, until a signal ends it."""

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

from async_task_cli.faults import CONFIGURATION, UNREACHABLE, Refusal

SECONDS_TO_END = 5
"""For which running requests may go on after a signal."""
BACKLOG = 128


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. Raises Refusal: with status 69 if the port is in use, else with 78."""
    # uvicorn would log an error of its own and end with 1.
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        is_used = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "the port is in use" if is_used else getattr(error, "strerror", None) or "it is no host"
        raise Refusal(
            f"cannot listen on {host}, port {port}: {why}", UNREACHABLE if is_used else CONFIGURATION
        ) from error
    with listener:
        yield listener


def url_of(listener: socket.socket, path: str) -> str:
    """Where the application is, as a browser is told."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{path.rstrip('/')}"


def below(path: str, app: Any) -> Any:
    """The application, mounted under this path. The root leads there, and other paths have a 404."""
    from starlette.responses import PlainTextResponse, RedirectResponse, Response

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
        elif f"{scope['path']}/".startswith(f"{path}/"):
            await app({**scope, "root_path": path}, receive, send)
        else:
            answer: Response = PlainTextResponse(f"The dashboard is below {path}.\n", 404)
            if scope["path"] == "/":
                answer = RedirectResponse(f"{path}/")
            answer.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
            await answer(scope, receive, send)

    return app if path == "/" else mounted


def serve(app: Any, listener: socket.socket, *, access_log: bool, began: Callable[[], object]) -> None:
    """Serve until SIGTERM or SIGINT, whose handlers are called at the end. `began`: called when the first request can
    come."""
    import uvicorn

    # The address of a client, and who the user is, are not read from the headers that anybody can send.
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=access_log, proxy_headers=False, server_header=False,
        ws="none", timeout_graceful_shutdown=SECONDS_TO_END,
    )  # fmt: skip
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    began()
    uvicorn.Server(config).run(sockets=[listener])
