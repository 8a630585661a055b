"""What the shop keeps, and the table of its calls."""

from advanced_alchemy.base import DefaultBase
from sqlalchemy.orm import Mapped, mapped_column

from async_task import BaseAttempt


class Order(DefaultBase):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True)
    is_packed: Mapped[bool] = mapped_column(default=False)


class Attempt(BaseAttempt, DefaultBase):
    __tablename__ = "async_task_attempts"
