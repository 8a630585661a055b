"""What must happen because an order was placed."""

import logging

from flask import current_app
from sqlalchemy.orm import Session

from async_task import current_attempt, target
from shop.models import Order

logger = logging.getLogger(__name__)


@target
class Warehouse:
    @staticmethod
    def tell(number: int) -> None:
        """Stands for an HTTP request with this key, which is the same for every try."""
        logger.info("told %s of order %s under %s", current_app.config["SHOP_WAREHOUSE"], number, current_attempt().id)


@target
def pack(session: Session, number: int) -> None:  # not db.session, which has a transaction of its own
    session.get_one(Order, number).packed_in = current_app.config["SHOP_WAREHOUSE"]
