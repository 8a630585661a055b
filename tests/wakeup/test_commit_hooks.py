"""Commit hooks: a commit in this process calls the notifier for the rows that are due at once, when the outermost
transaction commits, and never for rows that were rolled back."""

import asyncio
import contextlib
import datetime as dt
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, Table, event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ambient_run import run
from async_task import AsyncTask, Attempt, target
from async_task.wakeup import in_process
from async_task.wakeup.in_process import Notifier, notifier_of
from clockwork import row_of
from outbox import HookedAttempt, act_in_session, effects, will

TABLE: Table = Attempt.__table__  # type: ignore[assignment]
NOTHING: frozenset[str] = frozenset()
Sessions = sessionmaker[Session]
LATER = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)


@target("commit_hooks.note")
def note(number: int = 0) -> None: ...


CALL = {"target": "commit_hooks.note"}


@pytest.fixture
def notifier(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Notifier:
    """Made for this test: a worker of another test may still have its own, with notifications in it."""
    monkeypatch.setattr(in_process, "_notifiers", weakref.WeakValueDictionary())
    return notifier_of(TABLE, engine.url)


def notified(notifier: Notifier) -> frozenset[str]:
    """The queues for which the notifier was called since the last time."""
    return notifier.wait(0)


# A Session


def test_a_commit_notifies_of_the_queue_of_each_new_row(sessions: Sessions, notifier: Notifier) -> None:
    with sessions.begin():
        Attempt.call(note)
        Attempt.create(**CALL, queue="mail")
        assert notified(notifier) == NOTHING
    assert notified(notifier) == {"default", "mail"}
    assert notified(notifier) == NOTHING


def test_a_commit_notifies_as_many_threads_as_there_are_rows(sessions: Sessions, notifier: Notifier) -> None:
    with sessions.begin() as session:
        Attempt.call(note)
        session.flush()
        Attempt.call(note)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two, ThreadPoolExecutor(1) as three:
        woken = [thread.submit(notifier.wait, 0).result() for thread in (one, two, three)]
    assert woken == [{"default"}, {"default"}, NOTHING]


def test_a_thread_that_was_notified_finds_the_row(sessions: Sessions, engine: Engine, notifier: Notifier) -> None:
    seen: list[Any] = []

    def read_when_woken() -> None:
        notifier.wait(30)
        with engine.connect() as connection:
            seen.extend(connection.scalars(select(TABLE.c.queue)))

    thread = threading.Thread(target=read_when_woken)
    thread.start()
    with sessions.begin():
        Attempt.call(note)
    thread.join(30)
    assert seen == ["default"]


@pytest.mark.in_turns
@pytest.mark.parametrize("how", ["scheduled_at", "another commit", "rollback", "close", "flush fails", "expunged"])
def test_nobody_is_notified_of(how: str, sessions: Sessions, notifier: Notifier) -> None:
    with sessions() as session:
        if how == "scheduled_at":
            Attempt.create(**CALL, session=session, scheduled_at=LATER)
            session.commit()
        elif how == "another commit":
            session.execute(effects.insert().values(what="else"))
            session.commit()
        elif how == "flush fails":
            for _ in range(2):
                Attempt.create(**CALL, session=session, idempotence_token="once")
            with pytest.raises(IntegrityError):
                session.commit()
            session.rollback()
            session.commit()
        elif how == "expunged":
            attempt = Attempt.create(**CALL, session=session)
            session.flush()
            session.rollback()
            assert attempt not in session
            session.execute(effects.insert().values(what="else"))
            session.commit()
        else:
            Attempt.create(**CALL, session=session)
            session.flush()
            getattr(session, how)()
            session.execute(effects.insert().values(what="else"))
            session.commit()
    assert notified(notifier) == NOTHING


def test_nobody_is_notified_at_the_release_of_a_savepoint(sessions: Sessions, notifier: Notifier) -> None:
    with sessions.begin() as session:
        with session.begin_nested():
            Attempt.call(note)
            with session.begin_nested():
                Attempt.create(**CALL, queue="inner")
        assert notified(notifier) == NOTHING
        session.flush()
        assert notified(notifier) == NOTHING
    assert notified(notifier) == {"default", "inner"}


@pytest.mark.parametrize("how", ["rollback", "raise", "close", "outer"])
def test_nobody_is_notified_of_what_a_savepoint_rolled_back(how: str, sessions: Sessions, notifier: Notifier) -> None:
    with sessions.begin() as session:
        Attempt.create(**CALL, queue="outer")
        if how == "raise":
            with contextlib.suppress(ZeroDivisionError), session.begin_nested():
                Attempt.create(**CALL, queue="inner")
                raise ZeroDivisionError
        else:
            nested = session.begin_nested()
            Attempt.create(**CALL, queue="inner")
            session.flush()
            if how == "outer":  # released, and then rolled back with the one around it
                with session.begin_nested():
                    Attempt.create(**CALL, queue="innermost")
            nested.close() if how == "close" else nested.rollback()
        Attempt.create(**CALL, queue="behind")
    assert notified(notifier) == {"outer", "behind"}


def test_rows_that_listeners_to_a_flush_make_are_notified_too(sessions: Sessions, notifier: Notifier) -> None:
    with sessions() as session:

        @event.listens_for(session, "before_flush")
        def _(own: Session, _context: Any, _instances: Any) -> None:
            if any(isinstance(one, HookedAttempt) for one in own.new):
                Attempt.create(**CALL, session=own, queue="made in the flush")

        HookedAttempt.create(**CALL, session=session)
        session.commit()
    assert notified(notifier) == {"made in the flush"}


def test_each_table_has_its_own_notifier(sessions: Sessions, engine: Engine, notifier: Notifier) -> None:
    theirs = notifier_of(HookedAttempt.__table__, engine.url)  # type: ignore[arg-type]
    with sessions.begin():
        HookedAttempt.create(**CALL, queue="hooked")
        Attempt.create(**CALL)
    assert (notified(notifier), notified(theirs)) == ({"default"}, {"hooked"})


def test_ensure_notifies_only_of_what_it_creates(sessions: Sessions, notifier: Notifier) -> None:
    with sessions.begin() as session:
        Attempt.ensure(session, **CALL, idempotence_token="once")
    assert notified(notifier) == {"default"}
    with sessions.begin() as session:
        Attempt.ensure(session, **CALL, idempotence_token="once")
        Attempt.ensure(session, **CALL, idempotence_token="later", scheduled_at=LATER)
    assert notified(notifier) == NOTHING


def test_create_many_notifies_of_what_is_due(sessions: Sessions, notifier: Notifier) -> None:
    rows = [CALL, {**CALL, "queue": "mail"}, {**CALL, "queue": "later", "scheduled_at": LATER}]
    with sessions.begin() as session:
        Attempt.create_many(session, rows)
        assert notified(notifier) == NOTHING
    assert notified(notifier) == {"default", "mail"}


def test_retry_now_notifies(sessions: Sessions, notifier: Notifier) -> None:
    with sessions.begin() as session:
        attempt = Attempt.create(**CALL, session=session, queue="mail", scheduled_at=LATER)
        session.flush()
        attempt.retry_now()
    assert notified(notifier) == {"mail"}


def test_a_commit_of_a_scoped_session_notifies(sessions: Sessions, notifier: Notifier) -> None:
    registry = scoped_session(sessions)
    registry.begin()
    Attempt.call(note)
    registry.commit()
    registry.remove()
    assert notified(notifier) == {"default"}


@pytest.mark.slow
def test_32_threads_notify_of_each_of_their_rows(sessions: Sessions, engine: Engine, notifier: Notifier) -> None:
    meet = threading.Barrier(32 if engine.dialect.name != "sqlite" else 8)

    def produce(number: int) -> None:
        meet.wait(30)
        for keeps in (True, False, True):
            with sessions() as session, session.begin() as transaction:
                Attempt.create(**CALL, session=session, queue=f"{'kept' if keeps else 'lost'}-{number}")
                session.flush()
                if not keeps:
                    transaction.rollback()

    with ThreadPoolExecutor(meet.parties) as producers:
        list(producers.map(produce, range(meet.parties)))
    assert notified(notifier) == {f"kept-{number}" for number in range(meet.parties)}


# An AsyncSession


@pytest.mark.in_turns
@pytest.mark.parametrize("kind", ["begin", "commit", "scoped", "run_sync", "savepoint", "rollback", "lost savepoint"])
def test_an_async_session_notifies_as_a_session_does(
    kind: str, async_engine_url: str, notifier: Notifier
) -> None:  # fmt: skip
    async def body(engine: AsyncEngine) -> None:
        make = async_sessionmaker(engine)
        if kind == "begin":
            async with make.begin():
                Attempt.call(note)
        elif kind == "scoped":
            registry = async_scoped_session(make, scopefunc=asyncio.current_task)
            Attempt.create(**CALL, session=registry)
            await registry.commit()
            await registry.remove()
        elif kind == "run_sync":
            async with make.begin() as session:
                await session.run_sync(lambda own: Attempt.create_many(own, [CALL]))
        elif kind in ("savepoint", "lost savepoint"):
            async with make.begin() as session:
                nested = await session.begin_nested()
                Attempt.create(**CALL, session=session)
                await (nested.commit() if kind == "savepoint" else nested.rollback())
                assert notified(notifier) == NOTHING
        else:
            async with make() as session:
                Attempt.create(**CALL, session=session)
                await session.flush()
                assert notified(notifier) == NOTHING
                await getattr(session, kind)()

    run(async_engine_url, body)
    assert notified(notifier) == (NOTHING if kind in ("rollback", "lost savepoint") else {"default"})


# Core connections, and sessions on them


def test_create_many_on_a_connection_notifies_at_its_commit(engine: Engine, notifier: Notifier) -> None:
    with engine.connect() as connection:
        Attempt.create_many(connection, [CALL])
        assert notified(notifier) == NOTHING
        connection.rollback()
        connection.execute(select(1))
        connection.commit()
        assert notified(notifier) == NOTHING
        for queue in ("one", "two"):
            Attempt.create_many(connection, [{**CALL, "queue": queue}])
        connection.commit()
        assert notified(notifier) == {"one", "two"}
        connection.execute(select(1))
        connection.commit()
        assert notified(notifier) == NOTHING


@pytest.mark.in_turns
@pytest.mark.parametrize("mode", ["create_savepoint", "rollback_only", "control_fully"])
def test_a_session_in_somebody_elses_transaction_notifies_when_that_commits(
    mode: Any, engine: Engine, notifier: Notifier
) -> None:
    with engine.connect() as connection, connection.begin():
        with Session(connection, join_transaction_mode=mode) as session:
            Attempt.create(**CALL, session=session)
            session.commit()
        assert notified(notifier) == (NOTHING if connection.in_transaction() else {"default"})
    assert notified(notifier) == (NOTHING if mode == "control_fully" else {"default"})


def test_what_a_performed_call_creates_is_notified_when_its_outcome_commits(
    app: AsyncTask, write: Callable[..., Attempt], notifier: Notifier
) -> None:
    def chain(session: Session) -> None:
        Attempt.create(**CALL, session=session, queue="next")
        session.commit()
        assert notified(notifier) == NOTHING

    will(chain)
    first = write(act_in_session)
    notified(notifier)
    assert app.perform(first.id).__class__.__name__ == "Succeeded"
    assert notified(notifier) == {"next"}


def test_what_a_failed_call_creates_is_never_notified(
    app: AsyncTask, write: Callable[..., Attempt], notifier: Notifier
) -> None:
    def chain(session: Session) -> None:
        Attempt.create(**CALL, session=session, queue="next")
        session.flush()
        raise ZeroDivisionError

    will(chain)
    first = write(act_in_session)
    notified(notifier)
    app.perform(first.id)
    assert notified(notifier) == NOTHING


def test_an_error_while_notifying_does_not_look_like_a_failed_commit(engine: Engine, notifier: Notifier) -> None:
    class Moody(Session):
        is_moody = False

        def get_bind(self, *args: Any, **options: Any) -> Any:
            if self.is_moody:
                raise LookupError
            return engine

    with Moody() as session:

        @event.listens_for(engine, "commit")
        def _(_: Any) -> None:
            session.is_moody = True

        attempt = Attempt.create(**CALL, session=session)
        session.commit()
        event.remove(engine, "commit", _)
    assert row_of(engine, attempt.id).queue == "default"
