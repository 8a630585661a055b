"""Who the person behind a request is: the ways in which `async-task web` finds out. Each one is an `authorize`."""

import base64
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Collection, Iterable, Mapping

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from async_task.errors import ConfigurationError
from async_task.schema.audit import check_actor
from async_task.web.redirects import to_same_address
from async_task.web.security.access import Access
from async_task.web.security.form_token import FIELD, cookie_attributes
from async_task.web.security.guard import form_of
from async_task.web.security.refusal import Refused
from async_task.web.security.users import is_right, is_same, unknown_password

LOGIN_COOKIE, LOGIN_SECONDS = "async_task_login", 12 * 3600
TOKEN_ACTOR, SHORTEST_TOKEN = "token", 20
LOOPBACK = ("127.0.0.0/8", "::1")
_OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_OF_A_PROXY = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip")
_BEGIN_OF_A_PROXYS = "x-forwarded-"


class Anybody:
    """Everybody who reaches the port, as one actor."""

    def __init__(self, actor: str) -> None:
        self._access = Access.full(actor)

    def __call__(self, request: Request) -> Access:
        return self._access


class Loopback(Anybody):
    """Everybody on this machine, as one actor, under the names localhost, 127.0.0.1 and [::1]: the page of another site
    may have a name that leads here (DNS rebinding). What a proxy passes on is not of this machine."""

    def __call__(self, request: Request) -> Access:
        hosts = request.headers.getlist("host")
        is_own = len(hosts) == 1 and _OWN_HOST.fullmatch(hosts[0]) is not None
        is_passed_on = any(one in _OF_A_PROXY or one.startswith(_BEGIN_OF_A_PROXYS) for one in request.headers)
        return super().__call__(request) if is_own and not is_passed_on else Access.none()

    async def challenge(self, request: Request) -> Response:
        raise Refused(403, "Without --auth this is shown to this machine only: as http://127.0.0.1, and by no proxy.")


class Basic:
    """Users with passwords, by HTTP Basic authentication. `users`: the password of each, or its hash (`users.py`).
    `readers`: those who only read. Raises ConfigurationError."""

    def __init__(self, users: Mapping[str, str], readers: Collection[str] = ()) -> None:
        if not users:
            raise ConfigurationError("there is no user: name at least one, as name:password")
        if unknown := sorted({*readers} - {*users}):
            raise ConfigurationError(f"{unknown[0]!r}, who should only read, is none of the users {sorted(users)}")
        self._users = dict(users)
        self._access = {name: _access_of(name, readers) for name in users}
        self._nobodys_password = unknown_password([*users.values()])
        self._key = secrets.token_bytes(32)
        self._verified: dict[str, bytes] = {}

    def __call__(self, request: Request) -> Access:
        name, password = _name_and_password(request)
        return self._access[name] if self._is_user(name, password) else Access.none()

    async def challenge(self, request: Request) -> Response:
        header = {"WWW-Authenticate": 'Basic realm="async-task", charset="UTF-8"'}
        raise Refused(401, "Log in with your name and password.", header)

    def _is_user(self, name: str, password: str) -> bool:
        # A hash is slow to check, and each request brings the password: of one that was right, the MAC is kept.
        mac = hmac.digest(self._key, password.encode(), "sha256")
        if hmac.compare_digest(self._verified.get(name, b""), mac):
            return True
        # An unknown name takes as long as a known one.
        is_user = is_right(password, self._users.get(name, self._nobodys_password))
        if is_user:
            self._verified[name] = mac
        return is_user


