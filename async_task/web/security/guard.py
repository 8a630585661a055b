"""The guard of the dashboard: it decides about each request before the application sees it."""

import hmac
import logging
from collections.abc import Callable, Collection
from inspect import isawaitable
from typing import Protocol, runtime_checkable
from urllib.parse import parse_qsl, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from async_task.application.validation import flag
from async_task.error_text import describe_place, without_values
from async_task.errors import ConfigurationError
from async_task.web.redirects import to_same_address
from async_task.web.security.access import Access, Authorize, Right
from async_task.web.security.form_token import FIELD, cookie_with, form_token, new_secret, secret_of
from async_task.web.security.headers import secure
from async_task.web.security.refusal import Refused, phrase_of, plain_page

logger = logging.getLogger("async_task")
WENT_WRONG = "Something went wrong here; it is in the log."
STATIC, METRICS = "/static/", "/metrics"
OPEN_PATHS = ("/healthz", "/readyz", STATIC)
"""The probes of an orchestrator cannot log in, and these say no more than whether all is well."""
LONGEST_BODY = 256 * 1024
"""Bytes of a form: a note of 64 KB is three times as long when it is percent-encoded."""
MOST_FIELDS = 1_000
Page = Callable[[Request, Refused], Response]


@runtime_checkable
class Challenger(Protocol):
    """An `authorize` that has its own answer for a request without access, such as a login form."""

    async def challenge(self, request: Request) -> Response: ...


class Guard:
    """An ASGI application around another one. Each request that reaches that one is a GET or HEAD of somebody who may
    read, or a POST from this origin of somebody with a right; open paths are read by everybody. A POST to anything but
    `forms` leads whoever may read to the same address, without any effect: another tab has logged in meanwhile.

    `authorize`: see `Authorize`; what it raises is answered with 500, but an HTTPException of Starlette with its status
    and headers, for example a redirect to a login page. `read_only`: nobody has a right. `open_paths`: paths, and
    beginnings of paths that end with a slash. `forms`: the beginning of the paths that take a form.
    `open_metrics`: whether everybody reads /metrics, which names queues and targets. `page`: makes the response to a
    refused request.

    `request.state.access` is the Access of the person (on open paths none), and `request.state.csrf` is the value of
    the hidden field `csrf` of a form; `page` may be called before they are known. Every response has the headers of
    `headers.py`. An error of the application is logged by its place, without its message, and not raised. Raises
    ConfigurationError for an `authorize` that cannot be called.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authorize: Authorize,
        read_only: bool = False,
        open_paths: Collection[str] = OPEN_PATHS,
        open_metrics: bool = False,
        forms: str = "/",
        page: Page = plain_page,
    ) -> None:
        _check_authorize(authorize)
        self._app, self._authorize, self._page = app, authorize, page
        self._forms = forms
        self._is_read_only = flag(read_only, "read_only")
        self._open_paths = (*open_paths, *([METRICS] if open_metrics else []))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, _SecureSend(send, is_static=_route_path(scope).startswith(STATIC)))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: "_SecureSend") -> None:
        request = Request(scope, receive)
        try:
            is_open = self._is_open(request)
            access, token = (Access.none(), "") if is_open else await self._admit(request, send)
            # Copies: an application around this one has a state of its own in the same place.
            scope = {**scope, "state": {**scope.get("state", {}), "access": access, "csrf": token}}
            app = self._app if is_open else await self._app_for(Request(scope, receive), access)
            await app(scope, receive, send)
        except ClientDisconnect:
            pass
        except Refused as refused:
            await self._send_page(request, refused, send)
        except Exception as error:
            _log(request, error)
            await self._send_page(request, Refused(500, WENT_WRONG), send)

    def _is_open(self, request: Request) -> bool:
        path = _route_path(request.scope)
        is_open = any(path.startswith(one) if one.endswith("/") else path == one for one in self._open_paths)
        methods = ("GET", "HEAD") if is_open else ("GET", "HEAD", "POST")
        if request.method not in methods:
            raise Refused(405, "This method is not allowed here.", {"Allow": ", ".join(methods)})
        return is_open

    async def _admit(self, request: Request, send: "_SecureSend") -> tuple[Access, str]:
        """The access of the person, and the token of their forms. Raises Refused."""
        if request.method == "POST":
            _refuse_other_origins(request)
        access = await self._access_of(request)
        secret = secret_of(request)
        if secret is None:
            secret = new_secret()
            send.cookie = cookie_with(secret, request)
        return access, form_token(secret, access.actor)

    async def _access_of(self, request: Request) -> Access:
        try:
            found = await run_in_threadpool(self._authorize, request)
            access = await found if isawaitable(found) else found
        except Refused:
            raise
        except HTTPException as error:
            raise Refused(error.status_code, f"{phrase_of(error.status_code)}.", error.headers) from error
        if not isinstance(access, Access):
            logger.error("authorize returned a %s and not an Access: the request is refused", type(access).__name__)
            return Access.none()
        return access.without_rights() if self._is_read_only else access

    async def _app_for(self, request: Request, access: Access) -> ASGIApp:
        """What answers this person. Raises Refused."""
        if not access.reads:
            return await self._challenge(request)
        if request.method == "POST" and not _route_path(request.scope).startswith(self._forms):
            return to_same_address(request)
        if request.method == "POST" and not access.rights:
            raise Refused(403, "You may read here, and change nothing.")
        return self._app

    async def _challenge(self, request: Request) -> ASGIApp:
        if isinstance(self._authorize, Challenger):
            return await self._authorize.challenge(request)
        raise Refused(403, "You may not see this page.")

    async def _send_page(self, request: Request, refused: Refused, send: "_SecureSend") -> None:
        if not send.has_started:
            await self._page(request, refused)(request.scope, request.receive, send)


class _SecureSend:
    """Sends a response with the headers of `headers.py`, and with `cookie` if there is one."""

    def __init__(self, send: Send, *, is_static: bool) -> None:
        self._send = send
        self._is_static = is_static
        self.has_started = False
        self.cookie: str | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            secure(headers, is_static=self._is_static and message["status"] in (200, 206, 304))
            if self.cookie is not None:
                headers.append("Set-Cookie", self.cookie)
        await self._send(message)


def access_of(request: Request) -> Access:
    """The access of the person behind a request that the guard has let through."""
    access = request.state.access
    assert isinstance(access, Access)
    return access


def require(request: Request, right: Right) -> Access:
    """The access of the person, who has this right. Raises Refused with status 403 for anybody else."""
    access = access_of(request)
    if not access.may(right):
        raise Refused(403, f"You do not have the right to do this ({right}).")
    return access


async def form_of(request: Request) -> FormData:
    """The fields of the form that was sent, without the token, which was right. Raises Refused."""
    if request.method != "POST":
        raise Refused(405, "A form is sent by POST.", {"Allow": "POST"})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refused(415, "The form has to be sent as application/x-www-form-urlencoded.")
    fields = _fields_in(await _body_of(request))
    tokens = [value for name, value in fields if name == FIELD]
    if len(tokens) != 1 or not hmac.compare_digest(tokens[0].encode(), str(request.state.csrf).encode()):
        raise Refused(403, "This form is too old, or was made for somebody else: load the page again.")
    return FormData([(name, value) for name, value in fields if name != FIELD])


async def _body_of(request: Request) -> bytes:
    """The body of the request, of which no more than LONGEST_BODY is ever in memory."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_BODY:
            raise Refused(413, f"The form is longer than {LONGEST_BODY // 1024} KB.")
    return bytes(body)


