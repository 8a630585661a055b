"""The tables."""

from datetime import timedelta

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from async_task import Asyncable, Processing
from reviews import board


class Base(DeclarativeBase): ...


class Review(Asyncable, Base):
    __tablename__ = "reviews"
    __asyncable_columns__ = {"submitted_at": "establishment_submitted_at"}  # noqa: RUF012
    processing = Processing(interval=timedelta(hours=3), window=timedelta(days=4))

    id: Mapped[int] = mapped_column(primary_key=True)
    claim: Mapped[str]
    veteran: Mapped[str]
    establishment: Mapped[str | None]

    def process(self) -> None:
        self.establishment = board.establish(self.claim, idempotency_key=f"review-{self.id}")

    @property
    def asyncable_user(self) -> str:
        return self.veteran
