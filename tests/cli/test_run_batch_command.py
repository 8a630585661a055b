"""`async-task run-batch`: what each of its options does, what it prints and where, and what it ends with."""

import json
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, update

from async_task import Attempt, Status
from async_task_cli.main import main
from clockwork import row_of
from databases import Database
from elsewhere import Program, await_, notes
from outbox import Client, Elsewhere, calls, effect
from terminals import Terminal

Write = Callable[..., Attempt]
Run = Callable[..., tuple[int, str, str]]
TABLE: Any = Attempt.__table__


@pytest.fixture(autouse=True)
def _alone(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], engine: Engine, database: Database) -> Run:
    """`run("--limit", "1")`: in this process, on this test's database; exit code, output, words."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(["run-batch", *words, "--database-url", database.sync_url]), *capsys.readouterr())

    return run


@pytest.fixture
def start(process: Callable[..., Program]) -> Callable[..., Program]:
    """The same in a process of its own."""
    return lambda *words, **options: process("run-batch", "--module", "outbox", *words, **options)


# What is due, in part


def test_queue_and_target_may_be_repeated_and_leave_the_rest_alone(run: Run, engine: Engine, write: Write) -> None:
    made = {queue: write(Client, "ping", queue=queue) for queue in ("default", "mail", "slow")}
    other = write(effect, queue="mail")
    code, out, err = run("--queue", "mail", "--queue", "slow", "--target", "test.client", "--json")
    assert (code, json.loads(out)["succeeded"], err) == (0, 2, "")
    starts = {queue: row_of(engine, attempt.id).num_attempts for queue, attempt in made.items()}
    assert (starts, row_of(engine, other.id).num_attempts) == ({"default": 0, "mail": 1, "slow": 1}, 0)
    code, out, _ = run("--target", "test.effect", "--target", "test.client", "--json")
    assert (code, json.loads(out)["succeeded"]) == (0, 2)


def test_an_unknown_queue_is_one_in_which_nothing_is_due(run: Run, write: Write) -> None:
    write(Client, "ping")
    assert run("--queue", "nobody's") == (0, "", "")
    assert not calls


def test_an_unknown_target_ends_78_with_the_name_that_may_be_meant(run: Run, write: Write) -> None:
    write(Client, "ping")
    for words in ([], ["--dry-run"]):
        code, out, err = run("--target", "test.cleint", *words)
        assert (code, out, err.count("\n")) == (78, "", 1)
        assert "no target is registered as 'test.cleint' in this process (did you mean 'test.client'?)" in err
    assert not calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--limit -1", "-1 is not in the range x>=0"),
        ("--limit many", "'many' is not a valid integer"),
        ("--max-seconds -1", "-1.0 is not in the range x>=0"),
        ("--max-seconds soon", "'soon' is not a valid float"),
        ("--max-seconds nan", "nan is no length of time"),
        ("--max-seconds inf", "inf is no length of time"),
        ("--concurrency 0", "0 is not in the range x>=1"),
        ("--concurrency two", "'two' is not a valid integer"),
        ("--overlap wait", "'wait' is not one of 'allow', 'skip', 'fail'"),
        ("--fail-on retried", "'retried' is not"),
        ("--queue=", "a name has at least one character"),
        ("--target=", "a name has at least one character"),
        ("--queues mail", "--queues"),
    ],
)
def test_what_cannot_be_meant_ends_2_in_one_sentence(capsys: pytest.CaptureFixture[str], words: str, said: str) -> None:
    assert main(["run-batch", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "Traceback" in err) == ("", 1, False)
    assert said in err


# For a time


def test_no_time_left_ends_75_and_says_how_many_are_left(run: Run, engine: Engine, write: Write) -> None:
    first, *_ = [write(Client, "ping") for _ in range(2)]
    assert run("--max-seconds", "0") == (75, "", "async-task: no time left: 2 attempts are due and not started\n")
    code, out, err = run("--max-seconds", "0", "--queue", "default", "--json")
    assert (code, json.loads(out)["left"], err.count("\n")) == (75, 2, 1)
    assert row_of(engine, first.id).num_attempts == 0
    assert run("--max-seconds", "600") == (0, "", "")
    assert run("--max-seconds", "0") == (0, "", "")
    assert len(calls) == 2


def test_what_failed_for_good_weighs_more_than_what_is_left(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from async_task import BatchReport
    from async_task.app import AsyncTask

    for numbers, words, code in (({"failed": 1}, ["--fail-on", "failed"], 3), ({"failed": 1}, [], 75), ({}, [], 75)):
        report = BatchReport(claimed=1, left=10_000, **numbers)
        monkeypatch.setattr(AsyncTask, "run_batch", lambda *_, _report=report, **__: _report)
        said = "async-task: no time left: 10,000 or more attempts are due and not started\n"
        assert run(*words) == (code, "", said)


# Beside another one


def test_overlap_skips_fails_or_allows_while_another_process_is_at_work(
    run: Run, start: Any, write: Write, tmp_path: pathlib.Path
) -> None:
    write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start("--concurrency", "1")
    await_(lambda: notes(tmp_path), "it is in the call")
    write(Client, "ping")
    assert run("--overlap", "skip") == (0, "", "")
    code, out, err = run("--overlap", "skip", "--json")
    report = json.loads(out)
    assert (code, report["claimed"], report["overlapped"]["pid"], err) == (0, 0, working.pid, "")
    assert set(report["overlapped"]) == {"worker", "host", "pid", "started_at"}
    code, out, err = run("--overlap", "fail")
    assert (code, out, err.count("\n")) == (75, "", 1)
    assert err.startswith(f"async-task: another batch is at work: process {working.pid} on ")
    assert f"process {working.pid} on" in run("--dry-run")[1]
    assert not calls
    assert run() == (0, "", "")
    assert len(calls) == 1
    (tmp_path / "go").touch()
    assert working.wait(60) == 0
    assert run("--overlap", "fail") == (0, "", "")


# Dry


def test_a_dry_run_says_what_is_due_for_people_and_programs_and_does_nothing(
    run: Run, engine: Engine, write: Write
) -> None:
    ping, strange = write(Client, "ping"), write(Client, "ping", queue="mail")
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == strange.id).values(target="nobody.knows"))
    before = [row_of(engine, one.id) for one in (ping, strange)]
    code, out, err = run("--dry-run", "--limit", "1", "--max-seconds", "0", "--overlap", "fail")
    lines = out.splitlines()
    assert (code, err, max(map(len, lines)) <= 80, "\x1b" in out) == (0, "", True, False)
    assert [line.split() for line in lines[:3]] == [
        ["QUEUE", "TARGET", "DUE"], ["default", "test.client", "1"], ["mail", "nobody.knows", "1"],
    ]  # fmt: skip
    assert "1 attempt of nobody.knows in mail would be parked: UnknownTarget:" in " ".join(out.split())
    assert lines[-2] == "2 attempts are due, of which a run with this limit starts 1."
    assert lines[-1] == "Nothing was done: this is a dry run."
    code, out, err = run("--dry-run", "--json")
    assert (code, err) == (0, "")
    problem = json.loads(out)["calls"][1].pop("problems")
    assert problem[0].startswith("UnknownTarget: ")
    data = json.loads(out)
    data["calls"][1]["problems"] = []
    assert data == {
        "dry_run": True,
        "due": 2,
        "calls": [
            {"queue": "default", "target": "test.client", "due": 1, "unperformable": 0, "problems": []},
            {"queue": "mail", "target": "nobody.knows", "due": 1, "unperformable": 1, "problems": []},
        ],
        "to_recover": 0,
        "to_expire": 0,
        "paused": [],
        "overlapped": None,
    }
    assert [row_of(engine, one.id) for one in (ping, strange)] == before
    assert run("--dry-run", "--queue", "slow")[1] == "Nothing is due.\nNothing was done: this is a dry run.\n"


# What programs read


def test_json_has_these_fields_at_least_and_help_names_each(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    report, dry = json.loads(run("--json")[1]), json.loads(run("--json", "--dry-run")[1])
    ended = {"claimed", "succeeded", "retried", "failed", "expired", "canceled", "parked", "superseded"}
    assert ended | {"recovered", "crashed", "seconds", "left", "overlapped"} <= set(report)
    assert set(dry) >= {"dry_run", "due", "calls", "to_recover", "to_expire", "overlapped"}
    main(["run-batch", "--help"])
    told = capsys.readouterr().out
    assert not [name for name in (*report, *dry) if name not in told]


# What people see


def test_past_a_second_a_bar_is_drawn_on_a_terminal_and_is_gone_at_the_end(
    start: Any, write: Write, tmp_path: pathlib.Path
) -> None:
    write(Elsewhere, "say", {"text": "a word of a target"}, priority=9)
    write(Elsewhere, "hold", {"folder": str(tmp_path)}, priority=0)
    terminal = Terminal()
    working = start("--concurrency", "1", "--json", stderr=terminal.theirs)
    terminal.await_words("0/2")
    (tmp_path / "go").touch()
    out, _ = working.communicate(timeout=60)
    said = terminal.close()
    assert (working.returncode, json.loads(out)["succeeded"]) == (0, 2)
    assert "a word of a target" in said
    assert "\x1b[2K" in said.rpartition("/2")[2], "the bar is erased"


def test_the_second_signal_leaves_the_terminal_its_cursor(start: Any, write: Write, tmp_path: pathlib.Path) -> None:
    write(Elsewhere, "hold", {"folder": str(tmp_path)})
    terminal = Terminal()
    working = start("--concurrency", "1", stderr=terminal.theirs)
    terminal.await_words("\x1b[?25l")
    working.send_signal(signal.SIGINT)
    terminal.await_words("a second signal abandons it")
    working.send_signal(signal.SIGINT)
    assert working.wait(60) == 130
    assert "\x1b[?25h" in terminal.close().rpartition("\x1b[?25l")[2]


def test_without_a_terminal_nothing_is_drawn_however_long_it_takes(
    start: Any, write: Write, tmp_path: pathlib.Path
) -> None:
    write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start()
    await_(lambda: notes(tmp_path), "it is in the call")
    since = time.monotonic()
    await_(lambda: time.monotonic() - since > 1.2, "a bar would have been drawn")
    (tmp_path / "go").touch()
    assert working.communicate(timeout=60) == ("", "")
    assert working.returncode == 0


def test_on_a_terminal_skipping_is_told(start: Any, write: Write, tmp_path: pathlib.Path) -> None:
    attempt = write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start()
    await_(lambda: notes(tmp_path), "it is in the call")
    terminal = Terminal()
    second = start("--overlap", "skip", stderr=terminal.theirs)
    assert second.communicate(timeout=60)[0] == ""
    said = terminal.close()
    assert said.startswith(f"Nothing was done: another batch is at work: process {working.pid} on ")
    (tmp_path / "go").touch()
    assert (second.returncode, working.wait(60), attempt.status) == (0, 0, Status.PENDING)
