"""Run a coroutine with an AsyncEngine."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    create_async_engine,
)


def run(url: str, body: Callable[[AsyncEngine], Coroutine[Any, Any, Any]]) -> Any:
    """Run `body` with an AsyncEngine in an event loop of its own."""

    async def within() -> Any:
        engine = create_async_engine(url)
        try:
            return await body(engine)
        finally:
            await engine.dispose()

    return asyncio.run(within())
