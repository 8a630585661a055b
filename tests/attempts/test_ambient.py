"""`create` without `session=`: the one transaction begun by this thread, this asyncio task and this context."""

import asyncio
import contextlib
import contextvars
import gc
import threading
import tracemalloc
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import sqlmodel
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ambient_run import run
from async_task import AmbiguousTransaction, Attempt, LostAttemptWarning, NoTransaction, target
from async_task.attempts.ambient import _tasks, _thread, ambient_session  # pyright: ignore[reportPrivateUsage]

Sessions = sessionmaker[Session]


@target("ambient.note")
def note(number: int = 0) -> None: ...


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Attempt)) or 0


@pytest.fixture
def nowhere() -> Iterator[Sessions]:
    """Sessions that need no database: a transaction is open before there is a connection."""
    engine = create_engine("sqlite://")
    yield sessionmaker(engine)
    engine.dispose()


# Which session is found


@pytest.mark.in_turns
@pytest.mark.parametrize("kind", ["begin", "sessionmaker.begin", "autobegin", "scoped", "sqlmodel", "savepoint"])
def test_the_open_transaction_is_found_however_it_was_begun(kind: str, sessions: Sessions, engine: Engine) -> None:
    if kind == "begin":
        with Session(engine) as session, session.begin():
            Attempt.call(note)
    elif kind == "sessionmaker.begin":
        with sessions.begin():
            Attempt.call(note)
    elif kind == "autobegin":
        with Session(engine) as session:
            session.execute(select(1))
            Attempt.call(note)
            session.commit()
    elif kind == "scoped":
        registry = scoped_session(sessions)
        registry.begin()
        Attempt.call(note)
        registry.commit()
        registry.remove()
    elif kind == "sqlmodel":
        with sqlmodel.Session(engine) as session, session.begin():
            Attempt.call(note)
    else:
        with sessions.begin() as session, session.begin_nested():
            Attempt.call(note)
    assert count(engine) == 1


@pytest.mark.in_turns
@pytest.mark.parametrize("kind", ["begin", "sessionmaker.begin", "autobegin", "scoped", "savepoint", "run_sync"])
def test_the_open_transaction_of_an_async_session_is_found(kind: str, engine: Engine, async_engine_url: str) -> None:
    async def body(async_engine: AsyncEngine) -> None:
        make = async_sessionmaker(async_engine)
        if kind == "begin":
            async with make() as session, session.begin():
                Attempt.call(note)
        elif kind == "sessionmaker.begin":
            async with make.begin():
                Attempt.call(note)
        elif kind == "autobegin":
            async with make() as session:
                await session.execute(select(1))
                Attempt.call(note)
                await session.commit()
        elif kind == "scoped":
            registry = async_scoped_session(make, scopefunc=asyncio.current_task)
            await registry.execute(select(1))
            Attempt.call(note)
            await registry.commit()
            await registry.remove()
        elif kind == "savepoint":
            async with make.begin() as session, session.begin_nested():
                Attempt.call(note)
        else:
            async with make.begin() as session:
                await session.run_sync(lambda _: Attempt.call(note))

    run(async_engine_url, body)
    assert count(engine) == 1


@pytest.mark.only_on("mysql")  # elsewhere servers take no prepared transactions, unless they are told to
def test_the_first_half_of_a_two_phase_commit_ends_nothing(engine: Engine) -> None:
    with Session(engine, twophase=True) as session:
        session.execute(select(1))
        Attempt.call(note)
        session.prepare()
        session.commit()
    assert count(engine) == 1


def listen(session: Session, name: str, made: list[Any], *, explicitly: bool) -> None:
    """At the event `name` of this session, create an attempt; `made` gets the error, or None."""

    def create(session: Session, *_: Any) -> None:
        if made:
            return
        try:
            (Attempt.options(session=session) if explicitly else Attempt).call(note)
        except NoTransaction as error:
            made.append(error)
        else:
            made.append(None)

    event.listen(session, name, create)


def commit(session: Session) -> None:
    session.commit()


def roll_back_a_savepoint(session: Session) -> None:
    savepoint = session.begin_nested()
    session.execute(select(1))
    savepoint.rollback()
    session.commit()


