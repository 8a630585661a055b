"""Where an attempt is performed: whose sessions, which model and table, on which lane."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from sqlalchemy import Engine, Table

from async_task.attempts.attempt import BaseAttempt
from async_task.database.engines import Source
from async_task.database.lanes import Lane


@dataclass(frozen=True, slots=True)
class Site:
    """What all steps of one performing have in common. `calling`: entered for the time of the call itself."""

    source: Source
    model: type[BaseAttempt]
    table: Table
    lane: Lane
    calling: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def engine(self) -> Engine:
        return self.lane.engine
