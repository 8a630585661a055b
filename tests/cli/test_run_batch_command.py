"""`async-task run-batch`: what each option does, what it prints and where, and its exit codes."""

import json
import os
import pathlib
import pty
import signal
import sys
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
from said import Run
from terminals import Terminal, heard_to_the_end

Write = Callable[..., Attempt]


Batch = Callable[..., tuple[int, str, str]]


TABLE: Any = Attempt.__table__


@pytest.fixture(autouse=True)
def _alone(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def batch(capsys: pytest.CaptureFixture[str], engine: Engine, database: Database) -> Batch:
    """`batch("--limit", "1")`: in this process, on this test's database; exit code, output, words."""

    def batch(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(["run-batch", *words, "--database-url", database.sync_url]), *capsys.readouterr())

    return batch


@pytest.fixture
def start(process: Callable[..., Program]) -> Callable[..., Program]:
    """The same in a process of its own."""
    return lambda *words, **options: process("run-batch", "--module", "outbox", *words, **options)


@pytest.mark.slow
def test_queue_and_target_may_be_repeated_and_leave_other_attempts_alone(
    batch: Batch, engine: Engine, write: Write
) -> None:
    made = {queue: write(Client, "ping", queue=queue) for queue in ("default", "mail", "slow")}
    other = write(effect, queue="mail")
    code, out, err = batch("--queue", "mail", "--queue", "slow", "--target", "test.client", "--json")
    assert (code, json.loads(out)["succeeded"], err) == (0, 2, "")
    starts = {queue: row_of(engine, attempt.id).num_attempts for queue, attempt in made.items()}
    assert (starts, row_of(engine, other.id).num_attempts) == ({"default": 0, "mail": 1, "slow": 1}, 0)
    code, out, _ = batch("--target", "test.effect", "--target", "test.client", "--json")
    assert (code, json.loads(out)["succeeded"]) == (0, 2)


@pytest.mark.slow
def test_in_an_unknown_queue_nothing_is_due(batch: Batch, write: Write) -> None:
    write(Client, "ping")
    assert batch("--queue", "nobody's") == (0, "", "")
    assert not calls


def test_a_dry_run_says_which_queue_nothing_knows(batch: Batch, write: Write) -> None:
    write(Client, "ping", queue="mail")
    code, _, err = batch("--queue", "mial", "--queue", "default", "--dry-run")
    assert (code, err.count("async-task: no queue is named")) == (0, 1)
    assert "'mial' (did you mean 'mail'?)" in err


def test_an_unknown_target_ends_78_with_the_nearest_name(batch: Batch, write: Write) -> None:
    write(Client, "ping")
    for words in ([], ["--dry-run"]):
        code, out, err = batch("--target", "test.cleint", *words)
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
        ("--max-seconds nan", "nan is not a length of time"),
        ("--max-seconds inf", "inf is not a length of time"),
        ("--concurrency 0", "0 is not in the range x>=1"),
        ("--concurrency two", "'two' is not a valid integer"),
        ("--overlap wait", "'wait' is not one of 'allow', 'skip', 'fail'"),
        ("--fail-on retried", "'retried' is not"),
        ("--queue=", "a name has at least one character"),
        ("--target=", "a name has at least one character"),
        ("--queues mail", "--queues"),
    ],
)
def test_invalid_options_end_2_in_one_sentence(capsys: pytest.CaptureFixture[str], words: str, said: str) -> None:
    assert main(["run-batch", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "Traceback" in err) == ("", 1, False)
    assert said in err


@pytest.mark.slow
def test_no_time_left_ends_75_with_how_many_are_left(batch: Batch, engine: Engine, write: Write) -> None:
    first, *_ = [write(Client, "ping") for _ in range(2)]
    assert batch("--max-seconds", "0") == (75, "", "async-task: no time left: 2 attempts are due and not started\n")
    code, out, err = batch("--max-seconds", "0", "--queue", "default", "--json")
    assert (code, json.loads(out)["left"], err.count("\n")) == (75, 2, 1)
    assert row_of(engine, first.id).num_attempts == 0
    assert batch("--max-seconds", "600") == (0, "", "")
    assert batch("--max-seconds", "0") == (0, "", "")
    assert len(calls) == 2


def test_a_failure_for_good_has_precedence_over_attempts_left(
    batch: Batch, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from async_task import BatchReport
    from async_task.application.app import AsyncTask

    for numbers, words, code in (({"failed": 1}, ["--fail-on", "failed"], 3), ({"failed": 1}, [], 75), ({}, [], 75)):
        report = BatchReport(claimed=1, left=10_000, **numbers)
        monkeypatch.setattr(AsyncTask, "run_batch", lambda *_, _report=report, **__: _report)
        said = "async-task: no time left: 10,000 or more attempts are due and not started\n"
        assert batch(*words) == (code, "", said)


@pytest.mark.slow
def test_overlap_skips_fails_or_allows_while_another_run_is_running(
    batch: Batch, start: Any, write: Write, tmp_path: pathlib.Path
) -> None:
    write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start("--concurrency", "1")
    await_(lambda: notes(tmp_path), "it is in the call")
    write(Client, "ping")
    assert batch("--overlap", "skip") == (0, "", "")
    code, out, err = batch("--overlap", "skip", "--json")
    report = json.loads(out)
    assert (code, report["claimed"], report["overlapped"]["pid"], err) == (0, 0, working.pid, "")
    assert set(report["overlapped"]) == {"worker", "host", "pid", "started_at"}
    code, out, err = batch("--overlap", "fail")
    assert (code, out, err.count("\n")) == (75, "", 1)
    assert err.startswith(f"async-task: another batch is running: process {working.pid} on ")
    assert f"process {working.pid} on" in batch("--dry-run")[1]
    assert not calls
    assert batch() == (0, "", "")
    assert len(calls) == 1
    (tmp_path / "go").touch()
    assert working.wait(60) == 0
    assert batch("--overlap", "fail") == (0, "", "")


@pytest.mark.slow
def test_a_dry_run_shows_what_is_due_and_does_nothing(batch: Batch, engine: Engine, write: Write) -> None:
    ping, strange = write(Client, "ping"), write(Client, "ping", queue="mail")
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == strange.id).values(target="nobody.knows"))
    before = [row_of(engine, one.id) for one in (ping, strange)]
    code, out, err = batch("--dry-run", "--limit", "1", "--max-seconds", "0", "--overlap", "fail")
    lines = out.splitlines()
    assert (code, err, max(map(len, lines)) <= 80, "\x1b" in out) == (0, "", True, False)
    assert [line.split() for line in lines[:3]] == [
        ["QUEUE", "TARGET", "DUE"], ["default", "test.client", "1"], ["mail", "nobody.knows", "1"],
    ]  # fmt: skip
    assert "1 attempt of nobody.knows in mail cannot be performed here: UnknownTarget:" in " ".join(out.split())
    assert lines[-2] == "2 attempts are due; a run with this limit starts 1 of them."
    assert lines[-1] == "Nothing was done: this is a dry run."
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == strange.id).values(target="n" * 200))
    assert batch("--dry-run")[1].splitlines()[2].split() == ["mail", "n" * 200, "1"]
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == strange.id).values(target="nobody.knows"))
    code, out, err = batch("--dry-run", "--json")
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
    assert batch("--dry-run", "--queue", "slow")[1] == "Nothing is due.\nNothing was done: this is a dry run.\n"