@pytest.mark.parametrize("explicitly", [True, False])
@pytest.mark.parametrize(
    ("name", "end", "said"),
    [
        ("after_commit", commit, "is committed already"),
        ("after_rollback", Session.rollback, "is rolled back already"),
        ("after_rollback", roll_back_a_savepoint, "is rolled back already"),
    ],
)
def test_a_transaction_that_can_write_nothing_more_is_refused(
    nowhere: Sessions, name: str, end: Callable[[Session], None], said: str, explicitly: bool
) -> None:
    made: list[Any] = []
    with nowhere() as session:
        session.execute(select(1))
        listen(session, name, made, explicitly=explicitly)
        end(session)
    assert said in str(made[0])


VERBS: dict[str, Callable[[Session], object]] = {
    "create": lambda session: Attempt.create(target=note, session=session),
    "ensure": lambda session: Attempt.ensure(session, target=note, idempotence_token="once"),
    "create_many": lambda session: Attempt.create_many(session, [{"target": note}]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_writes_after_a_flush_has_failed(engine: Engine, verb: str) -> None:
    with Session(engine) as session:
        session.add(Attempt(target=None))
        with pytest.raises(DBAPIError):
            session.flush()
        with pytest.raises(NoTransaction, match="is rolled back already"):
            VERBS[verb](session)


@pytest.mark.in_turns
@pytest.mark.parametrize("explicitly", [True, False])
@pytest.mark.parametrize("name", ["before_commit", "after_begin", "after_transaction_create"])
def test_a_transaction_that_can_still_write_is_found_in_a_listener(engine: Engine, name: str, explicitly: bool) -> None:
    made: list[Any] = []
    with Session(engine) as session:
        listen(session, name, made, explicitly=explicitly)
        session.execute(select(1))
        session.commit()
    assert made == [None]
    assert count(engine) == 1


@pytest.mark.only_on("mysql")
def test_a_prepared_transaction_is_refused(engine: Engine) -> None:
    with Session(engine, twophase=True) as session:
        session.execute(select(1))
        session.prepare()
        with pytest.raises(NoTransaction, match="is prepared already"):
            Attempt.call(note)
        session.rollback()


def test_without_an_open_transaction_create_raises(nowhere: Sessions) -> None:
    with pytest.raises(NoTransaction, match=r"with session\.begin"):
        Attempt.call(note)
    with nowhere(), pytest.raises(NoTransaction):
        Attempt.call(note)


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "invalidate", "reset"])
def test_a_transaction_that_ended_is_not_found(nowhere: Sessions, end: str) -> None:
    session = nowhere()
    session.begin()
    getattr(session, end)()
    with pytest.raises(NoTransaction):
        ambient_session()
    session.begin()
    assert ambient_session() is session
    session.close()


def test_a_session_that_was_dropped_is_not_found(nowhere: Sessions) -> None:
    session: Session | None = nowhere()
    assert session is not None
    session.begin()
    session = None
    gc.collect()
    with pytest.raises(NoTransaction):
        ambient_session()


def test_a_session_whose_info_was_cleared_is_not_found(nowhere: Sessions) -> None:
    with nowhere() as session:
        session.begin()
        session.info.clear()
        with pytest.raises(NoTransaction):
            ambient_session()


def test_two_open_transactions_are_ambiguous(nowhere: Sessions) -> None:
    with nowhere.begin(), nowhere.begin() as inner:
        with pytest.raises(AmbiguousTransaction, match=r"2 transactions are open in this thread.* Attempt\.options"):
            Attempt.call(note)
        inner.commit()
        assert ambient_session() is not inner


def test_one_open_transaction_is_found_beside_a_session_without_one(nowhere: Sessions) -> None:
    with nowhere(), nowhere.begin() as session, nowhere():
        assert ambient_session() is session


# Who does not find it


def test_a_thread_does_not_find_the_transaction_of_another_thread(nowhere: Sessions) -> None:
    with nowhere.begin() as mine, ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(ambient_session).exception(10), NoTransaction)
        with pytest.raises(NoTransaction):
            asyncio.run(asyncio.to_thread(ambient_session))
        assert ambient_session() is mine


