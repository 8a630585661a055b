"""What the shop keeps, and the table of its calls."""

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from async_task import BaseAttempt


class Base(DeclarativeBase): ...


db = SQLAlchemy(model_class=Base)


class Order(db.Model):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True)
    packed_in: Mapped[str | None] = mapped_column(default=None)


class Attempt(BaseAttempt, db.Model):
    __tablename__ = "async_task_attempts"
