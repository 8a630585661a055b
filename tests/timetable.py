"""Clocks in tests: time is moved, and what they have written is counted.

As a module, `timetable:outbox` is an application with a schedule, for clocks in processes of their own.
"""

import contextlib
import datetime as dt
import os
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, func, select, update

from async_task import AsyncTask, Attempt, Clock, Schedule
from async_task.database.lanes import open_lane
from async_task.schema.tables import Occurrence, ScheduleEntry
from outbox import Client

NUM_ENTRIES = 12


def made_schedule() -> Schedule:
    schedule = Schedule()
    for number in range(NUM_ENTRIES):
        schedule.every(days=1, call=Client.ping, key=f"daily {number}", catch_up="all")
    return schedule


def __getattr__(name: str) -> AsyncTask:
    if name != "outbox":
        raise AttributeError(name)
    return AsyncTask(os.environ["ASYNC_TASK_DATABASE_URL"], schedule=made_schedule())


class Ticking:
    """A clock that ticks when the test says so."""

    def __init__(self, app: AsyncTask) -> None:
        self.clock: Clock = app.clock()
        self._lane = open_lane(app._source, private=True)

    def tick(self) -> float:
        """One tick; what is new was taken up by the one before."""
        return self.clock.tick(self._lane)

    def close(self) -> None:
        self._lane.close()
        self.clock._deregister()


@contextlib.contextmanager
def ticking(app: AsyncTask) -> Iterator[Ticking]:
    """A clock that has seen its entries."""
    made = Ticking(app)
    try:
        made.tick()
        yield made
    finally:
        made.close()


def let_days_pass(engine: Engine, days: int, key: str | None = None) -> None:
    """Let whole days pass: move all that is known of an entry, or of all, back by that much."""
    forget_days(engine, days, key)
    wanted = [] if key is None else [Occurrence.schedule_key == key]
    table: Any = Occurrence.__table__
    with engine.begin() as connection:
        for row in connection.execute(select(table).where(*wanted).order_by(table.c.fire_at)).all():
            mine = (table.c.schedule_key == row.schedule_key, table.c.fire_at == row.fire_at)
            connection.execute(update(table).where(*mine).values(fire_at=row.fire_at - dt.timedelta(days=days)))


def forget_days(engine: Engine, days: int, key: str | None = None) -> None:
    """As if nothing of the last days was decided, although there may be rows."""
    wanted = [] if key is None else [ScheduleEntry.schedule_key == key]
    with engine.begin() as connection:
        rows = connection.execute(select(ScheduleEntry.schedule_key, ScheduleEntry.decided_until).where(*wanted)).all()
        for one, until in rows:
            before = until - dt.timedelta(days=days)
            connection.execute(
                update(ScheduleEntry).where(ScheduleEntry.schedule_key == one).values(decided_until=before)
            )


def occurrences(engine: Engine, key: str | None = None) -> list[Any]:
    """The rows, in order of entry and time."""
    wanted = [] if key is None else [Occurrence.schedule_key == key]
    rows = select(Occurrence.__table__).where(*wanted).order_by(Occurrence.schedule_key, Occurrence.fire_at)
    with engine.connect() as connection:
        return list(connection.execute(rows).all())


def fates(engine: Engine, key: str | None = None) -> list[tuple[str, str | None]]:
    return [(one.status, one.reason) for one in occurrences(engine, key)]


def decided_until(engine: Engine, key: str) -> dt.datetime:
    with engine.connect() as connection:
        asked = select(ScheduleEntry.decided_until).where(ScheduleEntry.schedule_key == key)
        return connection.execute(asked).scalar_one()


def num_attempts(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Attempt)) or 0
