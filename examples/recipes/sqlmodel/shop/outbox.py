"""What must happen because an order was placed."""

import os

from sqlmodel import Session, create_engine, select

from async_task import AsyncTask, target
from shop.models import Address, Attempt, Order

engine = create_engine(os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg://localhost/shop"))


@target
def pack(session: Session, number: int) -> None:  # a Session of SQLModel, because it is annotated so
    session.exec(select(Order).where(Order.number == number)).one().is_packed = True


@target
def send(number: int, address: Address) -> None:  # a model without a table; of one with a table, pass the key
    print(f"{number} goes to {address.city}")


outbox = AsyncTask(engine, model=Attempt)
