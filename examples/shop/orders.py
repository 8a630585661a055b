"""Taking an order: what the shop writes and what must happen because of it, in one transaction."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shop.models import Attempt, Order
from shop.outbox import OrderClient, mark_paid

FIRST_NUMBER = 1001


def place_order(session: Session, customer: str, amount: int, *, number: int | None = None) -> Order:
    """Write the order, and the calls to pack it and to enter its payment. `amount` in cents; `number`: else the next.

    The calls are made when, and only when, the transaction of `session` commits.
    """
    number = next_number(session) if number is None else number
    order = Order(number=number, customer=customer, amount=amount)
    session.add(order)
    Attempt.options(session=session).call(OrderClient.fulfill, customer, number=number)
    Attempt.options(session=session).call(mark_paid, number=number)
    return order


def next_number(session: Session) -> int:
    """The number after the greatest one."""
    greatest = session.scalar(select(func.max(Order.number)))
    return FIRST_NUMBER if greatest is None else greatest + 1
