"""Sessions of tests that roll back, as users of the library have them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from async_task.testing import sessions

MODULES = ("async_task.", "outbox", "reviews", "operations")


@pytest.fixture(autouse=True)
def _models_of_these_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the models, and their tables, that other tests have left."""
    if "session" in request.fixturenames or "play" in request.fixturenames:
        theirs = (*MODULES, request.module.__name__)
        kept = [one for one in sessions._base_models() if one.__module__.startswith(theirs)]
        monkeypatch.setattr(sessions, "_base_models", lambda: kept)


Play = Callable[[Callable[[AsyncSession], Awaitable[Any]]], Any]


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """In a transaction that is rolled back in the end, and was not committed in between."""
    with engine.connect() as connection:
        outer = connection.begin()
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        yield connection
        assert outer.is_active
        outer.rollback()


@pytest.fixture
def maker(connection: Connection) -> sessionmaker[Session]:
    return sessionmaker(connection, join_transaction_mode="create_savepoint")


@pytest.fixture
def session(maker: sessionmaker[Session]) -> Iterator[Session]:
    with maker() as session:
        yield session


@pytest.fixture
def play(async_engine_url: str) -> Play:
    """`play(test)`: run an asynchronous test with an AsyncSession whose transaction is rolled back."""

    async def run(test: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
        engine = create_async_engine(async_engine_url)
        try:
            async with engine.connect() as connection:
                outer = await connection.begin()
                if connection.dialect.name == "sqlite":
                    await connection.exec_driver_sql("BEGIN")
                options: Any = {"join_transaction_mode": "create_savepoint"}
                async with AsyncSession(connection, **options) as session:
                    answer = await test(session)
                assert outer.is_active
                await outer.rollback()
                return answer
        finally:
            await engine.dispose()

    return lambda test: asyncio.run(run(test))
