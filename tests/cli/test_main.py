"""`async-task` itself: its help, how it reports errors, and its standard streams."""

import contextlib
import os
import pathlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import Attempt, Status
from async_task_cli.main import COMMANDS
from clockwork import row_of
from elsewhere import Program
from outbox import Client
from said import Run

Write = Callable[..., Attempt]


pytestmark = pytest.mark.usefixtures("alone")


UNREACHABLE = "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop?connect_timeout=2"


@pytest.mark.parametrize("words", [["--help"], ["version", "--help"], ["version"], ["--version"]])
def test_help_and_version_import_neither_sqlalchemy_nor_alembic(words: list[str]) -> None:
    script = (
        "import sys; from async_task_cli.main import main; code = main(sys.argv[1:]);"
        "print([name for name in sys.modules if name.partition('.')[0] in ('sqlalchemy', 'alembic')], file=sys.stderr);"
        "sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.strip()) == (0, "[]")
    assert "async-task" in ended.stdout


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--version"], 0, "async-task 0.1.0\n", ""),
        (["list", "--help"], 0, "Usage: async-task list [OPTIONS]", ""),
        (["lst"], 2, "", "async-task: there is no command 'lst' (did you mean 'list'?); see `async-task --help`\n"),
        (["list", "--app", "no_such_module:app"], 78, "", "async-task: --app: there is no module 'no_such_module'"),
    ],
)
def test_python_m_async_task_is_the_same_program(words: list[str], code: int, out: str, err: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "async_task", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert ended.stdout.startswith(out)
    assert ended.stderr.startswith(err)
    assert (ended.stdout == "", ended.stderr == "") == (out == "", err == "")


def test_every_command_has_help(say: Run) -> None:
    from async_task_cli.main import COMMANDS

    listed = say("--help").out
    for name, (_, words) in COMMANDS.items():
        assert words in listed
        said = say(name, "-h")
        assert (said.code, said.err, said.out.startswith(f"Usage: async-task {name}")) == (0, "", True)


WRITING = {
    "adopt", "cancel", "enqueue", "expire", "fail", "install", "note", "pause", "process-models", "prune", "reschedule",
    "restart", "resume", "retry", "rotate-keys", "run-batch", "run-now", "sweep", "upgrade",
}  # fmt: skip
READING = {
    "check", "config", "explain", "health", "list", "queues", "show", "stats", "stuck", "summary", "version",
    "workers",
}  # fmt: skip
NEITHER = {"worker", "clock", "failures", "schedule", "keys", "sql", "completion", "demo", "top", "web", "metrics"}
"""`worker`, `clock` and `web` run until they are stopped: `run-batch --dry-run`, `schedule next` show what comes."""


def test_what_writes_has_a_dry_run_and_what_reads_has_json(say: Run) -> None:
    assert {*COMMANDS} == WRITING | READING | NEITHER
    helps = {name: say(name, "--help").out for name in COMMANDS}
    assert [name for name in WRITING if "--dry-run" not in helps[name]] == []
    assert [name for name in READING if "--json" not in helps[name]] == []


def test_without_a_command_the_commands_are_listed(say: Run) -> None:
    said = say()
    assert (said.code, said.out) == (2, "")
    assert "run-batch" in said.err


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"health"}))  # which says it to monitoring
def test_every_command_refuses_a_wrong_option_with_one_sentence(say: Run, command: str) -> None:
    said = say(command, "--no-such-option")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "--no-such-option" in said.err


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        ("list", 2, "no database is named"),
        ("lst", 2, "did you mean 'list'"),
        ("list --no-such-option", 2, "--no-such-option"),
        ("list --limit many", 2, "'many'"),
        ("list --limit -1", 2, "-1"),
        ("list --status done", 2, "'done'"),
        ("run-batch --concurrency 0", 2, "0"),
        ("run-batch --fail-on expired", 2, "'expired'"),
        ("show", 2, "Missing argument 'ID'"),
        ("show 17", 2, "'17' is not a valid id"),
        ("list --app shop --database-url sqlite:///x", 2, "--app brings its own database"),
        ("--app shop list --database-url sqlite:///x", 2, "--app brings its own database"),
        ("list --app shop", 2, "module:name"),
        ("list --app no_such_module:app", 78, "there is no module 'no_such_module'"),
        ("list --app json:app", 78, "json has no 'app'"),
        ("list --app json:dumps", 78, "is of type function, not AsyncTask"),
        ("list --app broken_module:app", 78, "importing broken_module raised ZeroDivisionError"),
        ("list --app needy_module:app", 78, "needs the module 'no_such_driver'"),
        (
            "list --module no_such_module --database-url sqlite:///there.sqlite",
            78,
            "there is no module 'no_such_module'",
        ),
        ("list --database-url nonsense", 78, "the database URL cannot be read"),
        ("list --database-url nosuch://me:s3cret@host/x", 78, "no database dialect is called 'nosuch'"),
        ("list --database-url postgresql+psycopg://me:s3cret@host:many/x", 78, "a port that is not a number"),
        ("list --database-url postgresql+psycopg://me:s3cr@et:s3cret@host/x", 78, "a port that is not a number"),
        ("list --database-url mysql://me:s3cret@host/x", 78, "async-task[mysql]"),
        ("list --database-url postgresql+psycopg2://me:s3cret@host/x", 78, "async-task[postgres]"),
        ("list --database-url sqlite://", 78, "in memory"),
        ("list --database-url sqlite:///there.sqlite", 78, "async-task install --apply"),
        ("run-batch --database-url sqlite:///there.sqlite", 78, "async-task install --apply"),
        ("list --database-url sqlite:///missing.sqlite", 69, "there is no database missing.sqlite"),
        ("install --apply --database-url sqlite:///no/such/folder/x.sqlite", 69, "unable to open database file"),
        (f"list --database-url {UNREACHABLE}", 69, "the database cannot be used"),
        (f"run-batch --database-url {UNREACHABLE}", 69, "the database cannot be used"),
        ("list --database-url postgresql+asyncpg://me:s3cret@127.0.0.1:1/x", 69, "the database cannot be used"),
        ("list --database-url mysql+pymysql://me:s3cret@127.0.0.1:1/x", 69, "the database cannot be used"),
        (f"demo --database-url {UNREACHABLE}", 69, "the database cannot be used"),
        ("demo --database-url postgresql+asyncpg://me:s3cret@127.0.0.1:1/x", 2, "the demo's shop is synchronous"),
    ],
)
def test_an_error_is_one_sentence_with_its_exit_code(words: str, code: int, part: str, tmp_path: pathlib.Path) -> None:
    pathlib.Path("broken_module.py").write_text("1 / 0\n")
    pathlib.Path("needy_module.py").write_text("import no_such_driver\n")
    with contextlib.closing(sqlite3.connect("there.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = _files(tmp_path)
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    with contextlib.closing(Program("async_task_cli", *words.split(), cwd=tmp_path, env=environment)) as begun:
        ended = begun.completed()
    assert (ended.returncode, ended.stdout) == (code, "")
    assert part in ended.stderr
    assert ended.stderr.startswith("async-task: ")
    assert ended.stderr.count("\n") == 1
    assert "s3cr" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert _files(tmp_path) == before


def _files(folder: pathlib.Path) -> dict[str, int]:
    return {str(one): one.stat().st_size for one in folder.rglob("*") if "__pycache__" not in one.parts}


def test_debug_shows_the_traceback_without_the_password(say: Run) -> None:
    said = say("list", "--debug", "--database-url", UNREACHABLE)
    assert said.code == 69
    assert "Traceback" in said.err
    assert "s3cret" not in said.err
    assert say("--debug", "list", "--database-url", UNREACHABLE).err.startswith("Traceback")


@pytest.mark.long
def test_a_character_that_the_terminal_cannot_show_is_escaped(
    process: Any, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write(Client, "fulfill", {"customer_token": "Zoë 🦊", "order_number": 7})
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = process("show", str(attempt.id), "--module", "outbox")
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, err) == (0, "")
    assert "Zo\\xeb" in out


@pytest.mark.long
def test_a_closed_standard_output_ends_quietly(process: Any, write: Write) -> None:
    for _ in range(20):
        write(Client, "ping")
    for words in (["list"], ["list", "--json"]):
        ended = process(*words)
        ended.stdout.close()
        assert (ended.stderr.read(), ended.wait(timeout=60)) == ("", 0)


def test_a_group_without_its_command_prints_its_help(say: Run) -> None:
    ended = say("sql")
    assert (ended.code, ended.out) == (2, "")
    assert "Commands:\n  install  Print the SQL" in ended.err


def test_an_instant_may_be_a_length_of_time(say: Run) -> None:
    ended = say("list", "--since", "abc", "--database-url", "sqlite:///nowhere.sqlite")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "'abc' is not an instant: write it like 2026-10-25T02:30Z, or like 2h" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--all", "--yes"], ["--all", "--yes", "--json"]])
def test_a_verb_finishes_although_nobody_reads_what_it_prints(
    process: Any, write: Write, engine: Engine, words: list[str]
) -> None:
    made = [write(Client, "ping").id for _ in range(5)]
    ended = process("cancel", *words, "--reason", "a test", "--target", "test.client")
    ended.stdout.close()
    assert (ended.stderr.read(), ended.wait(timeout=60)) == ("" if "--json" in words else "cancel: 5 done.\n", 0)
    assert {row_of(engine, one).status for one in made} == {Status.CANCELED}


@pytest.mark.long
def test_commands_work_with_closed_standard_streams(tmp_path: pathlib.Path) -> None:
    command = f"{sys.executable} -m async_task_cli"
    at = f"--database-url sqlite:///{tmp_path}/shop.sqlite"
    for words in (
        f"install --apply {at} >&- 2>&-",
        f"list {at} >&-",
        f"run-batch {at} >&- <&- 2>&-",
        f"retry - {at} <&-",
    ):
        ended = subprocess.run(["bash", "-c", f"{command} {words}"], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (0, ""), words
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("words", "code"), [(["version"], 0), (["list", "--banana"], 2)])
def test_a_signal_after_the_end_of_a_command_changes_no_exit_code(words: list[str], code: int) -> None:
    """A supervisor may send one more while Python takes itself down."""
    script = (
        "import atexit, os, signal, sys; from async_task_cli.main import main; "
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM); sys.exit(main())"
    )
    ended = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
