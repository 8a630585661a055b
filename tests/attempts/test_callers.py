"""The line at which a warning is shown: that of the user's code which caused it."""

import asyncio
import linecache
import pathlib
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import async_task
from ambient_run import run
from async_task import Attempt, LostAttemptWarning, target

Sessions = sessionmaker[Session]


@target("callers.note")
def note() -> None: ...


@pytest.fixture
def nowhere() -> Iterator[Sessions]:
    """Sessions that need no database: a transaction is open before there is a connection."""
    engine = create_engine("sqlite://")
    yield sessionmaker(engine)
    engine.dispose()


def lost(body: Callable[[], object]) -> list[warnings.WarningMessage]:
    """The warnings of lost attempts while `body` runs."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        body()
    return [one for one in said if one.category is LostAttemptWarning]


@asynccontextmanager
async def dependency(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """As a web framework provides a session."""
    async with AsyncSession(engine) as session:  # as a web framework
        await session.begin()
        yield session


@contextmanager
def provided(sessions: Sessions) -> Iterator[Session]:
    session = sessions()
    try:
        yield session
    finally:
        session.close()  # in provided


CLOSINGS: dict[str, Callable[[Session], object]] = {
    "in close": lambda session: session.close(),  # in close
    "in reset": lambda session: session.reset(),  # in reset
    "in invalidate": lambda session: session.invalidate(),  # in invalidate
    "in remove": lambda session: scoped(session).remove(),  # in remove
    "in close of a transaction": lambda session: root_of(session).close(),  # in close of a transaction
}


def scoped(session: Session) -> Any:
    found = scoped_session(sessionmaker())
    found.registry.set(session)
    return found


def root_of(session: Session) -> Any:
    return session.get_transaction()


def line_of(said: warnings.WarningMessage) -> str:
    """What the line that a warning names has as its comment."""
    assert said.filename == __file__
    return linecache.getline(said.filename, said.lineno).partition("  # ")[2].strip()


@pytest.mark.parametrize("place", CLOSINGS)
def test_closing_without_a_commit_warns_at_the_line_that_closes(nowhere: Sessions, place: str) -> None:
    def lose() -> None:
        session = nowhere()
        session.begin()
        Attempt.call(note)
        CLOSINGS[place](session)

    (said,) = lost(lose)
    assert line_of(said) == place


def test_leaving_a_block_without_a_commit_warns_at_its_line(nowhere: Sessions) -> None:
    def lose(how: Callable[[], Any]) -> None:
        with how() as session:  # in the block
            session.begin()
            Attempt.call(note)

    assert [line_of(one) for one in lost(lambda: lose(nowhere))] == ["in the block"]
    assert [line_of(one) for one in lost(lambda: lose(lambda: provided(nowhere)))] == ["in provided"]


def test_a_listener_that_closes_a_session_is_the_place(nowhere: Sessions) -> None:
    def lose() -> None:
        session, other = nowhere(), nowhere()
        session.begin()
        Attempt.call(note)

        @event.listens_for(other, "after_commit")
        def close(_: Session) -> None:
            session.close()  # in the listener

        with other.begin():
            pass

    assert [line_of(one) for one in lost(lose)] == ["in the listener"]


async def by_block(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:  # by_block
        await session.begin()
        Attempt.call(note)


async def by_await(engine: AsyncEngine) -> None:
    session = await begun(engine)
    await session.close()  # by_await


async def by_run_sync(engine: AsyncEngine) -> None:
    session = await begun(engine)
    await session.run_sync(lambda own: own.close())  # by_run_sync


async def by_another_task(engine: AsyncEngine) -> None:
    session = await begun(engine)
    await asyncio.create_task(session.close())  # by_another_task


async def by_remove(engine: AsyncEngine) -> None:
    found = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    await found.begin()
    Attempt.call(note)
    await found.remove()  # by_remove


async def by_dependency(engine: AsyncEngine) -> None:
    async with dependency(engine):
        Attempt.call(note)


async def by_stack(engine: AsyncEngine) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(dependency(engine))
        Attempt.call(note)


async def by_child(engine: AsyncEngine) -> None:
    await asyncio.gather(by_block(engine))


async def begun(engine: AsyncEngine) -> AsyncSession:
    session = AsyncSession(engine)
    await session.begin()
    Attempt.call(note)
    return session


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("body", "place"),
    [
        (by_block, "by_block"),
        (by_await, "by_await"),
        (by_run_sync, "by_run_sync"),
        (by_another_task, "by_another_task"),
        (by_remove, "by_remove"),
        (by_dependency, "as a web framework"),
        (by_stack, "as a web framework"),
        (by_child, "by_block"),
    ],
)
def test_an_async_session_warns_at_the_line_that_closes(
    engine: Engine, async_engine_url: str, body: Callable[[AsyncEngine], Any], place: str
) -> None:
    assert [line_of(one) for one in lost(lambda: run(async_engine_url, body))] == [place]


def test_a_line_that_loses_attempts_again_and_again_warns_once(nowhere: Sessions) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            session = nowhere()
            session.begin()
            Attempt.call(note)
            session.close()
    assert len(said) == 1


def test_every_warning_of_the_library_is_given_at_the_callers_line() -> None:
    package = pathlib.Path(async_task.__file__).parent
    files = [file for file in package.rglob("*.py") if "warnings.warn" in file.read_text(encoding="utf-8")]
    # What is dropped unawaited is told by its finalizer: the line above that is the user's.
    assert {file.name for file in files} == {"callers.py", "awaited.py"}
