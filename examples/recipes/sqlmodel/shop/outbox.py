"""What must happen because an order was placed."""

import os

from sqlmodel import Session, create_engine, select

from async_task import AsyncTask, target
from shop.models import Attempt, Order

engine = create_engine(os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg://localhost/shop"))


@target
def pack(session: Session, number: int) -> None:  # a Session of SQLModel, because it is annotated so
    session.exec(select(Order).where(Order.number == number)).one().is_packed = True


outbox = AsyncTask(engine, model=Attempt)
