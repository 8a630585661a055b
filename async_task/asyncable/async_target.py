"""The same target for a class whose `process` is a coroutine function that takes an AsyncSession. It has a module of
its own, because SQLAlchemy's asyncio half needs greenlet, which a synchronous program need not have."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from async_task.asyncable.target import RowProcessor, Try, begin
from async_task.targets.context import Again


class AsyncProcessTarget(RowProcessor):
    """What is registered for such a class."""

    async def process(self, session: AsyncSession, key: Any) -> Again | None:
        """Process the row with this primary key, if it still is to be processed."""
        started = await session.run_sync(begin, self.model, key)
        if not isinstance(started, Try):
            return started
        try:
            answer = await started.row.process(session)
        except Exception as error:
            raise started.without_secrets(error) from None
        return await session.run_sync(started.finish, answer)
