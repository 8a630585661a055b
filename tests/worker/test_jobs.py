"""`app.perform` of one attempt: a child process only where one is needed."""

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, ConfigurationError, NotPending, Succeeded, target
from clockwork import row_of
from databases import Database, close_file
from elsewhere import notes
from outbox import Client, Elsewhere, effect, note

Write = Callable[..., Attempt]
pytestmark = pytest.mark.usefixtures("one_thread")


@target("test.in_a_child", isolate=True)
def in_a_child(folder: str) -> None:
    note(folder, "start")


@pytest.fixture
def home(database: Database, door: str, engine: Engine) -> Iterator[AsyncTask]:
    """An application from a URL. SQLite's file is then open nowhere in this process, so that it may fork."""
    app = AsyncTask(database.sync_url if door == "sync" else database.async_url, lease=1)
    close_file(engine)
    yield app
    app.close()


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each fork of this process."""
    made: list[int] = []
    fork = os.fork

    def noted() -> int:
        made.append(os.getpid())
        return fork()

    monkeypatch.setattr(os, "fork", noted)
    return made


@pytest.mark.slow
def test_an_attempt_is_performed_without_any_fork(
    home: AsyncTask, engine: Engine, write: Write, forks: list[int]
) -> None:
    plain, with_session, failing = write(Client, "ping"), write(effect), write(Client, "fail")
    close_file(engine)
    assert [home.perform(one.id) for one in (plain, with_session)] == [Succeeded(plain.id), Succeeded(with_session.id)]
    home.perform(failing.id)
    assert row_of(engine, failing.id).num_errors == 1
    assert forks == []


@pytest.mark.slow
@pytest.mark.parametrize("why", ["suspect", "isolate"])
def test_a_suspect_and_an_isolated_call_are_performed_in_a_child_process(
    home: AsyncTask, engine: Engine, write: Write, forks: list[int], tmp_path: pathlib.Path, why: str
) -> None:
    """On SQLite too: nothing has the database open when the child's zygote is forked."""
    if why == "isolate":
        attempt = write(in_a_child, None, {"folder": str(tmp_path)})
    else:
        attempt = write(Elsewhere, "start", {"folder": str(tmp_path)})
        with engine.begin() as connection:
            connection.execute(update(Attempt).values(num_attempts=1, num_crashes=1))
    close_file(engine)
    assert home.perform(attempt.id) == Succeeded(attempt.id)
    assert len(forks) == 1
    ((_, _, pid, _),) = notes(tmp_path)
    assert pid != os.getpid()


@pytest.mark.slow
def test_what_is_done_before_the_claim_is_written_with_it_or_not_at_all(
    home: AsyncTask, engine: Engine, write: Write
) -> None:
    retried, refused = (write(Client, "ping") for _ in range(2))

    def cancel(session: Session) -> None:
        for one in (retried, refused):
            session.get_one(Attempt, one.id).cancel()

    home.write(cancel)
    close_file(engine)
    assert isinstance(home.perform(retried.id), NotPending)

    def retry(session: Session) -> None:
        session.get_one(Attempt, retried.id).retry_now()

    def retry_and_raise(session: Session) -> None:
        session.get_one(Attempt, refused.id).retry_now()
        raise LookupError("not today")

    assert home.perform(retried.id, before=retry) == Succeeded(retried.id)
    with pytest.raises(LookupError, match="not today"):
        home.perform(refused.id, before=retry_and_raise)
    row = row_of(engine, refused.id)
    assert (row.status.value, row.claim_id, row.num_attempts) == ("canceled", None, 0)
    given: Any = "retry"
    with pytest.raises(ConfigurationError, match="before takes a function"):
        home.perform(refused.id, before=given)
