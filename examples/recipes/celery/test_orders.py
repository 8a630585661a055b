"""The shop with a worker of Celery and its broker in memory."""

import time
from collections.abc import Callable, Iterator

import pytest
from celery.contrib.testing.worker import start_worker
from kombu.exceptions import OperationalError

from async_task import Attempt
from shop import tasks
from shop.models import Base, Order, SessionLocal, engine
from shop.orders import place, place_without_outbox
from shop.outbox import Celery, outbox


@pytest.fixture(scope="module", autouse=True)
def tables() -> Iterator[None]:
    outbox.create_schema()
    outbox.on_connection(Base.metadata.create_all)
    tasks.app.conf.update(broker_url="memory://", result_backend=None)
    with start_worker(tasks.app, pool="solo", perform_ping_check=False):
        yield
    engine.dispose()


def order(number: int) -> Order:
    with SessionLocal() as session:
        return session.get_one(Order, number)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a worker of Celery, which tells nobody when it has ended a task."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_worker_of_celery_runs_what_the_outbox_has_enqueued() -> None:
    place(1)
    assert outbox.run_batch().succeeded == 3
    assert order(1).is_packed
    assert order(1).is_booked
    until(lambda: order(1).receipts == 1)


def test_callers_that_have_not_moved_use_the_same_tasks() -> None:
    place_without_outbox(2)
    until(lambda: order(2).is_packed and order(2).receipts == 1)


def test_a_broker_that_is_away_costs_a_retry_and_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OperationalError("connection refused")

    with monkeypatch.context() as away:
        away.setattr(tasks.app, "send_task", refuse)
        with pytest.raises(OperationalError):
            place_without_outbox(3)
        place(4)
        report = outbox.run_batch()
    assert (report.succeeded, report.retried) == (2, 1)
    with SessionLocal.begin() as session:
        for attempt in session.scalars(Attempt.pending()):
            attempt.retry_now()
    assert outbox.run_batch().succeeded == 1
    until(lambda: order(4).receipts == 1)
    assert order(3).receipts == 0  # its order was committed, and its receipt is lost


def test_an_error_of_a_task_is_retried_by_the_policy_of_the_target() -> None:
    with SessionLocal.begin() as session:
        Attempt.options(session=session).call(tasks.pack, 404)
    report = outbox.run_batch()
    assert (report.retried, report.failed) == (1, 0)
    (error,) = (one.last_error for one in outbox.attempts.list(status="pending").attempts)
    assert error is not None
    assert "NoResultFound" in error


def test_a_task_that_celery_does_not_know_fails_at_once() -> None:
    with SessionLocal.begin() as session:
        Attempt.options(session=session).call(Celery.enqueue, "shop.tasks.gone", [4])
    report = outbox.run_batch()
    assert report.failed == 1
