"""The example shop: its warehouse over HTTP, and its console."""

import json
import os
import pathlib
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.long

EXAMPLES = str(pathlib.Path(__file__).parents[2] / "examples")
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def environment(tmp_path: pathlib.Path) -> dict[str, str]:
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("SHOP_")}
    return {**theirs, "PYTHONPATH": EXAMPLES}


@pytest.fixture
def warehouse(environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A running warehouse. The first line that it prints is its address."""
    command = [sys.executable, "-m", "shop.warehouse", "--until-stdin-closes"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        yield process
        process.kill()


def ask(url: str, body: Any = None, method: str = "GET", key: str = "") -> tuple[int, Any]:
    """The HTTP status and the JSON of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Idempotency-Key": key}, method=method)  # noqa: S310 - we started this server
    try:
        with _opener.open(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_warehouse_packs_once_for_a_key_and_lists_its_requests(warehouse: "subprocess.Popen[str]") -> None:
    assert warehouse.stdout is not None
    url = warehouse.stdout.readline().strip()
    ask(f"{url}/orders/7/behaviour", {"fail": 1}, "PUT")
    order = {"customer": "Ada", "number": 7}
    assert [ask(f"{url}/orders", order, "POST", key="k")[0] for _ in range(3)] == [503, 201, 200]
    _, received = ask(f"{url}/received")
    assert [(entry["number"], entry["key"], entry["answer"]) for entry in received] == [
        (7, "k", 503),
        (7, "k", 201),
        (7, "k", 200),
    ]
    assert ask(f"{url}/parcels") == (200, [7])
    assert ask(f"{url}/nothing")[0] == 404


def test_the_warehouse_ends_with_its_parent(warehouse: "subprocess.Popen[str]") -> None:
    assert warehouse.stdout is not None
    assert warehouse.stdin is not None
    warehouse.stdout.readline()
    warehouse.stdin.close()
    assert warehouse.wait(timeout=10) == 0


def test_the_console_imports_the_names_and_prints_what_to_type(
    environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    typed = (
        "with Session.begin() as session: place_order(session, 'Ada', 1990)\n\n"
        "outbox.run_batch(concurrency=1).claimed\n"
        "Session().query(Order).one()\n"
    )
    command = [sys.executable, "-q", "-i", "-m", "shop.console"]
    ended = subprocess.run(
        command, input=typed, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True, timeout=60
    )
    lines = ended.stdout.splitlines()
    assert "outbox, Session, Attempt, Order, place_order" in lines[0]
    assert [line.split(":")[0] for line in lines[1:3]] == ["Place an order", "Make its calls"]
    assert lines[-2:] == ["2", "Order(1001, 'Ada', 19.90, paid)"]
    assert max(len(line) for line in lines[1:3]) <= 88
