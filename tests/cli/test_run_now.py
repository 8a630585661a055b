"""`async-task run-now`: attempts made due and performed here."""

import datetime as dt
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from async_task import Attempt
from clockwork import let_pass, row_of
from databases import Database
from elsewhere import await_
from outbox import Client, act, calls, events_of, will
from said import Run

Write = Callable[..., Attempt]


def statuses(engine: Engine, *written: Attempt) -> list[str]:
    return [row_of(engine, one.id).status.value for one in written]


@pytest.mark.slow
def test_run_now_performs_attempts_that_are_not_due_or_have_ended(run: Run, engine: Engine, write: Write) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    waiting, failed = write(Client, "ping", scheduled_at=later), write(Client, "ping")
    run("fail", "--reason", "so", str(failed.id))
    said = run("run-now", "--reason", "so", str(waiting.id), str(failed.id), "--actor", "anna")
    assert (said.code, said.out) == (0, f"{waiting.id}  succeeded\n{failed.id}  succeeded\n")
    assert statuses(engine, waiting, failed) == ["succeeded", "succeeded"]
    assert len(calls) == 2
    assert [(one.kind, one.actor) for one in events_of(engine, waiting.id)] == [("retry_now", "anna")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "args", "code", "outcome", "status", "part"),
    [
        ("fail", {"message": "no"}, 0, "retried", "pending", "will be retried in 1 min: Broken: no"),
        ("poll", {}, 0, "retried", "pending", "its next poll is in 30 s"),
        ("give_up", {"reason": "gone"}, 1, "failed", "failed", "failed: Discard: gone"),
    ],
)
def test_run_now_prints_the_outcome(
    run: Run, write: Write, method: str, args: Any, code: int, outcome: str, status: str, part: str
) -> None:
    attempt = write(Client, method, args)
    said = run("run-now", str(attempt.id))
    assert said.code == code
    assert part in (said.err if code else said.out)
    line = run("run-now", str(attempt.id), "--json").json
    assert (line["ok"], line["outcome"], line["status"]) == (not code, outcome, status)


@pytest.mark.slow
def test_run_now_leaves_a_call_of_an_unknown_target_and_ends_1(process: Any, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    ended = process("run-now", str(attempt.id))
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, out) == (1, "")
    assert "is left to other processes, uncharged: UnknownTarget" in err
    assert "no target is registered as 'test.client'" in err
    assert row_of(engine, attempt.id).num_attempts == 0


def test_what_a_target_prints_goes_to_standard_error(run: Run, write: Write) -> None:
    will(lambda: print("hello"))
    attempt = write(act)
    said = run("run-now", str(attempt.id))
    assert (said.out, said.err) == (f"{attempt.id}  succeeded\n", "hello\n")


@pytest.mark.slow
def test_after_a_signal_run_now_finishes_the_running_call_and_starts_no_other(
    process: Any, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    pathlib.Path("slow_now.py").write_text(
        "import pathlib, time\n"
        "from async_task import target\n"
        "@target('test.act')\n"
        "def slow() -> None:\n"
        "    pathlib.Path('began').touch()\n"
        "    while not pathlib.Path('go').exists():\n"
        "        time.sleep(0.01)\n"
    )
    first, second = write(act), write(act)
    running = process("run-now", "--reason", "so", str(first.id), str(second.id), "--module", "slow_now")
    until = time.monotonic() + 30
    while not pathlib.Path("began").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    assert "second signal" in running.stderr.readline()
    pathlib.Path("go").touch()
    out, _ = running.communicate(timeout=60)
    assert (running.returncode, out) == (143, f"{first.id}  succeeded\n")
    assert statuses(engine, first, second) == ["succeeded", "pending"]
    assert events_of(engine, second.id) == []


HANGING = {
    "plain": "def hang() -> None:\n    pathlib.Path('began').touch()\n    time.sleep(60)\n",
    "session": (
        "def hang(session: Session) -> None:\n"
        "    session.execute(text('SELECT 1'))\n"
        "    pathlib.Path('began').touch()\n"
        "    time.sleep(60)\n"
    ),
    "coroutine": "async def hang() -> None:\n    pathlib.Path('began').touch()\n    await asyncio.sleep(60)\n",
}
IMPORTS = "import asyncio, pathlib, time\nfrom sqlalchemy import text\nfrom sqlalchemy.orm import Session\n"


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("kind", "isolate", "is_async"),
    [
        ("plain", False, False),
        ("plain", True, False),
        ("plain", False, True),
        ("session", False, False),
        ("session", False, True),
        ("coroutine", False, False),
        ("coroutine", False, True),
    ],
)
def test_a_second_signal_abandons_the_call_of_run_now_and_releases_it_uncharged(
    process: Any, engine: Engine, database: Database, write: Write, kind: str, isolate: bool, is_async: bool
) -> None:
    url = database.async_url if is_async else database.sync_url
    decorated = f"from async_task import target\n@target('test.act', isolate={isolate})\n"
    pathlib.Path("hanging.py").write_text(IMPORTS + decorated + HANGING[kind])
    attempt, other = write(act), write(act)
    running = process(
        "run-now", "--reason", "so", str(attempt.id), str(other.id), "--module", "hanging", "--database-url", url
    )
    await_(pathlib.Path("began").exists, "the call has begun")
    running.send_signal(signal.SIGTERM)
    assert "second signal" in running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=30)
    assert (running.returncode, out) == (143, "")
    row = row_of(engine, attempt.id)
    assert (row.status.value, row.claim_id, row.num_attempts) == ("pending", None, 1)
    assert (row.num_errors, row.num_crashes, row.num_losses) == (0, 0, 0)
    assert row_of(engine, other.id).num_attempts == 0


@pytest.mark.slow
def test_run_now_expires_an_attempt_whose_deadline_has_passed(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    let_pass(engine, dt.timedelta(hours=2))
    said = run("run-now", str(attempt.id))
    assert (said.code, said.out, "expired: " in said.err) == (1, "", True)
    assert (run("run-now", str(attempt.id)).code, statuses(engine, attempt)) == (0, ["succeeded"])


def test_no_other_process_can_take_what_run_now_has_made_due(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    run("fail", "--reason", "so", str(attempt.id))
    seen: list[tuple[str, bool]] = []

    def look(_session: Session) -> None:
        row = row_of(engine, attempt.id)
        seen.append((row.status.value, row.claim_id is None))

    event.listen(Session, "after_commit", look)
    try:
        assert run("run-now", str(attempt.id)).out == f"{attempt.id}  succeeded\n"
    finally:
        event.remove(Session, "after_commit", look)
    assert ("pending", False) in seen
    assert ("pending", True) not in seen
