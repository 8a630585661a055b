"""What must happen because an order was placed."""

from sqlalchemy.ext.asyncio import AsyncSession

from async_task import AsyncTask, target
from shop.database import alchemy
from shop.models import Attempt, Order


@target
async def pack(session: AsyncSession, number: int) -> None:
    (await session.get_one(Order, number)).is_packed = True  # is committed together with `succeeded`


outbox = AsyncTask(alchemy.get_engine(), model=Attempt)
