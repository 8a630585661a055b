"""Models that are their own job, as type checkers see them."""

import datetime as dt

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from async_task import Asyncable, AsyncTask, Processing, process_models


class Base(DeclarativeBase): ...


class Review(Asyncable, Base):
    __tablename__ = "reviews"
    processing = Processing(name="typing.review", interval=dt.timedelta(hours=12))
    id: Mapped[int] = mapped_column(primary_key=True)

    def process(self) -> None:
        at: dt.datetime | None = self.attempted_at
        print(at)


class WithSession(Asyncable, Base):
    __tablename__ = "with_session"
    processing = Processing(name="typing.with_session")
    id: Mapped[int] = mapped_column(primary_key=True)

    def process(self, session: Session) -> None:
        session.flush()


class WithAsyncSession(Asyncable, Base):
    __tablename__ = "with_async_session"
    processing = Processing(name="typing.with_async_session")
    id: Mapped[int] = mapped_column(primary_key=True)

    async def process(self, session: AsyncSession) -> None:
        await session.flush()


def use(session: Session, review: Review, app: AsyncTask) -> None:
    review.submit_for_processing(session, delay=60)
    review.submit_for_processing(delay=dt.timedelta(hours=1))
    review.update_error("text")
    review.update_error(session, "text")
    review.processed()
    has_effect: bool = review.cancel(reason="withdrawn")
    status: str = review.asyncable_status
    found: Select[tuple[Review]] = Review.requires_processing().where(Review.id > 1)
    print(has_effect, status, review.is_processed, review.sanitized_error, found, Review.processed().limit(1))
    print(select(Review).where(~Review.is_canceled, Review.submitted_at.is_not(None)))
    print(app.process_models(10).dispatched, app.summarize_models().times, process_models)


async def use_async(session: AsyncSession, review: Review) -> None:
    await session.run_sync(review.submit_for_processing, delay=60)
    await session.run_sync(review.update_error, "text")