@pytest.mark.slow
def test_json_has_the_fields_that_help_names(batch: Batch, capsys: pytest.CaptureFixture[str]) -> None:
    report, dry = json.loads(batch("--json")[1]), json.loads(batch("--json", "--dry-run")[1])
    ended = {"claimed", "succeeded", "retried", "failed", "expired", "canceled", "parked", "superseded"}
    assert ended | {"recovered", "seconds", "left", "overlapped"} <= set(report)
    assert set(dry) >= {"dry_run", "due", "calls", "to_recover", "to_expire", "overlapped"}
    main(["run-batch", "--help"])
    told = capsys.readouterr().out
    assert not [name for name in (*report, *dry) if name not in told]


@pytest.mark.slow
def test_after_a_second_a_progress_bar_is_drawn_on_a_terminal_until_the_end(
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


@pytest.mark.slow
def test_the_second_signal_shows_the_cursor_again(start: Any, write: Write, tmp_path: pathlib.Path) -> None:
    write(Elsewhere, "hold", {"folder": str(tmp_path)})
    terminal = Terminal()
    working = start("--concurrency", "1", stderr=terminal.theirs)
    terminal.await_words("\x1b[?25l")
    working.send_signal(signal.SIGINT)
    terminal.await_words("a second signal abandons them")
    working.send_signal(signal.SIGINT)
    assert working.wait(60) == 130
    assert "\x1b[?25h" in terminal.close().rpartition("\x1b[?25l")[2]


@pytest.mark.slow
def test_without_a_terminal_no_progress_bar_is_drawn(start: Any, write: Write, tmp_path: pathlib.Path) -> None:
    write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start()
    await_(lambda: notes(tmp_path), "it is in the call")
    since = time.monotonic()
    await_(lambda: time.monotonic() - since > 1.2, "a bar would have been drawn")
    (tmp_path / "go").touch()
    assert working.communicate(timeout=60) == ("", "")
    assert working.returncode == 0


@pytest.mark.slow
def test_on_a_terminal_a_skipped_run_says_so(start: Any, write: Write, tmp_path: pathlib.Path) -> None:
    attempt = write(Elsewhere, "hold", {"folder": str(tmp_path)})
    working = start()
    await_(lambda: notes(tmp_path), "it is in the call")
    terminal = Terminal()
    second = start("--overlap", "skip", stderr=terminal.theirs)
    assert second.communicate(timeout=60)[0] == ""
    said = terminal.close()
    assert said.startswith(f"Nothing was done: another batch is running: process {working.pid} on ")
    (tmp_path / "go").touch()
    assert (second.returncode, working.wait(60), attempt.status) == (0, 0, Status.PENDING)


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


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


@pytest.mark.slow
def test_run_batch_performs_what_is_due_and_prints_nothing_without_a_terminal(
    run: Run, engine: Engine, write: Write
) -> None:
    attempt = write(Client, "fulfill", {"customer_token": "c-1", "order_number": 7})
    said = run("run-batch")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert calls == [("c-1", 7)]
    assert row_of(engine, attempt.id).status is Status.SUCCEEDED


@pytest.mark.slow
def test_run_batch_with_nothing_due_ends_0(run: Run) -> None:
    assert (run("run-batch").code, run("run-batch", "--json").json["claimed"]) == (0, 0)


@pytest.mark.slow
def test_run_batch_as_json_counts_the_outcomes(run: Run, write: Write) -> None:
    write(Client, "ping")
    write(Client, "fail")
    report = run("run-batch", "--json", "--concurrency", "2").json
    assert {name: report[name] for name in ("claimed", "succeeded", "retried", "failed")} == {
        "claimed": 2,
        "succeeded": 1,
        "retried": 1,
        "failed": 0,
    }


@pytest.mark.slow
def test_run_batch_stops_at_its_limit(run: Run, write: Write) -> None:
    for _ in range(3):
        write(Client, "ping")
    assert run("run-batch", "--limit", "2", "--json").json["succeeded"] == 2
    assert run("run-batch", "--limit", "0", "--json").json["claimed"] == 0
    assert run("run-batch", "--json").json["succeeded"] == 1


@pytest.mark.slow
def test_a_failure_ends_3_only_with_fail_on_and_a_retry_never(run: Run, write: Write) -> None:
    write(Client, "fail")
    assert run("run-batch", "--fail-on", "failed").code == 0
    write(Client, "give_up", {"reason": "no"})
    assert run("run-batch").code == 0
    write(Client, "give_up", {"reason": "no"})
    said = run("run-batch", "--fail-on", "failed")
    assert (said.code, said.out) == (3, "")


@pytest.mark.slow
def test_final_failures_are_one_line_for_each_group_on_standard_error(run: Run, process: Any, write: Write) -> None:
    for number in (1, 2):
        latest = write(Client, "give_up", {"reason": f"no order {number}"})
    other = write(Client, "fail", max_attempts=1)
    ended = process("run-batch", "--module", "outbox", "--concurrency", "1")
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, out) == (0, "")
    assert sorted(err.splitlines()) == [
        f"async-task: 1 call of test.client.fail failed for good: max_attempts used up: 1 of 1: Broken: no such order "
        f"(attempt {other.id})",
        f"async-task: 2 calls of test.client.give_up failed for good: Discard: no order 2 (the last one: attempt "
        f"{latest.id})",
    ]
    write(Client, "give_up", {"reason": "no"})
    [group] = run("run-batch", "--json").lines[0]["failures"]
    assert {name: group[name] for name in ("call", "status", "reason", "count")} == {
        "call": "test.client.give_up", "status": "failed", "reason": "Discard: no", "count": 1,
    }  # fmt: skip


