"""The shop's tables on any database: its orders, and the calls that must happen because of them."""

from sqlalchemy import Integer, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from async_task import BaseAttempt


class Base(DeclarativeBase):
    """The declarative base of the shop: one metadata, one history of migrations."""


class Order(Base):
    """An order. `amount` is in cents. `status` is "placed", then "paid", or for example "refunded to 3000"."""

    __tablename__ = "shop_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(Integer, unique=True)
    customer: Mapped[str] = mapped_column(String(100))
    amount: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(String(16), default="placed")

    def __repr__(self) -> str:
        return f"Order({self.number}, {self.customer!r}, {self.amount / 100:.2f}, {self.status})"


class Attempt(BaseAttempt, Base):
    """The outbox of the shop, in a table of its own."""

    __tablename__ = "shop_attempts"
