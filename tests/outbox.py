"""What the tests call: registered targets that leave traces, in this process's memory and in the `effects` table."""

import asyncio
import os
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from async_task import Again, Discard, Retry, RetryAfter, current_attempt, target

more_metadata = MetaData()
effects = Table(
    "effects",
    more_metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("attempt_id", String(36)),
    Column("number", Integer),
    Column("what", String(200)),
)
calls: list[Any] = []
"""What was called in this process: emptied before each test."""


class Broken(Exception):
    """What the targets here raise."""


@target("test.client", retry=Retry.every(60))
class Client:
    """Outside effects: static, class and async methods."""

    @staticmethod
    def fulfill(customer_token: str, order_number: int) -> None:
        calls.append((customer_token, order_number))

    @classmethod
    def ping(cls) -> None:
        calls.append((cls.__name__, "ping"))

    @staticmethod
    async def fulfill_later(customer_token: str, order_number: int) -> None:
        await asyncio.sleep(0)
        calls.append((customer_token, order_number))

    @staticmethod
    def fail(message: str = "no such order") -> None:
        calls.append(("fail", message))
        raise Broken(message)

    @staticmethod
    def poll(seconds: float = 30) -> Again:
        calls.append("poll")
        return Again(after=seconds)

    @staticmethod
    def ask_for_patience(seconds: float) -> None:
        raise RetryAfter("slow down", after=seconds)

    @staticmethod
    def give_up(reason: str) -> None:
        raise Discard(reason)

    @staticmethod
    def die() -> None:
        os._exit(70)


@target("test.effect", retry=Retry.every(60))
def effect(session: Session, what: str = "done") -> None:
    """Writes one row in the attempt's own transaction."""
    session.execute(effects.insert().values(**_mine(what)))
    if what == "raise":
        raise Broken("after the write")


@target("test.effect_later", retry=Retry.every(60))
async def effect_later(session: AsyncSession, what: str = "done") -> None:
    """The same on an AsyncSession."""
    await session.execute(effects.insert().values(**_mine(what)))
    if what == "raise":
        raise Broken("after the write")


def _mine(what: str) -> dict[str, Any]:
    current = current_attempt()
    return {"attempt_id": str(current.id), "number": current.number, "what": what}
