"""`async-task sweep`."""

import datetime as dt
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from async_task import Attempt, Status
from clockwork import let_pass, row_of
from outbox import Client, calls
from said import Run

Write = Callable[..., Attempt]


pytestmark = pytest.mark.usefixtures("alone")


def test_sweep_expires_recovers_and_counts(run: Run, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping", expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    let_pass(engine, dt.timedelta(hours=2))
    foreseen = run("sweep", "--dry-run", "--json").json
    assert foreseen == {"dry_run": True, "to_recover": 0, "to_expire": 1}
    assert row_of(engine, attempt.id).status is Status.PENDING
    assert run("sweep", "--json").json == {"recovered": 0, "expired": 1, "resumed": 0}
    assert row_of(engine, attempt.id).status is Status.EXPIRED
    said = run("sweep")
    assert (said.code, said.out, said.err, calls) == (0, "", "", [])
