"""What the shop keeps."""

import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True)
    receipts: Mapped[int] = mapped_column(default=0)
    is_packed: Mapped[bool] = mapped_column(default=False)
    is_booked: Mapped[bool] = mapped_column(default=False)


engine = create_engine(os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg://localhost/shop"))
SessionLocal = sessionmaker(engine)
