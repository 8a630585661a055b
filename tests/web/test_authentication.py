"""Who somebody is, in each of the ways in which `async-task web` finds out."""

import base64
import re
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from async_task import Access, ConfigurationError
from async_task.web.security import authentication
from async_task.web.security.authentication import Anybody, Basic, Loopback, ProxyHeader, Token
from async_task.web.security.guard import Guard, access_of
from async_task.web.security.users import hash_password

TOKEN = "a-token-of-25-characters!"
OURS = {"Sec-Fetch-Site": "same-origin"}


async def home(request: Request) -> Response:
    access = access_of(request)
    return PlainTextResponse(f"{access.actor} {'changes' if access.rights else 'reads'}")


def browser(authorize: Any, url: str = "http://127.0.0.1:8011", client: str = "127.0.0.1") -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", home)])
    return TestClient(Guard(app, authorize=authorize), url, client=(client, 4711), follow_redirects=False)


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


def test_anybody_is_one_actor() -> None:
    assert browser(Anybody("anybody"), "http://jobs.example").get("/").text == "anybody changes"


def test_on_loopback_only_this_machine_is_answered_and_no_name_of_another_site() -> None:
    for own in ("127.0.0.1:8011", "localhost", "LOCALHOST:8011", "[::1]:8011"):
        assert browser(Loopback("anna@host")).get("/", headers={"Host": own}).text == "anna@host changes"
    for other in ("evil.test", "127.0.0.1.evil.test", "evil.test:8011", "localhost.", "localhost:8011@evil.test", ""):
        assert browser(Loopback("anna@host")).get("/", headers={"Host": other}).status_code == 403
    of_proxies = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Server", "X-Real-IP")
    for header in (*of_proxies, "X-Client-IP", "True-Client-IP", "CF-Connecting-IP"):
        said = browser(Loopback("anna@host")).get("/", headers={header: "x"})
        assert (said.status_code, "--auth" in said.text) == (403, True)
    twice = browser(Loopback("anna@host")).get("/", headers=[("Host", "localhost"), ("Host", "evil.test")])
    assert twice.status_code == 403


def test_basic_asks_for_a_name_and_a_password() -> None:
    authorize = Basic({"anna": "ge:heim ä", "bob": hash_password("pass")}, readers={"bob"})
    client = browser(authorize)
    asked = client.get("/")
    assert (asked.status_code, asked.headers["www-authenticate"]) == (401, 'Basic realm="async-task", charset="UTF-8"')
    assert client.get("/", headers=basic("anna", "ge:heim ä")).text == "anna changes"
    for _ in ("checked", "known"):
        assert client.get("/", headers=basic("bob", "pass")).text == "bob reads"
    wrong = [
        basic("anna", ""), basic("anna", "ge"), basic("bob", "pass2"), basic("eve", "pass"), basic("", ""),
        basic("anna", "pass"), {"Authorization": "Basic %%%"}, {"Authorization": "Basic /w=="},
        {"Authorization": basic("bob", "pass")["Authorization"].replace("Basic", "Bearer")}, {"Authorization": "Basic"},
    ]  # fmt: skip
    assert {client.get("/", headers=one).status_code for one in wrong} == {401}


def test_a_password_that_was_right_is_not_hashed_again_and_nobodys_is_hashed_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[str] = []
    is_right = authentication.is_right

    def counting(password: str, stored: str) -> bool:
        checked.append(stored.partition(":")[0])
        return is_right(password, stored)

    monkeypatch.setattr(authentication, "is_right", counting)
    client = browser(Basic({"bob": hash_password("pass")}))
    for password in ("pass", "pass", "other"):
        client.get("/", headers=basic("bob", password))
    client.get("/", headers=basic("eve", "pass"))
    assert checked == ["scrypt", "scrypt", "scrypt"]  # the second one was known


def test_a_token_is_sent_with_a_request_or_once_in_a_form() -> None:
    client = browser(Token(TOKEN))
    assert client.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).text == "token changes"
    for wrong in ("Bearer no", "Bearer", TOKEN, f"Basic {TOKEN}"):
        refused = client.get("/", headers={"Authorization": wrong})
        assert (refused.status_code, "<form" in refused.text) == (401, False)
    assert client.get("/jobs.json").json() == {"error": "There is no valid token in this request."}
    form = client.get("/jobs?status=failed")
    assert (form.status_code, form.headers["www-authenticate"]) == (401, "Bearer")
    [csrf] = re.findall('name="csrf" value="([0-9a-f]+)"', form.text)
    logged_in = client.post("/jobs?status=failed", data={"csrf": csrf, "token": TOKEN}, headers=OURS)
    assert (logged_in.status_code, logged_in.headers["location"]) == (303, "?status=failed")
    cookie = logged_in.headers["set-cookie"]
    assert re.fullmatch(r"async_task_login=\d+\.[0-9a-f]{64}; Max-Age=43200; Path=/; HttpOnly; SameSite=Lax", cookie)
    assert TOKEN not in cookie
    assert client.get("/jobs?status=failed").text == "token changes"
    assert browser(Token(TOKEN, readers={"token"})).get("/", headers={"Cookie": cookie}).text == "token reads"
    assert browser(Token(TOKEN[::-1])).get("/", headers={"Cookie": cookie}).status_code == 401


