"""Placing an order, before the move and in each of its steps."""

from async_task import Attempt
from shop import tasks
from shop.models import Order, SessionLocal
from shop.outbox import Celery, book


def place_without_outbox(number: int) -> None:
    with SessionLocal.begin() as session:
        session.add(Order(number=number))
    tasks.send_receipt.delay(number)  # lost if this process dies here, or the broker is away
    tasks.pack.delay(number)


def place(number: int) -> None:
    with SessionLocal.begin() as session:
        session.add(Order(number=number))
        Attempt.call(Celery.enqueue, tasks.send_receipt.name, [number])  # first step: a worker of Celery runs it
        Attempt.call(tasks.pack, number)  # second step: a worker of the outbox runs it
        Attempt.call(book, number)  # last step: it is no task of Celery any more
