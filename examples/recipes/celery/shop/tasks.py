"""The tasks of Celery. Its workers run them: `celery --app shop.tasks worker`."""

import os

from celery import Celery

from async_task import Retry, target
from shop.models import Order, SessionLocal

app = Celery("shop", broker=os.environ.get("SHOP_BROKER_URL", "redis://localhost/0"))


@app.task(acks_late=True)
def send_receipt(number: int) -> None:
    with SessionLocal.begin() as session:
        session.get_one(Order, number).receipts += 1


@target("shop.pack", retry=Retry.exponential(first=1, max_attempts=5))
@app.task(autoretry_for=(OSError,), retry_backoff=True, max_retries=5)
def pack(number: int) -> None:
    with SessionLocal.begin() as session:
        session.get_one(Order, number).is_packed = True
