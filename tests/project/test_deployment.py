"""The processes of a deployment: what the example files run exists, and they work together when they really run."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import yaml
from sqlalchemy import create_engine, text
from test_shop import ask

import databases
from async_task.worker.supervisor_process import MARGIN
from async_task_cli.main import cli
from conftest import AVAILABLE
from databases import Database
from elsewhere import Program, await_

pytestmark = pytest.mark.long

TREE = pathlib.Path(__file__).parents[2]
DEPLOY = TREE / "examples" / "deploy"
OF_A_PROJECT = DEPLOY / "Dockerfile"
EXAMPLES = str(TREE / "examples")
ENVIRONMENT = re.compile(r"\b(?:SHOP|ASYNC_TASK)_[A-Z_]+\b")


def procfile() -> dict[str, list[str]]:
    """The command of each process."""
    lines = [line for line in (DEPLOY / "Procfile").read_text().splitlines() if not line.startswith("#")]
    return {name: shlex.split(words) for name, _, words in (line.partition(": ") for line in lines)}


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((TREE / name).read_text())
    return found


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The pod and the container of each workload."""
    for one in kubernetes():
        if "template" in one.get("spec", {}):
            pod = one["spec"]["template"]["spec"]
            yield pod, pod["containers"][0]


def from_dockerfile(step: str, file: pathlib.Path = TREE / "Dockerfile") -> list[str]:
    lines = file.read_text().splitlines()
    return [line.removeprefix(f"{step} ") for line in lines if line.startswith(f"{step} ")]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of each file, with where it stands."""
    yield from ((f"Procfile {name}", words) for name, words in procfile().items())
    for name, service in compose()["services"].items():
        if "build" in service:
            yield f"compose {name}", service["command"]
            if "healthcheck" in service:
                yield f"health of compose {name}", service["healthcheck"]["test"][1:]
    for _, container in containers():
        yield f"kubernetes {container['name']}", container["command"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "exec" in container.get(probe, {}):
                yield f"{probe} of kubernetes {container['name']}", container[probe]["exec"]["command"]
    yield "Dockerfile", json.loads(from_dockerfile("CMD")[0])
    yield "Dockerfile of a project", json.loads(from_dockerfile("CMD", OF_A_PROJECT)[0])
    for line in OF_A_PROJECT.read_text().splitlines():
        if line.startswith("#     async-task "):
            yield line, line.removeprefix("#     ").partition("  ")[0].split()
    for unit in DEPLOY.glob("*.service"):
        [line] = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        yield unit.name, ["async-task", *line.split()[1:]]


def refusal_of(words: list[str]) -> str | None:
    """Why the program would not take these words: each is parsed by its own parser."""
    program, first, *given = (word.replace("$PORT", "8000") for word in words)
    if program == "async-task":
        return _refusal_of_ours(first, given)
    assert (program, first) in {("python", "-m"), ("python", "-c")}
    if first == "-c":
        compile(given[0], "healthcheck", "exec")
        return None
    file = pathlib.Path(EXAMPLES, *given[0].split(".")).with_suffix(".py")
    try:
        if given[1:]:
            parser_of(file).parse_args(given[1:])
    except SystemExit:
        return f"{given[0]} does not take {given[1:]}"
    return None if file.exists() else f"there is no module {given[0]}"


def _refusal_of_ours(name: str, options: list[str]) -> str | None:
    command = cli.get_command(click.Context(cli), name)
    if command is None:
        return f"there is no command {name}"
    try:
        command.make_context(name, options)
    except (click.UsageError, click.exceptions.Exit) as error:
        return str(error)
    return None


def parser_of(file: pathlib.Path) -> Any:
    """The `parser()` of a module of the shop, which is not imported: it would register its targets here."""
    import argparse

    source = file.read_text().partition("def parser(")[2].partition("\n\n\n")[0]
    made: dict[str, Any] = {"argparse": argparse}
    exec(f"def parser({source}", made)  # noqa: S102 - our own example
    return made["parser"]()


def test_every_command_of_the_example_files_is_understood(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = dict(commands())
    assert len(found) >= 20
    assert {where: why for where, words in found.items() if (why := refusal_of(words))} == {}
    assert refusal_of(["async-task", "worker", "--no-such-option"])
    assert refusal_of(["python", "-m", "shop.web", "--no-such-option"])


def test_every_process_has_time_to_end_and_a_probe() -> None:
    services = compose()["services"]
    assert {name for name, one in services.items() if "healthcheck" not in one} == {"migrate", "warehouse"}
    assert {name for name, one in services.items() if one["restart"] != "unless-stopped"} == {"migrate"}
    assert all(one["init"] for one in services.values() if "build" in one)
    assert {one["image"] for one in services.values() if "build" in one} == {"async-task-shop"}
    assert len({json.dumps(one["environment"]) for one in services.values() if "build" in one}) == 1
    assert services["worker"]["deploy"]["replicas"] == 2
    for name in ("web", "worker", "clock", "dashboard"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    stops = {"compose": (services["worker"]["stop_grace_period"], services["worker"]["command"])}
    for pod, container in containers():
        if container["name"] == "worker":
            stops["kubernetes"] = (str(pod["terminationGracePeriodSeconds"]), container["command"])
        if container["name"] != "migrate":
            assert "livenessProbe" in container
    for stop, words in stops.values():
        grace = int(words[words.index("--grace") + 1].removesuffix("s"))
        assert int(stop.removesuffix("s")) >= grace + MARGIN
    assert set(compose("docker-compose.databases.yml")["services"]) == {"postgres", "mariadb"}


def test_the_files_set_no_variable_that_nobody_reads() -> None:
    files = [TREE / "Dockerfile", TREE / "docker-compose.yml", DEPLOY / "Procfile", DEPLOY / "kubernetes.yaml"]
    named = {name for file in files for name in ENVIRONMENT.findall(file.read_text())}
    sources = [*(TREE / "cli").rglob("*.py"), *(TREE / "examples" / "shop").glob("*.py")]
    read = {name for file in sources for name in ENVIRONMENT.findall(file.read_text())}
    assert named
    assert named - read == set()


def test_the_dockerfile_of_a_project_is_that_of_the_shop_but_for_what_it_installs() -> None:
    assert from_dockerfile("FROM", OF_A_PROJECT) == from_dockerfile("FROM")
    for step in ("USER", "CMD"):
        assert from_dockerfile(step, OF_A_PROJECT) == from_dockerfile(step)
    assert set(from_dockerfile("COPY", OF_A_PROJECT)) - set(from_dockerfile("COPY")) == {"requirements.txt ./", ". ."}


def test_the_dockerfile_copies_what_its_steps_need_and_ends_with_a_list() -> None:
    copied = [word for line in from_dockerfile("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert [word for word in copied if not (TREE / word).exists()] == []
    ignored = (TREE / ".dockerignore").read_text().split()
    assert {f"!{word}" for word in copied} <= set(ignored)
    assert len(from_dockerfile("CMD")) == 1
    assert from_dockerfile("USER") == ["shop"]
    assert from_dockerfile("ENTRYPOINT") == []


def _has_compose() -> bool:
    docker = shutil.which("docker")
    return (
        bool(docker)
        and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0
    )


if _has_compose():  # the client alone: it needs no engine for this

    @pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.databases.yml"])
    def test_docker_compose_accepts_the_file(name: str) -> None:
        command = ["docker", "compose", "--file", name, "config", "--quiet"]
        ended = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")


# The processes


class Fleet:
    """The processes of the Procfile, as a runner starts them: in one folder, with one environment."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str], until: contextlib.ExitStack) -> None:
        self._folder, self._environment, self._until = folder, environment, until

    def start(self, words: list[str]) -> Program:
        module, *given = words[2:] if words[0] == "python" else ["async_task_cli", *words[1:]]
        program = Program(
            module, *(word.replace("$PORT", "0") for word in given), cwd=self._folder, env=self._environment
        )
        self._until.callback(program.close)
        return program

    def run(self, *words: str) -> tuple[int, str]:
        ended = self.start(list(words)).completed()
        return ended.returncode, ended.stdout + ended.stderr


