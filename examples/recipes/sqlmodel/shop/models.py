"""What the shop keeps, and the table of its calls beside it."""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import Field, SQLModel

from async_task import BaseAttempt


class Order(SQLModel, table=True):
    __tablename__ = "orders"

    number: int = Field(primary_key=True)
    customer: str
    is_packed: bool = False


class Address(SQLModel):
    city: str


class Base(DeclarativeBase):
    metadata = SQLModel.metadata  # one metadata for migrations and create_all


class Attempt(BaseAttempt, Base):  # not a SQLModel: it is no data to be validated
    __tablename__ = "shop_attempts"

    customer: Mapped[str | None] = mapped_column(default=None)
