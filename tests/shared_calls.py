"""How tests write, claim and check calls that share a transaction."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    select,
)
from sqlalchemy.orm import Session
from sqlalchemy.sql import Select

import outbox
from async_task import Attempt
from async_task.execution import batch_executor
from async_task.execution.adaptive import BatchSize
from async_task.execution.batch_executor import BatchExecutor
from outbox import act_shared, effects


def claim_many(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Let a worker thread claim many attempts from the start, also on a busy machine."""
    set_attribute(BatchSize, "number", property(lambda self: 30, lambda self, number: None))
    set_attribute(batch_executor, "LONGEST_ALONE", 30.0)


def numbered(engine: Engine, number: int, target: Any = act_shared, **options: Any) -> list[Any]:
    """Attempts with the arguments 0, 1, 2 ...; their ids."""
    with Session(engine) as session, session.begin():
        rows = [{"target": target, "method_args": {"number": one}, **options} for one in range(number)]
        return Attempt.create_many(session, rows)


def written(engine: Engine) -> list[int]:
    """The numbers of the calls whose writes are committed."""
    with engine.connect() as connection:
        return sorted(int(what) for what in connection.scalars(select(effects.c.what)))


def does(act: Callable[[Session, int], Any]) -> None:
    outbox.acts[:] = [act]


def put(session: Session, what: str) -> None:
    session.execute(effects.insert().values(what=what))


def lock(connection: Connection, attempt_id: Any) -> None:
    found: Select[Any] = select(Attempt.id).where(Attempt.id == attempt_id).with_for_update()
    connection.execute(found).all()


def lock_before_the_first_call(monkeypatch: pytest.MonkeyPatch, connection: Connection, attempt_id: Any) -> None:
    """Lock the row of an attempt that is claimed and not started yet."""
    execute, is_locked = BatchExecutor.execute, threading.Event()

    def after_a_lock(self: BatchExecutor) -> None:
        if not is_locked.is_set():
            lock(connection, attempt_id)
            is_locked.set()
        execute(self)

    monkeypatch.setattr(BatchExecutor, "execute", after_a_lock)
