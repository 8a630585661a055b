"""`async-task health`: what monitoring and probes read of it."""

import datetime as dt
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from async_task import Attempt
from async_task.queue import workers
from claims import TABLE
from outbox import Client
from said import Run

Write = Callable[..., Attempt]
UNREACHABLE = "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop?connect_timeout=2"
FIGURE = re.compile(r"[a-z_]+=[\d.]+s?;[\d.:]*;[\d.:]*;0")


def late(write: Write, seconds: float, queue: str = "default") -> None:
    write(Client, "ping", queue=queue, scheduled_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds))


def test_it_prints_one_line_with_figures_and_ends_as_nagios_plugins_do(run: Run, engine: Engine, write: Write) -> None:
    said = run("health", "--clock")
    assert (said.code, said.err, said.out.count("\n")) == (2, "", 1)
    assert said.out.startswith("ASYNC-TASK CRITICAL - no clock runs; the database answers in ")
    workers.beat(engine, TABLE, "one", dt.timedelta(seconds=1), [], kind="worker")
    late(write, 300, "ma|il")
    said = run("health", "--workers", "1")
    assert (said.code, said.out.count("\n"), said.out.count("|")) == (1, 1, 1)
    assert said.out.startswith("ASYNC-TASK WARNING - the oldest attempt has been due for 5 min, in queue ma/il; ")
    figures = said.out.rpartition(" | ")[2].split()
    assert [one for one in figures if not FIGURE.fullmatch(one)] == []
    assert [one.partition("=")[0] for one in figures] == ["database", "oldest_due", "workers"]
    assert re.fullmatch(r"oldest_due=30\d(\.\d+)?s;120;900;0", figures[1])
    assert figures[2] == "workers=1;1:;1:;0"
    assert run("health", "--warn-age", "1h", "--critical-age", "2h").code == 0
    assert run("health", "--queue", "other").code == 0
    assert run("health", "--critical-age", "3min").code == 2


def test_json_has_every_part(run: Run, write: Write) -> None:
    late(write, 300)
    said = run("health", "--json")
    assert (said.code, said.json["state"]) == (1, "warning")
    checks = {one["name"]: one for one in said.json["checks"]}
    assert list(checks) == ["database", "oldest_due", "workers", "clock"]
    assert [one["state"] for one in checks.values()] == ["ok", "warning", "warning", "ok"]
    age = checks["oldest_due"]
    assert (age["state"], age["warning"], age["critical"]) == ("warning", 120, 900)
    assert 300 <= age["value"] < 400
    assert (checks["workers"]["value"], checks["clock"]["value"]) == (0, None)


@pytest.mark.slow
def test_a_probe_fails_only_for_what_is_critical(run: Run, say: Run, engine: Engine, write: Write) -> None:
    late(write, 300)
    assert [run("health", "--probe", *more).code for more in ((), ("--critical-age", "4min"))] == [0, 1]
    assert run("health", "--this-host", "--probe").code == 1
    workers.beat(engine, TABLE, "one", dt.timedelta(seconds=1), [], kind="worker")
    assert run("health", "--this-host", "--probe").code == 0
    assert [run("health", "--worker", name).code for name in ("one", "two")] == [0, 2]
    away = say("health", "--this-host", "--database-url", UNREACHABLE)
    assert (away.code, away.out.startswith("ASYNC-TASK UNKNOWN - heartbeats cannot be read")) == (3, True)
    assert say("health", "--this-host", "--probe", "--database-url", UNREACHABLE).code == 0


def test_a_database_that_cannot_be_used_is_critical(say: Run) -> None:
    for url in (UNREACHABLE, "sqlite:///missing.sqlite"):
        said = say("health", "--database-url", url)
        assert (said.code, said.err, said.out.count("\n")) == (2, "", 1)
        assert said.out.startswith("ASYNC-TASK CRITICAL - ")
        assert "s3cret" not in said.out
        assert say("health", "--probe", "--database-url", url).code == 1
    assert say("health", "--worker", "one", "--database-url", "sqlite:///missing.sqlite").code == 3


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("", "no database is named"),
        ("--no-such-option", "--no-such-option"),
        ("--warn-age soon", "'soon' is not a length of time"),
        ("--workers -1", "-1"),
        ("--this-host --worker one", "exclude each other"),
        ("--this-host --workers 2 --no-clock", "leave out --workers and --clock"),
        ("--worker one --queue mail", "leave out --queue"),
        ("--worker=", "--worker is the name of a worker or clock: it was empty"),
        ("--warn-age 2h --critical-age 1h", "--warn-age is not greater"),
        ("--app no_such_module:app", "there is no module 'no_such_module'"),
        ("--database-url nonsense", "the database URL cannot be read"),
        ("--app a:b --database-url sqlite:///x", "--app brings its own database"),
    ],
)
def test_what_makes_other_commands_end_with_an_error_is_unknown_on_standard_output(
    say: Run, words: str, part: str
) -> None:
    for more in ((), ("--probe",)):
        said = say("health", *words.split(), *more)
        assert (said.code, said.err, said.out.count("\n")) == (3, "", 1)
        assert said.out.startswith("ASYNC-TASK UNKNOWN - ")
        assert part in said.out


def test_it_imports_nothing_that_a_probe_does_not_need(alone: None) -> None:
    """A probe runs every few seconds on each machine: half a second is its limit, and most of it are imports."""
    script = (
        "import sys; from async_task_cli.main import main; main(['health', '--database-url', 'sqlite:///x']);"
        "print(sorted({name.partition('.')[0] for name in sys.modules}"
        "& {'alembic', 'rich', 'pydantic', 'cryptography', 'cronsim', 'asyncpg', 'psycopg', 'pymysql'}))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[1:] == ["[]"]
