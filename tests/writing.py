"""What the tests of writing calls down have in common: targets, an encryptor, and what they count."""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, event, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from async_task import (
    Attempt,
    policy,
    target,
)
from async_task.database.clock import clock_now

SECRET = "canary-4711"
ARGS = {"token": SECRET, "number": 7}
Sessions = sessionmaker[Session]


@target("writing.client")
class Client:
    @staticmethod
    def fulfill(token: str, number: int = 0) -> None: ...

    @classmethod
    @policy(queue="slow", priority=7, max_age=60)
    def hurry(cls) -> None: ...


@target("writing.book", queue="books", priority=3)
def book(session: Session, number: int) -> None: ...


class Reversing:
    """Enough of an encryptor to see whether it was asked."""

    name = "reversing"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return context + plaintext[::-1]

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        if not ciphertext.startswith(context):
            raise ValueError(ciphertext)
        return ciphertext.removeprefix(context)[::-1]


@contextlib.contextmanager
def statements_of(engine: Engine) -> Iterator[list[str]]:
    """Every statement, with all its rows, that goes through this engine."""
    seen: list[str] = []

    def note(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Attempt)) or 0


def database_clock(engine: Engine) -> dt.datetime:
    with engine.connect() as connection:
        moment: dt.datetime = connection.execute(select(clock_now())).scalar_one()
    return moment


def run_async(url: str, body: Callable[[AsyncSession], Awaitable[Any]], **options: Any) -> Any:
    """`body` with an AsyncSession on an engine of its own."""

    async def run() -> Any:
        engine = create_async_engine(url)
        try:
            async with AsyncSession(engine, **options) as session:
                return await body(session)
        finally:
            await engine.dispose()

    return asyncio.run(run())
