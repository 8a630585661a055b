"""The guard around a small application: whom it lets through, what it refuses, and what every response has."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from async_task import Access, ConfigurationError, Right
from async_task.web.security.guard import LONGEST_BODY, Guard, access_of, form_of, require
from async_task.web.security.headers import CONTENT_SECURITY_POLICY, HEADERS

ORIGIN = "http://dashboard.test"
OURS = {"Sec-Fetch-Site": "same-origin"}
EVERY = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PEOPLE = {
    "anna": Access.full("anna"),
    "bob": Access.read("bob"),
    "eve": Access.of("eve", {"note"}),
}
CANARY = "can" + "ary-7355608"  # in two parts, since a traceback shows lines of this file
changes: list[dict[str, Any]] = []


def authorize(request: Request) -> Access:
    return PEOPLE.get(request.headers.get("x-person", ""), Access.none())


async def home(request: Request) -> Response:
    return PlainTextResponse(f"{access_of(request).actor} {request.state.csrf}")


async def act(request: Request) -> Response:
    access = require(request, Right.RETRY)
    form = await form_of(request)
    changes.append({"actor": access.actor, **form})
    return RedirectResponse("./", 303)


async def careless(request: Request) -> Response:
    changes.append({})
    return PlainTextResponse("changed")


async def plain(request: Request) -> Response:
    return PlainTextResponse("ok", headers={"Cache-Control": "public", "X-Frame-Options": "ALLOWALL"})


async def broken(request: Request) -> Response:
    raise ValueError(CANARY)


def inner() -> Starlette:
    plain_paths = ["/healthz", "/metrics", "/static/site.css"]
    return Starlette(
        routes=[
            Route("/", home),
            Route("/act", act, methods=EVERY),
            Route("/careless", careless, methods=EVERY),
            Route("/broken", broken),
            *(Route(path, plain, methods=EVERY) for path in plain_paths),
        ]
    )


def browser(guarded: Any, person: str | None = "anna", **settings: Any) -> TestClient:
    headers = {} if person is None else {"x-person": person}
    return TestClient(guarded, ORIGIN, headers=headers, follow_redirects=False, **settings)


@pytest.fixture(autouse=True)
def _without_changes() -> None:
    changes.clear()


def token_of(client: TestClient, path: str = "/") -> str:
    return client.get(path).text.split()[1]


def test_a_form_of_our_own_page_changes_something_once_its_person_may() -> None:
    client = browser(Guard(inner(), authorize=authorize))
    token = token_of(client)
    assert re.fullmatch("[0-9a-f]{64}", token)
    note = "ä" * 32_768  # 64 KB, of which each byte is sent as three
    said = client.post("/act", data={"csrf": token, "note": note, "empty": ""}, headers=OURS)
    assert (said.status_code, said.headers["location"]) == (303, "./")
    by_origin = client.post("/act", data={"csrf": token}, headers={"Origin": ORIGIN})
    assert by_origin.status_code == 303  # a browser without Sec-Fetch-Site
    assert changes == [{"actor": "anna", "note": note, "empty": ""}, {"actor": "anna"}]
    assert token_of(client) == token  # a second tab does not invalidate the first one


def posted(**changed: Any) -> dict[str, Any]:
    """A request that would be answered with 303, with some of its parts changed; `token` stands for the right one."""
    return {"method": "POST", "url": "/act", "headers": {**FORM, **OURS}, "content": "csrf=token"} | changed


REFUSED: dict[str, tuple[int, str | None, dict[str, Any]]] = {
    "nobody reads": (403, None, {"method": "GET", "url": "/"}),
    "nobody reads metrics": (403, None, {"method": "GET", "url": "/metrics"}),
    "nobody reads beside a static file": (403, None, {"method": "GET", "url": "/static"}),
    "nobody learns which pages there are": (403, None, {"method": "GET", "url": "/no-such-page"}),
    "nobody changes": (403, None, posted()),
    "a reader changes": (403, "bob", posted()),
    "a person with another right changes": (403, "eve", posted()),
    "a reader changes where nobody asks for a right": (403, "bob", posted(url="/careless")),
    "another method where nobody asks": (405, "anna", posted(method="PUT", url="/careless")),
    "a change by GET": (405, "anna", {"method": "GET", "url": "/act?csrf=token"}),
    "another method": (405, "anna", posted(method="PUT")),
    "deletion": (405, "anna", {"method": "DELETE", "url": "/act", "headers": OURS}),
    "a preflight": (405, "anna", {"method": "OPTIONS", "url": "/act", "headers": {"Origin": "http://evil.test"}}),
    "a change of an open path": (405, "anna", posted(url="/healthz")),
    "another site": (403, "anna", posted(headers={**FORM, "Sec-Fetch-Site": "cross-site", "Origin": ORIGIN})),
    "a sister site": (403, "anna", posted(headers={**FORM, "Sec-Fetch-Site": "same-site"})),
    "an address that was typed": (403, "anna", posted(headers={**FORM, "Sec-Fetch-Site": "none"})),
    "two sites": (403, "anna", posted(headers=[*FORM.items(), *OURS.items(), ("Sec-Fetch-Site", "cross-site")])),
    "another origin": (403, "anna", posted(headers={**FORM, "Origin": "http://evil.test"})),
    "an origin with a user": (403, "anna", posted(headers={**FORM, "Origin": "http://dashboard.test@evil.test"})),
    "another port": (403, "anna", posted(headers={**FORM, "Origin": f"{ORIGIN}:8080"})),
    "another scheme": (403, "anna", posted(headers={**FORM, "Origin": "ftp://dashboard.test"})),
    "a hidden origin": (403, "anna", posted(headers={**FORM, "Origin": "null"})),
    "a hidden origin of an empty host": (403, "anna", posted(headers={**FORM, "Origin": "null", "Host": ""})),
    "a broken origin": (403, "anna", posted(headers={**FORM, "Origin": "http://["})),
    "no origin": (403, "anna", posted(headers=FORM)),
    "no token": (403, "anna", posted(content="note=x")),
    "an empty token": (403, "anna", posted(content="csrf=")),
    "a wrong token": (403, "anna", posted(content=f"csrf={'0' * 64}")),
    "a token that is not ASCII": (403, "anna", posted(content="csrf=%C3%A4")),
    "two tokens": (403, "anna", posted(content="csrf=token&csrf=token")),
    "the secret as token": (403, "anna", posted(content="csrf=secret")),
    "the token of another browser": (403, "anna", posted(cookies={"async_task_csrf": "x" * 43})),
    "a form without a cookie": (403, "anna", posted(cookies={"async_task_csrf": ""})),
    "JSON": (415, "anna", posted(headers={**OURS, "Content-Type": "application/json"}, content='{"csrf": "token"}')),
    "plain text": (415, "anna", posted(headers={**OURS, "Content-Type": "text/plain"})),
    "several parts": (415, "anna", posted(headers=OURS, content=None, files={"csrf": (None, "token")})),
    "no type": (415, "anna", posted(headers=OURS)),
    "a long body": (413, "anna", posted(content=f"csrf=token&note={'x' * LONGEST_BODY}")),
    "a body without length": (413, "anna", posted(content=(b"x" * 65_536 for _ in range(5)))),
    "many fields": (400, "anna", posted(content="csrf=token" + "&a=" * 1_000)),
    "broken UTF-8": (400, "anna", posted(content="csrf=token&note=%FF")),
    "bytes": (400, "anna", posted(content=b"csrf=token&note=\xc3\xa4")),
    "NUL": (400, "anna", posted(content="csrf=token&note=%00")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_is_refused_and_changes_nothing(case: str) -> None:
    status, person, request = REFUSED[case]
    client = browser(Guard(inner(), authorize=authorize), person)
    request = {**request}
    token = token_of(client) if person is not None else "0" * 64
    secret = client.cookies.get("async_task_csrf", "")
    if isinstance(request.get("content"), str):
        request["content"] = request["content"].replace("=token", f"={token}").replace("=secret", f"={secret}")
    if "cookies" in request:
        client.cookies.clear()
        client.cookies.update(request.pop("cookies"))
    said = client.request(**request)
    assert (said.status_code, changes) == (status, [])
    assert said.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


def test_without_a_host_no_origin_is_ours() -> None:
    async def without_host(scope: Any, receive: Any, send: Any) -> None:
        headers = [pair for pair in scope["headers"] if pair[0] != b"host"]
        await Guard(inner(), authorize=authorize)({**scope, "headers": headers}, receive, send)

    assert (browser(without_host).post("/careless").status_code, changes) == (403, [])


def test_a_form_that_was_made_for_one_person_is_refused_from_the_next_one_in_the_same_browser() -> None:
    client = browser(Guard(inner(), authorize=lambda request: Access.full(request.headers["x-person"])))
    token = token_of(client)
    said = client.post("/act", data={"csrf": token}, headers={**OURS, "x-person": "carl"})
    assert (said.status_code, changes) == (403, [])


def test_read_only_takes_every_right_away() -> None:
    client = browser(Guard(inner(), authorize=authorize, read_only=True))
    token = token_of(client)
    said = client.post("/act", data={"csrf": token}, headers=OURS)
    assert (said.status_code, changes) == (403, [])


@pytest.mark.parametrize(
    ("path", "status", "stored"),
    [
        ("/", 200, "no-store"),
        ("/broken", 500, "no-store"),
        ("/no-such-page", 404, "no-store"),
        ("/healthz", 200, "no-store"),
        ("/static/site.css", 200, "public"),
        ("/static/missing.css", 404, "no-store"),
    ],
)
def test_every_response_has_our_headers_in_place_of_others(path: str, status: int, stored: str) -> None:
    said = browser(Guard(inner(), authorize=authorize)).get(path)
    assert said.status_code == status
    assert {name: said.headers.get_list(name) for name in HEADERS} == {name: [one] for name, one in HEADERS.items()}
    assert said.headers["cache-control"] == stored


def test_open_paths_are_read_by_everybody_and_without_asking() -> None:
    def never(request: Request) -> Access:
        raise AssertionError(request.url)

    client = browser(Guard(inner(), authorize=never, open_metrics=True), None)
    for path in ("/healthz", "/metrics", "/static/site.css"):
        said = client.get(path)
        assert (said.status_code, "set-cookie" in said.headers) == (200, False)
    asked = browser(Guard(inner(), authorize=authorize, open_paths=()), None)
    assert [asked.get(path).status_code for path in ("/healthz", "/static/site.css")] == [403, 403]


def test_an_error_of_the_application_or_of_authorize_is_logged_without_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def raising(request: Request) -> Access:
        raise ValueError(CANARY)

    in_page = browser(Guard(inner(), authorize=authorize)).get(f"/broken?secret={CANARY}")
    in_authorize = browser(Guard(inner(), authorize=raising)).get("/")
    in_app = browser(Guard(bare_and_broken, authorize=authorize)).get("/x%0Ay.json")
    assert [one.status_code for one in (in_page, in_authorize, in_app)] == [500, 500, 500]
    assert in_app.json() == {"error": "Something went wrong here; it is in the log."}
    assert "could not answer GET '/broken': ValueError in broken, test_guard.py" in caplog.text
    assert "ValueError in test_an_error_of" in caplog.text
    assert "GET '/x\\ny.json': KeyError" in caplog.text
    for text in (caplog.text, in_page.text, in_authorize.text, in_app.text):
        assert CANARY not in text


async def bare_and_broken(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError(CANARY)


def authorize_with_none(request: Request) -> Any:
    return None


def authorize_with_true(request: Request) -> Any:
    return True


@pytest.mark.parametrize("wrong", [authorize_with_none, authorize_with_true])
def test_what_is_not_access_is_refused_and_logged(
    wrong: Callable[[Request], Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert browser(Guard(inner(), authorize=wrong)).get("/").status_code == 403
    assert "authorize returned a" in caplog.text


def test_authorize_may_be_a_coroutine_function_and_may_send_a_person_to_a_login_page() -> None:
    async def later(request: Request) -> Access:
        await asyncio.sleep(0)
        if "x-person" not in request.headers:
            raise HTTPException(303, "canary", headers={"Location": "/login"})
        return authorize(request)

    guarded = Guard(inner(), authorize=later)
    assert browser(guarded).get("/").text.startswith("anna ")
    sent = browser(guarded, None).get("/")
    assert (sent.status_code, sent.headers["location"], "canary" in sent.text) == (303, "/login", False)
    with pytest.raises(ConfigurationError, match="authorize takes a function"):
        Guard(inner(), authorize=None)  # type: ignore[arg-type]


def test_the_cookie_is_for_this_dashboard_only_and_for_no_script() -> None:
    mounted = Starlette(routes=[Mount("/admin/jobs", Guard(inner(), authorize=authorize))])
    plain_http, https = (
        browser(mounted).get("/admin/jobs/", headers=more) for more in ({}, {"X-Forwarded-Proto": "https"})
    )
    cookie = re.sub("=[^;]+", "=SECRET", plain_http.headers["set-cookie"], count=1)
    assert cookie == "async_task_csrf=SECRET; Path=/admin/jobs; HttpOnly; SameSite=Lax"
    assert https.headers["set-cookie"].endswith("; SameSite=Lax; Secure")
    client = browser(mounted)
    token = token_of(client, "/admin/jobs/")
    assert client.post("/admin/jobs/act", data={"csrf": token}, headers=OURS).status_code == 303
    assert browser(mounted, None).get("/admin/jobs/healthz").status_code == 200
    assert browser(mounted, None).get("/admin/jobs/").status_code == 403
    assert token not in str(client.cookies)


def test_a_state_of_the_application_around_it_stays_its_own() -> None:
    seen: list[dict[str, Any]] = []

    async def around(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {"access": "mine"}
        await Guard(inner(), authorize=authorize)(scope, receive, send)
        seen.append(scope["state"])

    assert browser(around).get("/").text.startswith("anna ")
    assert seen == [{"access": "mine"}]


def test_a_websocket_is_refused() -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        browser(Guard(inner(), authorize=authorize)).websocket_connect("/"),
    ):
        pass
