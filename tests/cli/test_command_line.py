"""`async-task`: what each command does, prints and ends with; in processes of their own where that matters."""

import contextlib
import datetime as dt
import json
import os
import pathlib
import pty
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, String, insert, make_url, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column

from async_task import Attempt, JobEvent, Status, target
from async_task.database.driver_errors import is_transient
from async_task.encryption.encryptors import register_encryptor
from async_task_cli.faults import trace_of, verdict
from async_task_cli.main import main
from clockwork import forget_beats, let_pass, row_of
from databases import Database
from elsewhere import Program
from outbox import Client, Rows, calls
from said import Run

Write = Callable[..., Attempt]
pytestmark = pytest.mark.usefixtures("alone")
UNREACHABLE = "postgresql+psycopg://me:s3cret@127.0.0.1:1/shop?connect_timeout=2"


class Reversing:
    """No secret is safe with it, but it is not the null encryptor."""

    name = "test.reversing"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return plaintext[::-1]

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        return ciphertext[::-1]


register_encryptor(Reversing())


@target("test.discreet", redact=["password"])
def discreet(password: str, amount: int) -> None:
    """Has something to hide."""


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


# Help, without what it does not need


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


def test_every_command_has_help_that_says_what_it_is_for(say: Run) -> None:
    from async_task_cli.main import COMMANDS

    listed = say("--help").out
    for name, (_, words) in COMMANDS.items():
        assert words in listed
        said = say(name, "-h")
        assert (said.code, said.err, said.out.startswith(f"Usage: async-task {name}")) == (0, "", True)


def test_no_command_is_a_usage_error_that_shows_the_commands(say: Run) -> None:
    said = say()
    assert (said.code, said.out) == (2, "")
    assert "run-batch" in said.err


def test_version_names_library_python_sqlalchemy_and_drivers(say: Run) -> None:
    lines = dict(line.split(maxsplit=1) for line in say("version").out.splitlines())
    assert set(lines) == {"async-task", "Python", "SQLAlchemy", "drivers"}
    assert "psycopg" in lines["drivers"]
    assert say("version", "--json").json["drivers"]["psycopg"]


# run-batch


def test_run_batch_makes_what_is_due_and_says_nothing_without_a_terminal(
    run: Run, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "fulfill", {"customer_token": "c-1", "order_number": 7})
    said = run("run-batch")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert calls == [("c-1", 7)]
    assert row_of(engine, attempt.id).status is Status.SUCCEEDED


def test_run_batch_with_nothing_due_ends_0(run: Run) -> None:
    assert (run("run-batch").code, run("run-batch", "--json").json["claimed"]) == (0, 0)


def test_run_batch_as_json_says_what_became_of_the_attempts(run: Run, write: Write) -> None:
    write(Client, "ping")
    write(Client, "fail")
    report = run("run-batch", "--json", "--concurrency", "2").json
    assert {name: report[name] for name in ("claimed", "succeeded", "retried", "failed")} == {
        "claimed": 2,
        "succeeded": 1,
        "retried": 1,
        "failed": 0,
    }


def test_run_batch_stops_at_its_limit(run: Run, write: Write) -> None:
    for _ in range(3):
        write(Client, "ping")
    assert run("run-batch", "--limit", "2", "--json").json["succeeded"] == 2
    assert run("run-batch", "--limit", "0", "--json").json["claimed"] == 0
    assert run("run-batch", "--json").json["succeeded"] == 1


def test_a_failure_ends_3_only_when_asked_and_a_retry_never(run: Run, write: Write) -> None:
    write(Client, "fail")
    assert run("run-batch", "--fail-on", "failed").code == 0
    write(Client, "give_up", {"reason": "no"})
    assert run("run-batch").code == 0
    write(Client, "give_up", {"reason": "no"})
    said = run("run-batch", "--fail-on", "failed")
    assert (said.code, said.out, said.err) == (3, "", "")