TOKEN = "a-token-of-the-dashboard"
NO_ORDERS: list[Any] = [
    "x", [], {"customer": "Ada"}, {"customer": "Ada", "amount": float("inf")}, {"customer": "Ada", "amount": 0},
    {"customer": "Ada", "amount": 2**31}, {"customer": 7, "amount": 1},
    {"customer": "", "amount": 1}, {"customer": "\0", "amount": 1}, {"customer": "\ud800", "amount": 1},
]  # fmt: skip
NOWHERE = ["orders/7", "nothing", f"orders/{2**31}", "orders/" + "9" * 5000]


def pages(said: str) -> list[int]:
    """The status of two probes, and of a page with the token and without, where the dashboard says that it listens."""
    port = said.rpartition(":")[2]
    asked = [("healthz", ""), ("readyz", ""), ("stuck.json", TOKEN), ("stuck.json", "")]
    found = []
    for path, token in asked:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", f"/{path}", headers={"Authorization": f"Bearer {token}"} if token else {})
            found.append(connection.getresponse().status)
    return found


@pytest.mark.only_on("postgresql")
def test_the_processes_of_the_procfile_fulfil_an_order_and_end_at_sigterm(
    database: Database, pytestconfig: pytest.Config, tmp_path: pathlib.Path
) -> None:
    with contextlib.ExitStack() as until:
        own = until.enter_context(databases.own(pytestconfig.stash[AVAILABLE].named(database.name)))
        engine = create_engine(own.sync_url)
        until.callback(engine.dispose)
        environment = {
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": EXAMPLES,
            "SHOP_DATABASE_URL": own.sync_url, "ASYNC_TASK_APP": "shop.app:outbox", "ASYNC_TASK_LOG_FORMAT": "json",
            "ASYNC_TASK_WEB_TOKEN": TOKEN,
        }  # fmt: skip
        fleet, kinds = Fleet(tmp_path, environment, until), procfile()
        warehouse = fleet.start(["python", "-m", "shop.warehouse"])
        assert warehouse.stdout
        environment["SHOP_WAREHOUSE_URL"] = warehouse.stdout.readline().strip()
        health = ("async-task", "health", "--workers", "2")
        code, said = fleet.run(*health)
        assert (code, "has no table" in said) == (2, True)
        assert fleet.run(*kinds.pop("release"))[0] == 0
        processes = {name: fleet.start(words) for name, words in {**kinds, "worker 2": kinds["worker"]}.items()}
        web = processes["web"]

        def statuses() -> list[str]:
            with engine.begin() as connection:
                return list(connection.scalars(text("SELECT status FROM shop_attempts")))

        assert web.stdout
        url = web.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")  # noqa: S104

        status, order = ask(f"{url}/orders", {"customer": "Ada", "amount": 1990}, "POST")
        assert (status, order["status"]) == (201, "placed")
        await_(lambda: ask(f"{url}/orders/{order['number']}")[1]["status"] == "paid", "a worker enters the payment")
        await_(
            lambda: ask(f"{environment['SHOP_WAREHOUSE_URL']}/parcels")[1] == [order["number"]], "the order is packed"
        )
        assert [path for path in NOWHERE if ask(f"{url}/{path}")[0] != 404] == []
        assert [wish for wish in NO_ORDERS if ask(f"{url}/orders", wish, "POST")[0] != 400] == []
        assert fleet.run("async-task", "schedule", "run", "shop.report")[0] == 0
        await_(lambda: fleet.run(*health)[0] == 0, "all is well")
        status, body = ask(f"{url}/healthz")
        assert (status, body["state"], body["checks"]["workers"]) == (200, "ok", "2 workers run")
        # the two calls of the order and its report; the clock adds one where a minute begins meanwhile
        await_(lambda: len(statuses()) >= 3 and set(statuses()) == {"succeeded"}, "the report is made")
        assert fleet.run("async-task", "health", "--this-host", "--probe")[0] == 0
        began = processes["dashboard"].stderr
        assert began
        line = began.readline()
        assert pages(json.loads(line)["message"]) == [200, 200, 200, 401]

        for one in processes.values():
            one.send_signal(signal.SIGTERM)
        outputs = {name: one.communicate() for name, one in processes.items()}
        codes = {name: one.returncode for name, one in processes.items()}
        assert codes == {"web": 0, "worker": 143, "worker 2": 143, "clock": 143, "dashboard": 143}
        outputs["dashboard"] = ("", line + outputs["dashboard"][1])
        logs = {name: [json.loads(line) for line in err.splitlines()] for name, (_, err) in outputs.items()}
        assert {name: {line["service"] for line in lines} for name, lines in logs.items()} == {
            "web": {"web"}, "worker": {"worker"}, "worker 2": {"worker"}, "clock": {"clock"},
            "dashboard": {"web"},
        }  # fmt: skip
        common = {"@timestamp", "level", "message", "domain", "service"}
        assert all(common <= set(line) for lines in logs.values() for line in lines)
        reports = [line for name in ("worker", "worker 2") for line in logs[name] if line["logger"] == "shop"]
        assert "orders: 1 paid" in {line["message"] for line in reports}
        assert {(line["target"], line["queue"], line["try"]) for line in reports} == {("shop.report", "default", 1)}
        assert all(line["thread"].startswith("async-task-lane-") for line in reports)
        code, said = fleet.run(*health)
        assert (code, "no workers run" in said, "no clock runs" in said) == (2, True, True)
