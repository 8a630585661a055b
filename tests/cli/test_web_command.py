"""`async-task web`: what it refuses, and one that is served."""

import contextlib
import io
import pathlib
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from async_task.web.security.users import is_right
from async_task_cli.commands import web
from elsewhere import Program
from said import Run

TOKEN = "canary-7355608-canary"
Start = Callable[..., Program]


@pytest.fixture
def say_with(say: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """`say_with(ASYNC_TASK_WEB_TOKEN="...")`: the command line with these variables."""

    def say_with(**variables: str) -> Run:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return say

    return say_with


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--host 0.0.0.0", "--host 0.0.0.0 can be reached from elsewhere: give --auth too, or --insecure-open"),
        ("--host ::", "can be reached from elsewhere"),
        ("--host jobs.example", "can be reached from elsewhere"),
        ("--host 0.0.0.0 --read-only", "can be reached from elsewhere"),
        ("--auth basic --insecure-open", "exclude each other"),
        ("--auth kerberos", "'kerberos'"),
        ("--auth proxy-header", "needs --proxy-header NAME"),
        ("--proxy-header X-User", "are for --auth proxy-header"),
        ("--auth basic --trusted-proxy 10.0.0.1", "are for --auth proxy-header"),
        ("--auth token --actor anna", "--actor is for use without --auth"),
        ("--port 65536", "65536"),
        ("--path jobs", "write a path like /jobs"),
        ("--path /jobs/", "write a path like /jobs"),
        ("--path /../x", "write a path like /jobs"),
    ],
)
def test_options_that_contradict_each_other_or_open_it_to_everybody_exit_with_2(
    say: Run, words: str, part: str
) -> None:
    said = say("web", *words.split())
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert part in said.err


@pytest.mark.parametrize(
    ("words", "variables", "part"),
    [
        ("--auth basic", {}, "--auth basic: set ASYNC_TASK_WEB_USERS, or ASYNC_TASK_WEB_USERS_FILE to the path"),
        ("--auth basic", {"ASYNC_TASK_WEB_USERS": "canary"}, "--auth basic: user 1 is not written name:password"),
        ("--auth basic", {"ASYNC_TASK_WEB_USERS_FILE": "no-such-file"}, "no-such-file cannot be read"),
        ("--auth basic", {"ASYNC_TASK_WEB_USERS": "a:b", "ASYNC_TASK_WEB_READERS": "bob"}, "'bob', who should only"),
        ("--auth token", {"ASYNC_TASK_WEB_TOKEN": "canary"}, "--auth token: a token has at least 20 characters"),
        ("--auth proxy-header --proxy-header X:", {}, "the name of a header"),
        ("--auth proxy-header --proxy-header X --trusted-proxy y", {}, "a proxy is an address or a network"),
        ("", {"ASYNC_TASK_ACTOR": "x" * 256}, "ASYNC_TASK_ACTOR"),
    ],
)
def test_settings_that_cannot_work_exit_with_78_and_repeat_no_secret(
    say_with: Callable[..., Run], words: str, variables: dict[str, str], part: str
) -> None:
    said = say_with(**variables)("web", *words.split())
    assert (said.code, said.out, said.err.count("\n")) == (78, "", 1)
    assert part in said.err
    assert "canary" not in said.err


def test_without_the_extra_one_sentence_says_what_to_install(say: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "find_spec", lambda name: None if name == "uvicorn" else object())
    said = say("web")
    assert (said.code, said.err) == (
        78,
        "async-task: the dashboard needs the module 'uvicorn', which is not installed: install async-task[web]\n",
    )


@pytest.mark.only_on("sqlite")
def test_a_port_that_is_in_use_and_a_host_that_is_not_ours_exit_with_one_sentence(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = run("web", "--port", port)
    assert (said.code, said.err) == (69, f"async-task: cannot listen on 127.0.0.1, port {port}: the port is in use\n")
    said = run("web", "--host", "192.0.2.1", "--insecure-open")
    assert (said.code, said.err.count("\n")) == (78, 1)
    assert "cannot listen on 192.0.2.1, port 8011: " in said.err


@pytest.mark.only_on("sqlite")
def test_it_serves_below_a_path_until_sigterm_and_logs_no_token(
    process: Start, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("ASYNC_TASK_WEB_TOKEN_FILE", str(secret))
    served = process("web", "--port", "0", "--path", "/jobs", "--auth", "token", "--access-log")
    assert served.stderr is not None
    line = served.stderr.readline()
    found = re.fullmatch(r"Listening on (http://127\.0\.0\.1:\d+/jobs) \(Ctrl-C ends it\)\n", line)
    assert found is not None, line
    url = f"{found[1]}/?status=failed"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=30)  # noqa: S310
    refused.value.close()
    assert refused.value.code == 401
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})  # noqa: S310
    with contextlib.closing(urllib.request.urlopen(asked, timeout=30)) as said:  # noqa: S310
        assert (said.status, said.headers["cache-control"], said.headers["server"]) == (200, "no-store", None)
    served.send_signal(signal.SIGTERM)
    out, err = served.communicate()
    assert (served.returncode, out) == (143, "")
    assert '"GET /jobs/?status=failed HTTP/1.1" 401' in err
    assert "canary" not in err


def test_a_password_is_hashed_for_the_list_of_users(say: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    said = say("web", "--hash-password")
    assert (said.code, said.err) == (0, "")
    assert is_right("secret", said.out.strip())
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    said = say("web", "--hash-password")
    assert (said.code, said.out, "there was none" in said.err) == (2, "", True)
