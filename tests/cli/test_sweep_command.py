"""`async-task sweep`."""

import datetime as dt
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from async_task import Attempt, Status
from claims import claimed, seconds_from_now
from clockwork import let_pass, row_of
from outbox import Client, calls
from said import Run

Write = Callable[..., Attempt]


pytestmark = pytest.mark.usefixtures("alone")


def test_sweep_expires_recovers_and_counts(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    let_pass(engine, dt.timedelta(hours=2))
    foreseen = run("sweep", "--dry-run", "--json").json
    since = dt.datetime.fromisoformat(foreseen.pop("since"))
    assert since == row_of(engine, attempt.id).expires_at
    assert foreseen == {
        "kind": "attempt", "id": str(attempt.id), "target": "test.client", "method": "ping", "queue": "default",
        "action": "expired", "reason": "it is past its expires_at",
    }  # fmt: skip
    assert row_of(engine, attempt.id).status is Status.PENDING
    assert run("sweep", "--json").json == {"recovered": 0, "expired": 1, "resumed": 0}
    assert row_of(engine, attempt.id).status is Status.EXPIRED
    said = run("sweep")
    assert (said.code, said.out, said.err, calls) == (0, "", "", [])


def test_a_dry_run_shows_a_table_and_says_how_many_rows_it_leaves_out(
    run: Run, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_task.queue.recovery.server_uptime", lambda connection: 3600.0)
    attempts = [write(Client, "ping", expires_at=seconds_from_now(60)) for _ in range(3)]
    claimed(engine, attempts[0].id)
    let_pass(engine, dt.timedelta(hours=2))
    whole = run("sweep", "--dry-run")
    assert (whole.code, whole.err) == (0, "3 rows would be changed. Nothing was done: this is a dry run.\n")
    head, *lines = whole.out.splitlines()
    assert head.split() == ["ACTION", "SINCE", "KIND", "ID", "CALL", "QUEUE", "REASON"]
    assert [line.split()[0] for line in lines] == ["expired"] * 3
    assert "the process gone:1:0 was lost: a loss is counted, and it is past its expires_at" in lines[0]
    part = run("sweep", "--dry-run", "--limit", "1", "--json")
    assert len(part.out.splitlines()) == 1
    assert "2 more rows would be changed, and left out here: " in part.err
    assert part.err.endswith("--limit 3\n")
    assert {row_of(engine, one.id).status for one in attempts} == {Status.PENDING}
    assert run("sweep", "--dry-run", "--limit", "0").code == 2


def test_a_dry_run_that_finds_nothing_says_so(run: Run, engine: Engine) -> None:
    said = run("sweep", "--dry-run")
    assert (said.code, said.out, said.err) == (
        0,
        "",
        "Nothing would be changed. Nothing was done: this is a dry run.\n",
    )
    assert run("sweep", "--dry-run", "--json").out == ""
