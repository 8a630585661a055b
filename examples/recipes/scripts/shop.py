"""A shop in one file: `python shop.py 7 8 9` places orders, and cron makes their calls."""

import argparse
import os

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from async_task import AsyncTask, Attempt, target


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True)
    is_packed: Mapped[bool] = mapped_column(default=False)


@target("shop.pack")  # with a name, because as a script this module is called __main__
def pack(session: Session, number: int) -> None:
    session.get_one(Order, number).is_packed = True


SessionLocal = sessionmaker(create_engine(os.environ.get("SHOP_DATABASE_URL", "sqlite:///shop.sqlite")))
outbox = AsyncTask(SessionLocal)


def place(numbers: list[int]) -> None:
    with SessionLocal.begin() as session:
        for number in numbers:
            session.add(Order(number=number))
            Attempt.call(pack, number)


def main() -> None:
    parser = argparse.ArgumentParser(description="Place orders.")
    parser.add_argument("numbers", metavar="NUMBER", type=int, nargs="+")
    parser.add_argument("--now", action="store_true", help="make the calls at once, in this process")
    given = parser.parse_args()
    place(given.numbers)
    if given.now:
        print(f"{outbox.run_batch().succeeded} packed")


if __name__ == "__main__":
    main()
