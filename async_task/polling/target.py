"""The target that polls the operations of one class. A try is one step: it reads the row in a transaction of its own,
calls one method of it without a transaction, and writes what follows together with its own outcome.
"""

import datetime as dt
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task.attempts.chain import with_key
from async_task.database.clock import statement_now
from async_task.database.lanes import lane_of
from async_task.polling.chain import METHOD, name_of
from async_task.polling.poll_step import PollStep
from async_task.polling.states import PollState
from async_task.targets.context import Again, Discard
from async_task.targets.registry import registered_targets, target
from async_task.targets.retry import Retry
from async_task.targets.row_target import RowTarget

if TYPE_CHECKING:
    from async_task.polling.pollable import Pollable


def register(model: "type[Pollable]") -> None:
    """Put the polls of these operations on the allow-list. Raises ConfigurationError."""
    retry = Retry(model.polling.wait_after_error, name="polling")
    target(PollTarget(model), name=name_of(model), mode="leased", retry=retry)


def registered_pollables() -> "list[type[Pollable]]":
    """The classes of operations that this process knows."""
    return [one.thing.model for one in registered_targets() if isinstance(one.thing, PollTarget)]


class PollTarget(RowTarget):
    """What is registered for a class of operations."""

    def poll(self, session: Session, key: Any) -> Again | None:
        """Do the next step for the operation with this primary key."""
        row, now = self._read(session, key)
        return PollStep(session, row, now).go_on()

    def row_to_tell_of(self, session: Session, key: Any, *, has_failed: bool) -> "Pollable | None":
        """The attempt of an operation succeeds too if the provider has canceled it, or if it was given up: of these no
        success is told."""
        row: Pollable | None = session.scalars(with_key(self.model, select(self.model), key)).unique().first()
        if row is None or has_failed:
            return row
        return row if row.status == PollState.ENDED and row.handler_dispatched_at is not None else None

    def _read(self, session: Session, key: Any) -> "tuple[Pollable, dt.datetime]":
        wanted: Any = with_key(self.model, select(self.model, statement_now()), key)
        with Session(lane_of(session).engine, expire_on_commit=False) as reading, reading.begin():
            found: Any = reading.execute(wanted).first()
        if found is None:
            raise Discard(f"there is no {self.model.__name__} {key} any more")
        return found[0], found[1]


assert PollTarget.poll.__name__ == METHOD