def test_on_a_terminal_run_batch_says_one_line_of_figures(process: Any, write: Write) -> None:
    write(Client, "ping")
    ours, theirs = pty.openpty()
    ended = process("run-batch", "--module", "outbox", stderr=theirs)
    out, _ = ended.communicate(timeout=60)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert (ended.returncode, out) == (0, "")
    said = said.rpartition("\x1b[2K")[2]  # on a busy machine it took a second, and a bar was drawn and erased
    assert said.strip().startswith("1 attempt in ")
    assert said.strip().endswith(" s: 1 succeeded.")
    assert said.count("\n") == 1


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> str:
    """The name of a module with a target that begins, says so in a file, and waits for another file."""
    pathlib.Path("slow_target.py").write_text(
        "import pathlib, time\n"
        "from async_task import target\n"
        "@target('test.slow')\n"
        "def slow(number: int) -> None:\n"
        "    pathlib.Path('began').touch()\n"
        "    while not pathlib.Path('go').exists():\n"
        "        time.sleep(0.01)\n"
    )
    monkeypatch.delitem(sys.modules, "slow_target", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("slow_target")
    return "slow_target"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_at_the_first_signal_run_batch_finishes_what_is_in_hand_and_starts_nothing(
    process: Any, engine: Engine, write: Write, slow: str, number: signal.Signals
) -> None:
    ids = [write("test.slow", None, {"number": one}).id for one in range(3)]
    running = process("run-batch", "--module", slow, "--concurrency", "1")
    wait_for(pathlib.Path("began").exists)
    running.send_signal(number)
    assert "second signal" in running.stderr.readline()
    pathlib.Path("go").touch()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert "Traceback" not in err
    rows = [row_of(engine, one) for one in ids]
    assert [row.status for row in rows] == [Status.SUCCEEDED, Status.PENDING, Status.PENDING]
    assert [row.num_attempts for row in rows] == [1, 0, 0]
    assert all(row.claim_id is None for row in rows)


def test_the_second_signal_abandons_what_a_sweep_then_gives_back(
    process: Any, run: Run, engine: Engine, write: Write, slow: str
) -> None:
    attempt = write("test.slow", None, {"number": 1})
    running = process("run-batch", "--module", slow)
    wait_for(pathlib.Path("began").exists)
    running.send_signal(signal.SIGTERM)
    running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 143
    assert row_of(engine, attempt.id).claim_id is not None
    forget_beats(engine)
    let_pass(engine, dt.timedelta(minutes=1))
    assert run("sweep", "--json").json == {"recovered": 1, "crashed": 0, "expired": 0}
    assert row_of(engine, attempt.id).status is Status.PENDING


# list


def test_list_shows_the_oldest_first_with_counts_on_80_columns(run: Run, engine: Engine, write: Write) -> None:
    older, newer = write(Client, "ping"), write(discreet, None, {"password": "p", "amount": 1})
    let_pass(engine, dt.timedelta(hours=1))
    run("run-batch", "--limit", "1")
    said = run("list")
    lines = said.out.splitlines()
    assert lines[0].split() == ["ID", "STATUS", "TRIES", "CALL"]
    assert lines[1].split() == [str(older.id), "succeeded", "1", "test.client.ping"]
    assert lines[2].split() == [str(newer.id), "pending", "0", "test.discreet"]
    assert lines[-1] == "2 attempts: 1 pending, 1 succeeded."
    assert max(map(len, lines)) <= 80
    assert (said.code, said.err, "\x1b" in said.out) == (0, "", False)


def test_list_as_json_writes_one_object_a_line_without_arguments(run: Run, write: Write) -> None:
    attempts = [write(Client, "fulfill", {"customer_token": "hush", "order_number": n}) for n in range(3)]
    said = run("list", "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["id"] for row in rows] == [str(attempt.id) for attempt in attempts]
    assert [(row["status"], row["target"], row["method_name"]) for row in rows] == [
        ("pending", "test.client", "fulfill")
    ] * 3
    assert dt.datetime.fromisoformat(rows[0]["due_at"]).utcoffset() == dt.timedelta(0)
    assert "hush" not in said.out


def test_list_filters_by_status_and_target_and_counts_what_the_limit_hides(run: Run, write: Write) -> None:
    for _ in range(3):
        write(Client, "ping")
    write(discreet, None, {"password": "p", "amount": 1})
    assert len(run("list", "--json", "--target", "test.discreet").out.splitlines()) == 1
    assert run("list", "--json", "--status", "failed", "--status", "expired").out == ""
    assert run("list", "--status", "failed").out == "No attempts.\n"
    assert run("list", "--limit", "2").out.splitlines()[-1] == "4 attempts, the oldest 2 of them shown: 4 pending."


def test_a_wide_terminal_also_sees_when_and_why(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Client, "fail", {"message": "no \x1b[31msuch order"})
    run("run-batch")
    monkeypatch.setenv("COLUMNS", "160")
    said = run("list").out
    assert "Broken: no \\x1b[31msuch order" in said
    assert "due in 59 s" in said or "due in 1 min" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("no_color", [None, "1"])
def test_colours_are_for_terminals_without_no_color(
    process: Any, write: Write, monkeypatch: pytest.MonkeyPatch, no_color: str | None
) -> None:
    write(Client, "ping")
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    ours, theirs = pty.openpty()
    ended = process("list", stdout=theirs)
    _, err = ended.communicate(timeout=60)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert (ended.returncode, err) == (0, "")
    assert ("\x1b[33mpending" in said) is (no_color is None)


def test_a_closed_standard_output_ends_quietly(process: Any, write: Write) -> None:
    for _ in range(20):
        write(Client, "ping")
    for words in (["list"], ["list", "--json"]):
        ended = process(*words)
        ended.stdout.close()
        assert (ended.stderr.read(), ended.wait(timeout=60)) == ("", 0)


# show


def test_show_tells_all_fields_in_plain_words_and_every_event(run: Run, write: Write) -> None:
    attempt = write(Client, "fail", {"message": "no such order"}, idempotence_token="order-7", max_attempts=9)
    run("run-batch")
    said = run("show", str(attempt.id))
    words = " ".join(said.out.split())
    for part in (
        f"Attempt {attempt.id}",
        "call test.client.fail",
        "status pending, due in",
        "arguments message = 'no such order'",
        "starts 1, 1 error; at most 9 errors",
        "last error Broken: no such order",
        "expires never",
        "queue default, priority 0",
        "held by nobody",
        "token order-7",
        "error of try 1",
    ):
        assert part in words
    assert "Traceback" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert "raise Broken(message)" in run("show", str(attempt.id), "--traceback").out


def test_show_as_json_has_every_field_arguments_and_events(run: Run, write: Write) -> None:
    attempt = write(Client, "fail", {"message": "no such order"})
    run("run-batch")
    shown = run("show", "--json", str(attempt.id)).json
    assert shown["method_args"] == {"message": "no such order"}
    assert (shown["status"], shown["num_errors"], shown["last_error"]) == ("pending", 1, "Broken: no such order")
    assert set(shown) >= {
        "id",
        "target",
        "due_at",
        "lease_until",
        "claim_id",
        "expires_at",
        "created_at",
        "encryptor",
        "queue",
    }
    (event,) = shown["events"]
    assert (event["kind"], event["num_attempt"], event["message"]) == ("error", 1, "Broken: no such order")
    assert "detail" not in event
    assert "Traceback" in run("show", "--json", "--traceback", str(attempt.id)).json["events"][0]["detail"]


def test_what_the_target_redacts_is_not_shown(run: Run, write: Write) -> None:
    attempt = write(discreet, None, {"password": "hush", "amount": 3})
    said = run("show", str(attempt.id)).out
    assert "password = [hidden]" in said
    assert "amount = 3" in said
    assert run("show", str(attempt.id), "--json").json["method_args"] == {"password": "[hidden]", "amount": 3}
    assert "hush" not in said


def test_encrypted_arguments_are_a_name_and_a_length(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(discreet, None, {"password": "hush", "amount": 3}, encryptor="test.reversing")
    length = len(row_of(engine, attempt.id).method_args)
    said = run("show", str(attempt.id)).out
    assert f"encrypted by 'test.reversing', {length} characters" in " ".join(said.split())
    shown = run("show", str(attempt.id), "--json").json
    assert (shown["method_args"], shown["encryptor"], shown["encrypted_length"]) == (None, "test.reversing", length)
    assert "hush" not in said + json.dumps(shown)


def test_arguments_of_a_target_that_is_not_known_here_stay_hidden(process: Any, write: Write) -> None:
    attempt = write(discreet, None, {"password": "hush", "amount": 3})
    out, _ = process("show", str(attempt.id)).communicate(timeout=60)
    assert "hush" not in out
    assert "test.discreet is not known here" in " ".join(out.split())


def test_an_event_cannot_talk_to_the_terminal(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    event = {
        "job_type": "async_task_attempts",
        "job_id": str(attempt.id),
        "kind": "note",
        "message": "[red]\x1b]0;ha\x07",
    }
    with engine.begin() as connection:
        connection.execute(insert(JobEvent).values(actor="\x1b[2J", **event))
    said = run("show", str(attempt.id)).out
    assert "[red]\\x1b]0;ha\\x07" in said
    assert not {"\x1b", "\x07"} & set(said)


def test_show_of_an_attempt_that_is_not_there_ends_1(run: Run) -> None:
    said = run("show", str(uuid.uuid4()))
    assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
    assert "there is no attempt" in said.err


# sweep, install


def test_sweep_expires_recovers_and_counts(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    let_pass(engine, dt.timedelta(hours=2))
    assert run("sweep", "--json").json == {"recovered": 0, "crashed": 0, "expired": 1}
    assert row_of(engine, attempt.id).status is Status.EXPIRED
    said = run("sweep")
    assert (said.code, said.out, said.err, calls) == (0, "", "", [])


def test_install_apply_makes_the_tables_and_may_be_repeated(say: Run) -> None:
    url = "--database-url=sqlite:///new.sqlite"
    for _ in range(2):
        said = say("install", "--apply", url)
        assert (said.code, said.out, said.err) == (0, "", "The tables of async-task are in sqlite:///new.sqlite.\n")
    assert say("list", url).out == "No attempts.\n"


# Finding the application


@pytest.fixture
def project() -> str:
    """The name of a module in the working directory, with an application `app` in which one attempt waits."""
    name = f"project_{uuid.uuid4().hex}"
    pathlib.Path(f"{name}.py").write_text(
        "from async_task import AsyncTask\n"
        f"app = AsyncTask('sqlite:///{pathlib.Path.cwd()}/project.sqlite', modules=['outbox'])\n"
        "number = 7\n"
    )
    assert main(["install", "--apply", "--app", f"{name}:app"]) == 0
    return name


def test_the_application_is_found_by_option_environment_and_pyproject(
    say: Run, project: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    name = f"{project}:app"
    assert say("--app", name, "list").out == say("list", "--app", name).out == "No attempts.\n"
    monkeypatch.setenv("ASYNC_TASK_APP", name)
    assert say("list").out == "No attempts.\n"
    monkeypatch.setenv("ASYNC_TASK_APP", "")
    pathlib.Path("pyproject.toml").write_text(f'[tool.async-task]\napp = "{name}"\n')
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert say("list").out == "No attempts.\n"


def test_an_option_wins_over_the_environment_and_that_over_pyproject(
    say: Run, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pathlib.Path("pyproject.toml").write_text('[tool.async-task]\napp = "nowhere:app"\n')
    monkeypatch.setenv("ASYNC_TASK_APP", f"{project}:app")
    monkeypatch.setenv("ASYNC_TASK_DATABASE_URL", UNREACHABLE)
    assert say("list").code == 0
    assert "there is no database other.sqlite" in say("list", "--database-url", "sqlite:///other.sqlite").err


def test_modules_are_imported_with_a_bare_database(run: Run, write: Write) -> None:
    pathlib.Path("greetings_of_cli.py").write_text(
        "from async_task import target\n@target('test.hi')\ndef hi() -> None: ...\n"
    )
    assert run("list", "--module", "greetings_of_cli").code == 0
    write("test.hi")
    assert run("run-batch", "--module", "greetings_of_cli", "--json").json["succeeded"] == 1


# What went wrong


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
        ("show 17", 2, "'17' is no id"),
        ("list --app shop --database-url sqlite:///x", 2, "--app brings its own database"),
        ("--app shop list --database-url sqlite:///x", 2, "--app brings its own database"),
        ("list --app shop", 2, "module:name"),
        ("list --app no_such_module:app", 78, "there is no module 'no_such_module'"),
        ("list --app json:app", 78, "json has no 'app'"),
        ("list --app json:dumps", 78, "is of type function, and no AsyncTask"),
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
def test_what_is_wrong_is_said_in_one_sentence_with_the_right_code(
    words: str, code: int, part: str, tmp_path: pathlib.Path
) -> None:
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


def test_debug_shows_the_traceback_without_the_password(say: Run) -> None:
    said = say("list", "--debug", "--database-url", UNREACHABLE)
    assert said.code == 69
    assert "Traceback" in said.err
    assert "s3cret" not in said.err
    assert say("--debug", "list", "--database-url", UNREACHABLE).err.startswith("Traceback")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT no_such_column FROM async_task_attempts",
        "SELECT 1 FROM no_such_table",
        "ALTER TABLE async_task_attempts DROP COLUMN no_such_column",
    ],
)
def test_a_statement_that_is_refused_is_no_database_that_is_away(engine: Engine, statement: str) -> None:
    with engine.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(text(statement))
    code, words = verdict(refused.value)
    assert (code, words.startswith("the database refused: ")) == (1, True)


@pytest.mark.only_on("mysql")
def test_a_lock_that_was_not_got_in_time_passes_by_itself_also_where_the_driver_tells_a_state(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(text("SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1205, MESSAGE_TEXT = 'Lock wait timeout'"))
    assert is_transient(refused.value.orig)


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("wrong", [{"database": "no_such_database"}, {"username": "nobody", "password": "s3cret"}])
def test_a_database_that_is_not_there_or_lets_nobody_in_ends_69(
    say: Run, database: Database, wrong: dict[str, str]
) -> None:
    url = make_url(database.sync_url).set(**wrong).render_as_string(hide_password=False)  # type: ignore[arg-type]
    said = say("list", "--database-url", url)
    assert (said.code, said.out, said.err.count("\n")) == (69, "", 1)
    assert said.err.startswith("async-task: the database cannot be used: ")


class Noted(Rows):
    """A user's own table, whose database quotes what it refuses."""

    __tablename__ = "noted"

    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(String(40), unique=True)
    number: Mapped[int]


@pytest.mark.parametrize("values", ["(1, 'hush', 1), (2, 'hush', 2)", "(1, 'a', 'hush')", "(1, 'hush', NULL)"])
def test_what_a_database_quotes_of_a_row_is_neither_said_nor_traced(engine: Engine, values: str) -> None:
    try:
        with engine.begin() as connection:
            connection.execute(text(f"INSERT INTO noted (id, word, number) VALUES {values}"))
            connection.execute(text("DELETE FROM noted"))  # SQLite takes a text for a number
    except DBAPIError as error:
        said = verdict(error)[1] + trace_of(error)
        assert "Traceback" in said
        assert "hush" not in said
    else:
        assert engine.dialect.name == "sqlite"


def test_tables_of_another_version_end_78(say: Run) -> None:
    from sqlalchemy import create_engine

    from async_task.schema.tables import SchemaVersion

    assert say("install", "--apply", "--database-url", "sqlite:///old.sqlite").code == 0
    engine = create_engine("sqlite:///old.sqlite")
    with engine.begin() as connection:
        connection.execute(update(SchemaVersion).values(version=99))
    engine.dispose()
    for command in (["list"], ["run-batch"], ["install", "--apply"]):
        said = say(*command, "--database-url", "sqlite:///old.sqlite")
        assert (said.code, said.out, said.err.count("\n")) == (78, "", 1)
        assert "version 99" in said.err


def test_a_name_that_this_terminal_cannot_show_is_spelled_out(
    process: Any, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write(Client, "fulfill", {"customer_token": "Zoë 🦊", "order_number": 7})
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = process("show", str(attempt.id), "--module", "outbox")
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, err) == (0, "")
    assert "Zo\\xeb" in out


def _files(folder: pathlib.Path) -> dict[str, int]:
    return {str(one): one.stat().st_size for one in folder.rglob("*") if "__pycache__" not in one.parts}


def test_with_its_standard_streams_closed_it_works_unheard(tmp_path: pathlib.Path) -> None:
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
