"""`app.perform` of one attempt: a child process only where one is needed."""

import os
import pathlib
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, update

from async_task import AsyncTask, Attempt, Succeeded, target
from clockwork import row_of
from databases import Database
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
    engine.dispose()
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


def test_an_attempt_is_performed_without_any_fork(
    home: AsyncTask, engine: Engine, write: Write, forks: list[int]
) -> None:
    plain, with_session, failing = write(Client, "ping"), write(effect), write(Client, "fail")
    engine.dispose()
    assert [home.perform(one.id) for one in (plain, with_session)] == [Succeeded(plain.id), Succeeded(with_session.id)]
    home.perform(failing.id)
    assert row_of(engine, failing.id).num_errors == 1
    assert forks == []


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
    engine.dispose()
    assert home.perform(attempt.id) == Succeeded(attempt.id)
    assert len(forks) == 1
    ((_, _, pid, _),) = notes(tmp_path)
    assert pid != os.getpid()