class Token:
    """One secret token: as `Authorization: Bearer`, or sent once by a login form, which sets a cookie. The cookie does
    not hold the token, and is valid for 12 hours. The actor is `token`. Raises ConfigurationError for a short token."""

    def __init__(self, token: str, readers: Collection[str] = ()) -> None:
        if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()):
            raise ConfigurationError(f"a token has at least {SHORTEST_TOKEN} characters, which are printable ASCII")
        self._token = token
        self._access = _access_of(TOKEN_ACTOR, readers)

    def __call__(self, request: Request) -> Access:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        has_token = scheme.lower() == "bearer" and is_same(given.strip(), self._token)
        return self._access if has_token or self._is_login(request.cookies.get(LOGIN_COOKIE, "")) else Access.none()

    async def challenge(self, request: Request) -> Response:
        """The login form, also after a wrong token; after the right one the way back to the page, with the cookie.
        Raises Refused."""
        if request.method == "POST":
            return await self._log_in(request)
        if "authorization" in request.headers or request.scope["path"].endswith((".json", ".csv")):
            raise _refused_token()
        return _login_form(str(request.state.csrf))

    async def _log_in(self, request: Request) -> Response:
        form = await form_of(request)
        if not is_same(str(form.get("token", "")), self._token):
            return _login_form(str(request.state.csrf), "This is not the token: try again.")
        answer = to_same_address(request)
        answer.headers["Set-Cookie"] = self._cookie_for(request)
        return answer

    def _cookie_for(self, request: Request) -> str:
        until = str(int(time.time()) + LOGIN_SECONDS)
        # Not Strict, with which a link in a message leads to the login form. A GET changes nothing.
        attributes = cookie_attributes(request, same_site="Lax")
        return f"{LOGIN_COOKIE}={until}.{self._mac(until)}; Max-Age={LOGIN_SECONDS}; {attributes}"

    def _is_login(self, cookie: str) -> bool:
        until, _, mac = cookie.partition(".")
        is_ours = hmac.compare_digest(mac.encode(), self._mac(until).encode())
        return is_ours and int(until) > time.time()

    def _mac(self, until: str) -> str:
        return hmac.digest(self._token.encode(), f"async-task login until {until}".encode(), "sha256").hex()


class ProxyHeader:
    """The user whom a proxy names in the header `name`. Only `proxies` are believed: addresses, or networks such as
    10.0.0.0/8. Raises ConfigurationError."""

    def __init__(self, name: str, proxies: Iterable[str] = LOOPBACK, readers: Collection[str] = ()) -> None:
        if not re.fullmatch(r"[A-Za-z0-9-]+", name):
            raise ConfigurationError(f"the name of a header has letters, digits and hyphens, like X-User, not {name!r}")
        self._name = name
        self._proxies = [_network(one) for one in proxies]
        self._readers = frozenset(readers)

    def __call__(self, request: Request) -> Access:
        values = request.headers.getlist(self._name)
        # Of two values, one may be the client's own; a proxy that adds its own to it writes a comma between them.
        if len(values) != 1 or "," in values[0] or not self._is_from_proxy(request):
            return Access.none()
        try:
            return _access_of(values[0].encode("latin-1").decode().strip(), self._readers)
        except (ConfigurationError, UnicodeError):
            return Access.none()

    def _is_from_proxy(self, request: Request) -> bool:
        try:
            address = ipaddress.ip_address(request.client.host if request.client else "")
        except ValueError:  # a socket in the file system has no address
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._proxies)


def _access_of(actor: str, readers: Collection[str]) -> Access:
    check_actor(actor)
    # Some identity providers do not tell upper case from lower.
    is_reader = actor.casefold() in {one.casefold() for one in readers}
    return Access.read(actor) if is_reader else Access.full(actor)


def _name_and_password(request: Request) -> tuple[str, str]:
    """Both empty if the request has none."""
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode() if scheme.lower() == "basic" else ""
    except ValueError:
        text = ""
    name, _, password = text.partition(":")
    return name, password


def _refused_token() -> Refused:
    return Refused(401, "There is no valid token in this request.", {"WWW-Authenticate": "Bearer"})


def _login_form(csrf: str, problem: str = "") -> Response:
    said = f'<p role="alert">{problem}</p>' if problem else ""
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Log in</title>'
        f'<h1>Log in</h1>{said}<form method="post"><input type="hidden" name="{FIELD}" value="{csrf}">'
        '<p><label>Token <input type="password" name="token" autocomplete="current-password" required>'
        "</label><p><button>Log in</button></form></html>"
    )
    return HTMLResponse(text, 401, {"WWW-Authenticate": "Bearer"})


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigurationError(f"a proxy is an address or a network such as 10.0.0.0/8, not {text!r}") from error