def test_a_later_thread_does_not_inherit_the_transaction_of_one_that_ended(nowhere: Sessions) -> None:
    # Threads get the ids of dead ones again, nearly always the last one's.
    left_open: list[tuple[int, Session]] = []
    found: list[tuple[int, object]] = []

    def begin() -> None:
        session = nowhere()
        session.begin()
        left_open.append((threading.get_ident(), session))

    def look() -> None:
        try:
            found.append((threading.get_ident(), ambient_session()))
        except NoTransaction:
            found.append((threading.get_ident(), None))

    for _ in range(20):
        for work in (begin, look):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(10)
    idents = {ident for ident, _ in left_open}
    assert any(ident in idents for ident, _ in found), "no id was used again, so that this proved nothing"
    assert all(session is None for _, session in found)
    for _, session in left_open:
        session.close()


def test_a_request_does_not_find_the_transaction_that_another_request_left_open_in_its_thread(
    nowhere: Sessions,
) -> None:
    """As a web framework runs them: a dependency in one thread of its pool, its endpoint in another, each hop in a copy
    of its request's context."""
    with ThreadPoolExecutor(1) as thread, nowhere() as others:
        thread.submit(contextvars.copy_context().run, others.begin).result()

        def endpoint() -> None:
            with pytest.raises(NoTransaction, match="give session="):
                Attempt.call(note)

        thread.submit(contextvars.copy_context().run, endpoint).result()
        assert not others.new


def test_a_session_begun_in_one_thread_is_not_found_in_another(nowhere: Sessions) -> None:
    with ThreadPoolExecutor(1) as pool:

        def begin() -> Session:
            session = nowhere()
            session.begin()
            return session

        session = pool.submit(begin).result(10)
        with pytest.raises(NoTransaction):
            ambient_session()
        assert pool.submit(ambient_session).result(10) is session
        session.close()  # here, and it is gone there
        assert isinstance(pool.submit(ambient_session).exception(10), NoTransaction)


def test_a_session_that_is_begun_again_elsewhere_is_no_longer_found_here(nowhere: Sessions) -> None:
    session = nowhere()
    session.begin()
    session.commit()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session.begin).result(10)
        with pytest.raises(NoTransaction):
            ambient_session()
        assert pool.submit(ambient_session).result(10) is session
        session.close()


def test_a_child_task_does_not_find_its_parents_transaction_nor_the_parent_its(nowhere: Sessions) -> None:
    async def child() -> None:
        with pytest.raises(NoTransaction):
            ambient_session()
        with nowhere.begin() as own:
            assert ambient_session() is own
            await asyncio.sleep(0)
            assert ambient_session() is own

    async def parent() -> None:
        with nowhere.begin() as mine:
            await asyncio.gather(child(), asyncio.create_task(child()))
            assert ambient_session() is mine
            with pytest.raises(NoTransaction):
                await asyncio.to_thread(ambient_session)

    asyncio.run(parent())


def test_a_task_does_not_find_what_its_thread_began_before_the_loop(nowhere: Sessions) -> None:
    async def look() -> None:
        with pytest.raises(NoTransaction):
            ambient_session()

    with nowhere.begin():
        asyncio.run(look())


def test_each_of_twenty_tasks_finds_its_own_transaction(engine: Engine, async_engine_url: str) -> None:
    async def body(async_engine: AsyncEngine) -> list[tuple[int, Any]]:
        together = asyncio.Barrier(4)

        async def one(number: int) -> tuple[int, Any]:
            async with AsyncSession(async_engine) as session:
                await session.begin()
                await together.wait()
                attempt = Attempt.call(note, number)
                assert ambient_session() is session.sync_session
                await asyncio.sleep(0)
                if number % 2:
                    await session.commit()
                else:
                    await session.rollback()
                return number, attempt.id

        return [made for first in range(0, 20, 4) for made in await asyncio.gather(*map(one, range(first, first + 4)))]

    made = run(async_engine_url, body)
    with engine.connect() as connection:
        written = set(connection.execute(select(Attempt.id, Attempt.encoded_args)).all())
    assert {tuple(row) for row in written} == {(one, f'{{"number": {number}}}') for number, one in made if number % 2}


# What is lost


