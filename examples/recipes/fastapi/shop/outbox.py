"""What must happen because an order was placed."""

import logging

from sqlalchemy.ext.asyncio import AsyncSession

from async_task import AsyncTask, current_attempt, target
from shop.database import SessionLocal
from shop.models import Order

logger = logging.getLogger(__name__)


@target
class Warehouse:
    @staticmethod
    def pack(number: int) -> None:
        """Stands for an HTTP request with this key, which is the same for every try."""
        logger.info("packed order %s under %s", number, current_attempt().id)


@target
async def confirm(session: AsyncSession, number: int) -> None:
    (await session.get_one(Order, number)).is_confirmed = True  # is committed together with `succeeded`


outbox = AsyncTask(SessionLocal)
