"""Workers on threads of a test, and what became of their attempts."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt
from async_task.worker.worker import AttemptWorker


@contextlib.contextmanager
def working(app: AsyncTask, **settings: Any) -> Iterator[AttemptWorker]:
    """A running worker. It has ended when this block is left."""
    worker = app.worker(**{"poll": 0.05, "concurrency": 2, **settings})
    raised: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(timeout=60)
        assert not thread.is_alive(), "the worker does not end"
        assert not raised, raised


class AtWork:
    """A worker on threads of its own, which a test stops or abandons."""

    def __init__(self, app: AsyncTask, **settings: Any) -> None:
        self._before = set(threading.enumerate())
        self._worker = app.worker(**{"concurrency": 1, "poll": 0.05, **settings})
        self._thread = threading.Thread(target=self._worker.run)
        self._thread.start()

    def stop(self) -> None:
        self._worker.stop()

    def abandon(self) -> None:
        self._worker.stop()
        self._worker.stop()

    def await_farewell(self) -> None:
        """Wait until it has ended, without its worker threads."""
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()

    def await_lanes(self) -> None:
        """Wait until its worker threads have ended too."""
        for one in set(threading.enumerate()) - self._before:
            if one.name.startswith("async-task-lane"):
                one.join(timeout=60)
                assert not one.is_alive()


@contextlib.contextmanager
def at_work(app: AsyncTask, **settings: Any) -> Iterator[AtWork]:
    made = AtWork(app, **settings)
    try:
        yield made
    finally:
        made.abandon()
        made.await_farewell()
        made.await_lanes()


def counted(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        rows = connection.execute(select(Attempt.status, func.count()).group_by(Attempt.status)).all()
    return {status.value: number for status, number in rows}


def make(engine: Engine, target: Any, number: int = 1, **options: Any) -> list[Any]:
    """Write `number` attempts of one call in one transaction, and return their ids."""
    with Session(engine) as session, session.begin():
        return Attempt.create_many(session, [{"target": target, **options} for _ in range(number)])


def at_rest(engine: Engine) -> bool:
    return "pending" not in counted(engine)