@pytest.mark.slow
def test_on_a_terminal_run_batch_prints_one_line_of_figures(process: Any, write: Write) -> None:
    write(Client, "ping")
    ours, theirs = pty.openpty()
    ended = process("run-batch", "--module", "outbox", stderr=theirs)
    out, _ = ended.communicate(timeout=60)
    os.close(theirs)
    said = heard_to_the_end(ours)
    assert (ended.returncode, out) == (0, "")
    said = said.rpartition("\x1b[2K")[2]  # on a busy machine it took a second, and a bar was drawn and erased
    assert said.strip().startswith("1 attempt in ")
    assert said.strip().endswith(" s: 1 succeeded.")
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_the_first_signal_run_batch_finishes_running_calls_and_starts_none(
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


@pytest.mark.slow
def test_the_second_signal_releases_the_running_calls_uncharged(
    process: Any, engine: Engine, write: Write, slow: str
) -> None:
    attempt = write("test.slow", None, {"number": 1})
    running = process("run-batch", "--module", slow)
    wait_for(pathlib.Path("began").exists)
    running.send_signal(signal.SIGTERM)
    running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 143
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.num_attempts) == (Status.PENDING, None, 1)
    assert (row.num_errors, row.num_crashes, row.num_losses) == (0, 0, 0)
