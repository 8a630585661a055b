"""Placing an order."""

from sqlmodel import Session

from shop.models import Attempt, Order
from shop.outbox import engine, pack


def place(number: int, customer: str) -> None:
    with Session(engine) as session:
        session.add(Order(number=number, customer=customer))
        Attempt.options(session=session, columns={"customer": customer}).call(pack, number)
        session.commit()
