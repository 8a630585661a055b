"""`python -m reviews`: what becomes of three reviews. Hours pass in no time: the instants of the rows are moved."""

from datetime import timedelta

from sqlalchemy import update

from async_task import Attempt
from reviews.app import SessionLocal, engine, outbox
from reviews.models import Base, Review


def main() -> None:
    outbox.create_schema()
    Base.metadata.create_all(engine)
    with SessionLocal.begin() as session:
        review = Review(claim="C-1", veteran="Ada")
        review.submit_for_processing(session)
        Review(claim="C-2", veteran="Grace").submit_for_processing(session, delay=timedelta(hours=21))
        Review(claim="C-3", veteran="Mary").submit_for_processing(session)
    outbox.run_batch()
    show("after the first try, which the board did not answer")
    with SessionLocal.begin() as session:
        for review in session.scalars(Review.with_error().where(Review.claim == "C-1")):
            review.restart(session)
    outbox.run_batch()
    show("after the restart of C-1")
    pass_hours(4)
    with SessionLocal.begin() as session:
        for attempt in session.scalars(Attempt.pending()):
            session.delete(attempt)  # somebody has emptied the table
    print(f"\nthe sweep of the clock dispatches {outbox.process_models().dispatched} row")
    outbox.run_batch()
    show("after the sweep")
    with SessionLocal.begin() as session:
        review = session.scalars(Review.unexpired().where(Review.claim == "C-2")).one()
        review.cancel(session, reason="withdrawn")
    show("after C-2 was withdrawn")


def show(when: str) -> None:
    print(f"\n{when}:")
    with SessionLocal() as session:
        for review in session.query(Review).order_by(Review.id):
            print(f"  {review.claim} {review.asyncable_status:10} {review.sanitized_error or '-'}")


def pass_hours(hours: int) -> None:
    """Move the instants of all rows back."""
    names = ("submitted_at", "last_submitted_at", "attempted_at")
    with SessionLocal.begin() as session:
        for review in session.query(Review):
            before = {name: getattr(review, name) for name in names}
            moved = {name: at - timedelta(hours=hours) for name, at in before.items() if at is not None}
            session.execute(update(Review).where(Review.id == review.id).values(moved))


if __name__ == "__main__":
    main()