def _fields_in(body: bytes) -> list[tuple[str, str]]:
    try:
        fields = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS, encoding="utf-8", errors="strict"
        )
    except ValueError:
        raise Refused(400, "The form cannot be read.") from None
    if any("\0" in part for field in fields for part in field):  # no database stores it
        raise Refused(400, "The form holds a character that cannot be stored.")
    return fields


def _refuse_other_origins(request: Request) -> None:
    """Raises Refused unless a page of this origin has sent the request. Old browsers, and all others over plain HTTP,
    send no `Sec-Fetch-Site`."""
    sites, origins = request.headers.getlist("sec-fetch-site"), request.headers.getlist("origin")
    is_ours = sites == ["same-origin"] if sites else _hosts_of(origins) == request.headers.getlist("host") != []
    if not is_ours:
        raise Refused(403, "This was not sent by a page of this dashboard.")


def _hosts_of(origins: list[str]) -> list[str | None]:
    try:
        found = [urlsplit(one) for one in origins]
    except ValueError:
        return [None]
    return [one.netloc or None if one.scheme in ("http", "https") else None for one in found]


def _route_path(scope: Scope) -> str:
    """The path below the one under which the application is mounted, as Starlette's router finds it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and (path + "/").startswith(root + "/") else path


def _check_authorize(authorize: object) -> None:
    if not callable(authorize):
        raise ConfigurationError(f"authorize takes a function, called as authorize(request), not {authorize!r}")


def _log(request: Request, error: Exception) -> None:
    # By its place: a message, or a variable of a frame, may hold arguments of a call. The query may hold them too.
    failure = describe_place(error)
    logger.error(
        "the dashboard could not answer %s %r: %s", request.method, request.scope["path"], failure.summary,
        exc_info=without_values(error, failure),
    )  # fmt: skip