def lost(body: Callable[[], object]) -> list[warnings.WarningMessage]:
    """The warnings of lost attempts while `body` runs."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        body()
    return [one for one in said if one.category is LostAttemptWarning]


def test_closing_without_a_commit_warns_of_the_number_of_attempts(nowhere: Sessions) -> None:
    def lose() -> None:
        with nowhere() as session:
            session.begin()
            Attempt.call(note)
            Attempt.call(note)

    (said,) = lost(lose)
    assert "had 2 new attempt(s)" in str(said.message)


@pytest.mark.in_turns
@pytest.mark.parametrize("end", ["commit", "rollback", "raise", "given", "nothing made"])
def test_closing_does_not_warn_where_nothing_was_lost(sessions: Sessions, end: str) -> None:
    def body() -> None:
        with contextlib.suppress(ZeroDivisionError), sessions() as session:
            session.begin()
            if end == "given":
                Attempt.options(session=session).call(note)
            elif end != "nothing made":
                Attempt.call(note)
            if end in ("commit", "rollback"):
                getattr(session, end)()
            if end == "raise":
                raise ZeroDivisionError

    assert lost(body) == []


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("steps", "number"),
    [
        ("begin call release", 1),
        ("begin call undo", 0),
        ("call begin call undo", 1),
        ("begin call begin call undo release", 1),
        ("begin begin call release undo", 0),
        ("call begin call", 2),
        ("begin call release commit", 0),
        ("begin call undo call", 1),
    ],
)
def test_the_warning_counts_what_each_savepoint_loses(sessions: Sessions, steps: str, number: int) -> None:
    def body() -> None:
        savepoints: list[Any] = []
        with sessions() as session:
            session.begin()
            for step in steps.split():
                if step == "begin":
                    savepoints.append(session.begin_nested())
                elif step == "call":
                    Attempt.call(note)
                elif step == "commit":
                    session.commit()
                elif step == "release":
                    savepoints.pop().commit()
                else:
                    savepoints.pop().rollback()

    said = lost(body)
    assert [f"had {number} new attempt(s)" in str(one.message) for one in said] == [True] * bool(number)


@asynccontextmanager
async def dependency(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """As a web framework provides a session."""
    async with AsyncSession(engine) as session:
        await session.begin()
        yield session


@pytest.mark.in_turns
@pytest.mark.parametrize("kind", ["plain", "dependency", "stack"])
@pytest.mark.parametrize("end", ["close", "commit", "rollback", "raise"])
def test_an_async_session_warns_only_of_what_is_lost(
    engine: Engine, async_engine_url: str, kind: str, end: str
) -> None:
    async def work(session: AsyncSession) -> None:
        if not session.in_transaction():
            await session.begin()
        Attempt.call(note)
        if end in ("commit", "rollback"):
            await getattr(session, end)()
        if end == "raise":
            raise ZeroDivisionError

    async def body(async_engine: AsyncEngine) -> None:
        try:
            if kind == "plain":
                async with AsyncSession(async_engine) as session:
                    await work(session)
            elif kind == "dependency":
                async with dependency(async_engine) as session:
                    await work(session)
            else:
                async with AsyncExitStack() as stack:
                    await work(await stack.enter_async_context(dependency(async_engine)))
        except ZeroDivisionError:
            assert end == "raise"

    assert len(lost(lambda: run(async_engine_url, body))) == (end == "close")


def test_a_warning_that_is_an_error_leaves_the_session_closed(nowhere: Sessions) -> None:
    session = nowhere()
    session.begin()
    Attempt.call(note)
    with pytest.raises(LostAttemptWarning):
        session.close()
    assert not session.in_transaction()
    with pytest.raises(NoTransaction):
        ambient_session()


# What it costs


@pytest.mark.long
def test_ten_thousand_transactions_leave_nothing_in_memory(nowhere: Sessions) -> None:
    def transactions(number: int) -> None:
        for one in range(number):
            session = nowhere()
            session.begin()
            if one % 2:
                session.close()  # the others are dropped as they are

    async def tasks(number: int) -> None:
        async def one() -> None:
            transactions(1)

        for _ in range(number):
            await asyncio.create_task(one())

    transactions(100)
    gc.collect()
    tracemalloc.start()
    try:
        transactions(9_000)
        asyncio.run(tasks(1_000))
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert _thread.place == {}
    assert len(_tasks) == 0
    assert grown < 200_000, f"{grown} bytes were left"
