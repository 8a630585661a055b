"""How often a call that takes a session waits for the server: once, to commit and to lock the row of the next one."""

import itertools
import threading
import weakref
from collections import Counter
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt
from async_task.wakeup import in_process
from async_task.wakeup.in_process import notifier_of
from claims import TABLE
from databases import Database
from elsewhere import await_
from outbox import Client, act_in_async_session, act_in_session, act_shared, effects, will
from shared_calls import claim_many
from workers import counted, make, working

pytestmark = pytest.mark.only_on("postgresql")
NUMBER = 60


class RoundTrips(threading.local):
    """How often this thread has waited for a server, through psycopg."""

    number = 0


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> RoundTrips:
    claim_many(partial(monkeypatch.setattr, raising=False))
    found = RoundTrips()
    for kind in (psycopg.Connection, psycopg.AsyncConnection):
        monkeypatch.setattr(kind, "wait", _counting(kind.wait, found))
    return found


def _counting(wait: Any, found: RoundTrips) -> Any:
    def count(generator: Any) -> Any:
        try:
            wanted = next(generator)
            found.number += 1
            while True:
                answer = yield wanted
                wanted = generator.send(answer)
        except StopIteration as end:
            return end.value

    return lambda self, generator, *given, **more: wait(self, count(generator), *given, **more)


def between_calls(app: AsyncTask, engine: Engine, target: Any, trips: RoundTrips, do: Any) -> Counter[int]:
    """How many round trips were made from the begin of a call to that of the next one, and how often so many."""
    starts: list[int] = []

    def note(session: Session, *given: Any) -> None:
        starts.append(trips.number)
        do(session)

    will(note)
    make(engine, target, NUMBER, **({"method_args": {"number": 1}} if target is act_shared else {}))
    app.run_batch(concurrency=1)
    assert len(starts) == NUMBER <= counted(engine)["succeeded"]
    return Counter(after - before for before, after in itertools.pairwise(starts[20:]))


def write(session: Session) -> None:
    session.execute(effects.insert().values(what="kept"))


def write_and_commit(session: Session) -> None:
    write(session)
    session.commit()


def write_down(session: Session) -> None:
    Attempt.create(target=Client, method_name="ping", session=session)


@pytest.mark.parametrize(
    ("do", "number"), [(write, 2), (write_and_commit, 2), (lambda session: None, 1)], ids=["write", "commit", "nothing"]
)
def test_a_call_waits_for_the_server_once_besides_its_own_statements(
    plain: AsyncTask, engine: Engine, trips: RoundTrips, do: Any, number: int
) -> None:
    found = between_calls(plain, engine, act_in_session, trips, do)
    assert found.most_common(1)[0][0] == min(found) == number


@pytest.mark.slow
def test_it_does_so_too_if_it_writes_calls_down_beside_a_worker(
    plain: AsyncTask, database: Database, engine: Engine, trips: RoundTrips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of this process are woken after its commit, by a listener that stays on its connection."""
    monkeypatch.setattr(in_process, "_notifiers", weakref.WeakValueDictionary())
    usual = min(between_calls(plain, engine, act_in_session, trips, write_down))
    notifier = notifier_of(TABLE, make_url(database.sync_url))
    assert min(between_calls(plain, engine, act_in_session, trips, write_down)) == usual
    assert notifier.wait(0) == {"default"}


@pytest.mark.slow
def test_a_call_in_a_shared_transaction_too(plain: AsyncTask, engine: Engine, trips: RoundTrips) -> None:
    found = between_calls(plain, engine, act_shared, trips, lambda session: None)
    assert found.most_common(1)[0][0] == min(found) == 3  # it writes its number


@pytest.mark.parametrize("door", ["async"])
def test_a_coroutine_waits_for_the_server_twice_besides_its_own_statements(
    plain: AsyncTask, engine: Engine, trips: RoundTrips
) -> None:
    """To lock its row, and to commit: the row of the next one is locked on another connection."""
    starts: list[int] = []

    async def note(session: AsyncSession) -> None:
        starts.append(trips.number)
        await session.execute(effects.insert().values(what="kept"))

    will(note)
    make(engine, act_in_async_session, NUMBER)
    with working(plain, concurrency=1, async_concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": NUMBER}, "all calls succeeded")
    found = Counter(after - before for before, after in itertools.pairwise(starts[20:]))
    assert found.most_common(1)[0][0] == min(found) == 3
