"""The targets of the shop: the warehouse, over HTTP, and the shop's own orders, in the attempt's transaction."""

import datetime as dt
import json
import logging
import os
import urllib.request

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from async_task import Retry, current_attempt, policy, target
from shop.models import Order

logger = logging.getLogger("shop")
TIMEOUT = 10
"""The seconds that one request may take."""

# Without a proxy: the warehouse is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@target(
    "shop.orders",
    retry=Retry.exponential(first=0.2, cap=60, jitter=0.2, max_attempts=8),
    redact=["customer"],
    timeout=30,
)
class OrderClient:
    """The shop's client of the warehouse."""

    @staticmethod
    def fulfill(customer: str, number: int) -> None:
        """Have the order packed. The warehouse may get this request twice, but with the same idempotency key."""
        _post("/orders", {"customer": customer, "number": number})

    @staticmethod
    @policy(max_age=dt.timedelta(hours=2))
    def book_courier(number: int) -> None:
        """Book a courier for today. After two hours the call expires, because nobody needs it then."""
        _post("/couriers", {"number": number})


@target("shop.mark_paid")
def mark_paid(session: Session, number: int) -> None:
    """Enter the payment. The session is that of the attempt, so the payment and `succeeded` are committed together."""
    order = session.scalars(select(Order).where(Order.number == number)).one()
    order.status = "paid"


@target("shop.report")
def report(session: Session) -> None:
    """Log how many orders there are of each status. The clock enqueues it every minute."""
    rows = session.execute(select(Order.status, func.count()).group_by(Order.status).order_by(Order.status)).all()
    logger.info("orders: %s", ", ".join(f"{number} {status}" for status, number in rows) or "none")


@target("shop.refund", encryptor="aes-gcm")
def refund(session: Session, number: int, iban: str) -> None:
    """Pay an order back. The arguments are encrypted in the outbox, so that its readers cannot see the account."""
    order = session.scalars(select(Order).where(Order.number == number)).one()
    order.status = f"refunded to {iban[-4:]}"


def _post(path: str, body: dict[str, object]) -> None:
    request = urllib.request.Request(  # noqa: S310 - the operator sets the address
        os.environ.get("SHOP_WAREHOUSE_URL", "http://127.0.0.1:8765") + path,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": str(current_attempt().id)},
    )
    with _opener.open(request, timeout=TIMEOUT):
        pass
