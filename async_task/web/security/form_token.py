"""The token of a form: it shows that a form was made for the browser and the person that send it.

A browser has a random secret in a cookie. The form holds an HMAC of the actor under that secret, so that no page shows
the secret, and a form that was made for one person is not accepted from the next one.
"""

import hmac
import re
import secrets
from urllib.parse import quote

from starlette.requests import Request

COOKIE, FIELD = "async_task_csrf", "csrf"
_SECRET = re.compile(r"[\w-]{43}", re.ASCII)


def secret_of(request: Request) -> str | None:
    """The secret of the browser; None if it has none, or one that is not ours."""
    secret = request.cookies.get(COOKIE, "")
    return secret if _SECRET.fullmatch(secret) else None


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def form_token(secret: str, actor: str) -> str:
    """What the field `FIELD` of a form holds."""
    return hmac.digest(secret.encode(), f"async-task form of {actor}".encode(), "sha256").hex()


def cookie_with(secret: str, request: Request) -> str:
    """The value of a `Set-Cookie` header."""
    return f"{COOKIE}={secret}; {cookie_attributes(request, same_site='Lax')}"


def cookie_attributes(request: Request, *, same_site: str) -> str:
    """Of a cookie that no script reads, and that goes to this dashboard only; over HTTPS, and then only so."""
    # Behind a proxy that ends TLS the scheme is http. Anyone may send the header: it only hardens the sender's cookie.
    schemes = (request.url.scheme, request.headers.get("x-forwarded-proto", "").strip().lower())
    secure = "; Secure" if "https" in schemes else ""
    path = quote(request.scope.get("root_path", "")) or "/"
    return f"Path={path}; HttpOnly; SameSite={same_site}{secure}"