def test_a_login_needs_the_token_a_form_of_ours_and_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    client = browser(Token(TOKEN))
    [csrf] = re.findall('value="([0-9a-f]+)"', client.get("/").text)
    for form, headers, status in (
        ({"csrf": csrf, "token": "wrong"}, OURS, 401),
        ({"csrf": csrf}, OURS, 401),
        ({"csrf": "", "token": TOKEN}, OURS, 403),
        ({"csrf": csrf, "token": TOKEN}, {"Sec-Fetch-Site": "cross-site"}, 403),
    ):
        said = client.post("/", data=form, headers=headers)
        assert (said.status_code, "async_task_login" in str(client.cookies)) == (status, False)
        assert ("This is not the token: try again." in said.text and f'value="{csrf}"' in said.text) == (status == 401)
    said = client.post("//evil.test/?a=%0d%0ab", data={"csrf": csrf, "token": TOKEN}, headers=OURS)
    assert (said.status_code, said.headers["location"]) == (303, "?a=%0d%0ab")  # on this site, whatever the path
    cookie = client.cookies["async_task_login"]
    until, _, mac = cookie.partition(".")
    for forged in (f"{int(until) + 1}.{mac}", f"{until}.", until, "", ".", f"ä.{mac}"):
        header = (b"Cookie", b"async_task_login=" + forged.encode())
        assert browser(Token(TOKEN)).get("/", headers=[header]).status_code == 401
    monkeypatch.setattr(authentication.time, "time", lambda: int(until))
    client.cookies.clear()  # it drops those that are too old
    assert client.get("/", headers={"Cookie": f"async_task_login={cookie}"}).status_code == 401


def test_the_header_of_a_proxy_is_believed_from_that_proxy_only() -> None:
    authorize = ProxyHeader("X-User", readers={"bob"})
    for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        assert browser(authorize, client=address).get("/", headers={"X-User": "anna"}).text == "anna changes"
    client = browser(authorize)
    assert client.get("/", headers={"X-User": "bob"}).text == "bob reads"
    assert client.get("/", headers={"X-User": "Bob"}).text == "Bob reads"
    assert client.get("/", headers=[(b"X-User", "Jürgen".encode())]).text == "Jürgen changes"
    refused: list[Any] = [
        {}, {"X-User": ""}, {"X-User": " "}, [("X-User", "anna"), ("X-User", "eve")], {"X-User": "x" * 256},
        {"X-User": "evil, bob"},
    ]  # fmt: skip
    assert {client.get("/", headers=one).status_code for one in refused} == {403}
    for address in ("10.0.0.7", "192.0.2.1", "::2", "::ffff:10.0.0.7", "testclient"):
        assert browser(authorize, client=address).get("/", headers={"X-User": "anna"}).status_code == 403
    no_text = {"type": "http", "headers": [(b"x-user", b"\xff")], "client": ("127.0.0.1", 4711)}
    assert authorize(Request(no_text)) == Access.none()
    inside = browser(ProxyHeader("X-User", ["10.0.0.0/8"]), client="10.0.0.7")
    assert inside.get("/", headers={"X-User": "anna", "X-Forwarded-For": "192.0.2.1"}).text == "anna changes"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Basic({}), "there is no user"),
        (lambda: Basic({"anna": "x"}, {"bob"}), "'bob', who should only read, is none of the users ['anna']"),
        (lambda: Basic({"an\na": "x"}), "an actor is a printable text"),
        (lambda: Token("short"), "a token has at least 20 characters"),
        (lambda: Token("ä" * 30), "a token has at least 20 characters"),
        (lambda: ProxyHeader("X User"), "the name of a header"),
        (lambda: ProxyHeader("X-User", ["proxy.example"]), "a proxy is an address or a network"),
        (lambda: Loopback(""), "an actor is a printable text"),
    ],
)
def test_settings_that_cannot_work_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        make()
    assert words in str(raised.value)
