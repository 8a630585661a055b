"""How tests look at the dashboard and send its forms, as a browser would."""

import html
import re
from typing import Any
from urllib.parse import unquote

from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from async_task import Access, AsyncTask
from async_task.web.dashboard import dashboard

ORIGIN = "http://dashboard.test"
OURS = {"Sec-Fetch-Site": "same-origin"}
PAGES = ("/", "/jobs", "/stuck", "/targets", "/workers", "/schedules", "/system", "/audit")
STEMS = {"/": "/overview"}
"""What stands before .json and .csv."""


def browser(app: AsyncTask, access: Access | None = None, **settings: Any) -> TestClient:
    """A browser of somebody with this access, by default of Anna, who may do everything."""
    given = access or Access.full("anna@web")
    made = dashboard(app, authorize=lambda request: given, **settings)
    return TestClient(_decoded_once(made), ORIGIN, follow_redirects=False, raise_server_exceptions=True)


def _decoded_once(app: ASGIApp) -> ASGIApp:
    """The application, to which a path is given as a server does; Starlette's client decodes it twice."""

    async def decoded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": unquote(scope["raw_path"].decode("ascii"))}
        await app(scope, receive, send)

    return decoded


def token_in(client: TestClient, path: str = "/targets") -> str:
    """The token of the forms of a page; empty where it has none."""
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', client.get(path).text)
    return "" if found is None else found[1]


def send(client: TestClient, action: str, token: str, **fields: Any) -> Any:
    """Send a form."""
    return client.post(f"/act/{action}", data={"csrf": token, **fields}, headers=OURS)


def words_of(page: Any) -> str:
    """What a person reads of a response, on one line."""
    text = re.sub(r"<(script|style|title)\b.*?</\1>", " ", page.text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())
