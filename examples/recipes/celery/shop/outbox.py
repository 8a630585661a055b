"""What must happen because an order was placed."""

from sqlalchemy.orm import Session

from async_task import AsyncTask, Discard, current_attempt, target
from shop import tasks
from shop.models import Order, SessionLocal


@target("shop.celery")
class Celery:
    @staticmethod
    def enqueue(task: str, args: list[int]) -> None:
        if task not in tasks.app.tasks:
            raise Discard(f"Celery knows no task {task}")
        tasks.app.tasks[task].apply_async(args, task_id=str(current_attempt().id))


@target("shop.book")
def book(session: Session, number: int) -> None:
    session.get_one(Order, number).is_booked = True  # is committed together with `succeeded`


outbox = AsyncTask(SessionLocal)
