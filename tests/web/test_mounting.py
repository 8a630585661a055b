"""The dashboard below a path of another application, mounted as docs/dashboard.md says: nothing leaves that path."""

import contextlib
import html
import logging
import pathlib
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import fastapi
import flask
import httpx2
import pytest
from flask.sessions import SecureCookieSessionInterface
from sqlalchemy import Engine, select
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount
from starlette.testclient import TestClient
from werkzeug.test import create_environ

from async_task import Access, AsyncTask, Attempt, ConfigurationError
from async_task.web.mount_path import MountPath
from async_task_cli.serving import below
from conftest import by_one_door
from dashboards import ORIGIN, OURS
from outbox import act

Write = Callable[..., Attempt]
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "dashboard.md"
BASE = "/jobs"
FRAMEWORKS = ("Starlette", "FastAPI", "Litestar", "Flask")
ADDRESS = re.compile(r'\s(?:href|src|action)="([^"]*)"')


def examples(framework: str) -> list[str]:
    """The blocks of code below the heading of a framework."""
    section = PAGE.read_text().partition(f"\n#### {framework}\n")[2].partition("\n#### ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@contextlib.contextmanager
def mounted(framework: str, outbox: AsyncTask) -> Iterator[httpx2.Client]:
    """A browser of somebody who may do everything, in front of that application."""
    names: dict[str, Any] = {
        "__name__": "shop.web", "outbox": outbox, "authorize": lambda request: Access.full("anna"), "Access": Access
    }  # fmt: skip
    handlers, level = list(logging.root.handlers), logging.root.level
    exec(examples(framework)[0], names)  # noqa: S102 - our own example
    logging.root.handlers, logging.root.level = handlers, level  # Litestar has set its own
    app = names["app"]
    if framework != "Flask":
        yield TestClient(app, ORIGIN, follow_redirects=False)
        return
    with httpx2.Client(transport=httpx2.WSGITransport(app), base_url=ORIGIN) as client:
        yield client
    _close(app.wsgi_app.mounts[BASE].loop)


def _close(loop: Any) -> None:
    """End the loop that a2wsgi runs on a thread for the rest of the process."""
    loop.call_soon_threadsafe(loop.stop)
    while loop.is_running():
        pass
    loop.close()


@pytest.mark.long
@by_one_door
@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_address_form_redirect_and_cookie_stays_below_the_path(
    app: AsyncTask, engine: Engine, write: Write, framework: str
) -> None:
    attempt = write(act)
    with mounted(framework, app) as client:
        found = crawled(client)
        opened = client.get(f"{BASE}/jobs/attempts/{attempt.id}")
        [token] = set(re.findall(r'name="csrf" value="([0-9a-f]+)"', opened.text))
        assert f"{BASE}/act/cancel" in ADDRESS.findall(opened.text)
        fields = {"csrf": token, "id": str(attempt.id), "reason": "mounted"}
        sent = client.post(f"{BASE}/act/cancel", data=fields, headers=OURS)
        assert (sent.status_code, sent.headers["location"]) == (303, f"{opened.url.path}?done=cancel")
        assert "It has ended as canceled." in client.get(sent.headers["location"]).text
        without = client.post(f"{BASE}/act/cancel", data={**fields, "csrf": ""}, headers=OURS)
        nowhere = client.get(f"{BASE}/jobs/attempts/{'0' * 32}")
        probe = client.get(f"{BASE}/healthz")
        bare = client.get(BASE)
        outside = client.get("/stuck")
        assert [one.path for one in client.cookies.jar] == [BASE]
    assert not {path: status for path, status in found.items() if status != 200}
    pages = ("/stuck", "/targets.json", "/overview.csv", "/static/dashboard.js", "/static/dashboard.css")
    assert {f"{BASE}{path}" for path in pages} < set(found)
    assert (without.status_code, nowhere.status_code, probe.json()) == (403, 404, {"status": "ok"})
    assert f'action="{BASE}/jobs"' in nowhere.text
    assert bare.status_code == 200 or bare.headers["location"].removeprefix(ORIGIN) == f"{BASE}/"
    assert outside.status_code == 404
    with engine.connect() as connection:
        assert connection.scalar(select(Attempt.status)) == "canceled"


def crawled(client: httpx2.Client) -> dict[str, int]:
    """The status of each page and file that links lead to, from the overview on, by its path. Each address on them is
    below the path."""
    found: dict[str, int] = {}
    left = [f"{BASE}/"]
    while left:
        address = left.pop()
        path = address.partition("?")[0]
        if path in found or path.startswith(f"{BASE}/act/"):
            continue
        answer = client.get(address)
        found[path] = answer.status_code
        named = [html.unescape(one) for one in ADDRESS.findall(answer.text) if one[:1] not in ("", "?", "#")]
        assert [one for one in named if not one.startswith(f"{BASE}/")] == [], path
        left += named
    return found


@pytest.mark.only_on("sqlite")
def test_redirects_for_a_slash_name_no_host(app: AsyncTask) -> None:
    made = app.dashboard(authorize=lambda request: Access.full("anna"))
    found = {"/jobs/?type=x": "/jobs?type=x", "//jobs/": None, "/act/retry/": "/act/retry", "/static": "/static/"}
    for outer, base in ((made, ""), (Starlette(routes=[Mount(BASE, made)]), BASE), (below(BASE, made), BASE)):
        client = TestClient(outer, ORIGIN, follow_redirects=False, headers={"Host": "evil.test"})
        told = {path: client.get(f"{base}{path}").headers.get("location") for path in found}
        assert told == {path: address and f"{base}{address}" for path, address in found.items()}


@pytest.mark.only_on("sqlite")
def test_a_login_page_that_authorize_names_may_be_elsewhere(app: AsyncTask) -> None:
    def authorize(request: Request) -> Access:
        raise HTTPException(303, headers={"Location": "https://login.test/?next=jobs"})

    said = TestClient(app.dashboard(authorize=authorize), ORIGIN, follow_redirects=False).get("/jobs/")
    assert (said.status_code, said.headers["location"]) == (303, "https://login.test/?next=jobs")


@pytest.mark.only_on("sqlite")
def test_a_path_of_the_command_line_is_guarded_with_and_without_its_slash(app: AsyncTask) -> None:
    people = {"anna": Access.full("anna")}
    made = app.dashboard(authorize=lambda request: people.get(request.headers.get("x-person", ""), Access.none()))
    client = TestClient(below("/tools/jobs", made), ORIGIN, follow_redirects=False)
    anna = {"x-person": "anna"}
    bare, refused = client.get("/tools/jobs?span=1h", headers=anna), client.get("/tools/jobs")
    assert (bare.status_code, bare.headers["location"]) == (307, "/tools/jobs/?span=1h")
    assert (refused.status_code, "content-security-policy" in refused.headers) == (403, True)
    assert 'href="/tools/jobs/stuck"' in client.get("/tools/jobs/targets", headers=anna).text
    root, other = client.get("/"), client.get("/tools/jobsx")
    assert (root.status_code, root.headers["location"]) == (307, "/tools/jobs/")
    assert (other.status_code, other.text) == (404, "The dashboard is below /tools/jobs.\n")


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("is_stripped", [True, False])
def test_a_proxy_before_the_application_around_it_may_take_a_prefix_off(app: AsyncTask, is_stripped: bool) -> None:
    outer = fastapi.FastAPI()
    outer.mount(BASE, app.dashboard(authorize=lambda request: Access.full("anna")))
    sent = BASE if is_stripped else f"/api{BASE}"
    client = TestClient(outer, ORIGIN, follow_redirects=False, root_path="/api")
    found = {path: client.get(f"{sent}{path}") for path in ("/", "/stuck", "/jobs", "/stuck.json", "/static/icon.svg")}
    assert {path: one.status_code for path, one in found.items()} == dict.fromkeys(found, 200)
    assert f'href="/api{BASE}/stuck" aria-current="page"' in found["/stuck"].text
    assert client.get(f"{sent}/stuck/").headers["location"] == f"/api{BASE}/stuck"
    assert [one.path for one in client.cookies.jar] == [f"/api{BASE}"]


def test_flask_s_own_session_says_who_the_person_is() -> None:
    app = flask.Flask("shop")
    app.secret_key = "secret"
    names: dict[str, Any] = {"app": app, "Access": Access, "Request": Request}
    exec(examples("Flask")[1], names)  # noqa: S102
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer is not None
    for session, expected in (({"user": "anna"}, Access.full("anna")), ({}, Access.none())):
        environ = create_environ(headers={"Cookie": f"session={serializer.dumps(session)}"})
        assert names["authorize"](Request({"type": "http", "wsgi_environ": environ})) == expected


def test_templates_script_and_style_sheet_name_no_address_of_their_own() -> None:
    """Every address begins with the path of the dashboard, and the script reads the page that it is on, again."""
    templates = pathlib.Path(str(files("async_task.web"))) / "templates"
    named = [address for page in templates.glob("*.html") for address in ADDRESS.findall(page.read_text())]
    begins = (
        "{{ base }}/",
        "{{ base }}{{ one.path }}",
        "{{ base }}{{ before }}",
        "{{ query.link(base ~ '/",
        "{{ query.link(base ~ stem ~ '.",
        "#",
    )
    assert [one for one in named if not one.startswith(begins)] == []
    static = files("async_task.web") / "static"
    script, style = ((static / f"dashboard.{kind}").read_text() for kind in ("js", "css"))
    assert re.findall(r"""["'`]\.{0,2}/[\w.$]""", script) == []
    assert re.findall(r"\bfetch\((\w+)", script) == ["address"]
    assert "address = new URL(location.href)" in script
    assert "url(" not in style


@pytest.mark.parametrize("wrong", ["", "/", "jobs", "/jobs/", "//x", "/a b", 'x"y', None])
def test_a_base_path_is_a_path_without_a_slash_at_its_end(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="base_path is a path like /jobs"):
        MountPath(None, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("", "/", ("/jobs", "/jobs/")),
        ("", "/jobs/attempts/7/", ("/jobs", "/jobs/jobs/attempts/7")),
        ("/api", "/stuck/", ("/api/jobs", "/api/jobs/stuck")),
        ("/jobs", "/jobs/stuck", ("/jobs", "/jobs/stuck")),
        ("/api/jobs", "/api/jobs", ("/api/jobs", "/api/jobs")),
        ("/tools/jobs", "/stuck/", ("/tools/jobs/jobs", "/tools/jobs/jobs/stuck")),
    ],
)
def test_a_base_path_is_added_where_the_framework_has_taken_it_off(
    root: str, path: str, expected: tuple[str, str]
) -> None:
    seen: list[tuple[str, str]] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["root_path"], scope["path"]))

    given = {"type": "http", "root_path": root, "path": path}
    with contextlib.suppress(StopIteration):
        MountPath(inside, "/jobs")(given, None, None).send(None)  # type: ignore[arg-type]
    assert (seen, given["path"]) == ([expected], path)
