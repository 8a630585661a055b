"""Place an order: its row and the calls that it causes, in one transaction."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shop.models import Attempt, Order
from shop.outbox import OrderClient, mark_paid

FIRST_NUMBER = 1001


def place_order(session: Session, customer: str, amount: int, *, number: int | None = None) -> Order:
    """Write the order and the calls that pack it and enter its payment. `amount` in cents; `number`: None for the next.

    The calls are made if and only if the transaction of `session` commits.
    """
    number = next_number(session) if number is None else number
    order = Order(number=number, customer=customer, amount=amount)
    session.add(order)
    Attempt.options(session=session).call(OrderClient.fulfill, customer, number=number)
    Attempt.options(session=session).call(mark_paid, number=number)
    return order


def next_number(session: Session) -> int:
    """The number after the greatest number."""
    greatest = session.scalar(select(func.max(Order.number)))
    return FIRST_NUMBER if greatest is None else greatest + 1
