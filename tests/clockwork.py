"""Move time instead of waiting for it, and check what must hold for every row."""

import datetime as dt
from typing import Any

from sqlalchemy import Connection, DateTime, Engine, Table, bindparam, or_, select, update

from async_task import Attempt, Status
from async_task.schema.columns import Instant
from async_task.schema.tables import Worker
from outbox import effects


def let_pass(engine: Engine, time: dt.timedelta | float, *, workers: bool = True, also: tuple[Any, ...] = ()) -> None:
    """Let `time` pass: move every instant of every attempt, of every worker's heartbeat, and of the models `also`, back
    by that much."""
    delta = time if isinstance(time, dt.timedelta) else dt.timedelta(seconds=time)
    for model in (Attempt, *([Worker] if workers else []), *also):
        table: Any = model.__table__
        moments = [column for column in table.columns if isinstance(column.type, (Instant, DateTime))]
        key = next(iter(table.primary_key))
        with engine.begin() as connection:
            rows = connection.execute(select(key.label("key"), *moments)).mappings().all()
            moved = [
                {f"its_{name}": at - delta if isinstance(at, dt.datetime) else at for name, at in row.items()}
                for row in rows
            ]
            if moved:
                values = {column.name: bindparam(f"its_{column.name}") for column in moments}
                connection.execute(update(table).where(key == bindparam("its_key")).values(values), moved)


def forget_beats(engine: Engine) -> None:
    """As if every worker had died a day ago: rows stay claimed, and no heartbeat is recent."""
    with engine.begin() as connection:
        for row in connection.execute(select(Worker.name, Worker.beat_at)).all():
            beat = row.beat_at - dt.timedelta(days=1)
            connection.execute(update(Worker).where(Worker.name == row.name).values(beat_at=beat, pid=2**22 + 1))


def row_of(engine: Engine, attempt_id: Any) -> Any:
    """The row of an attempt as it is in the database now."""
    table: Any = Attempt.__table__
    with engine.connect() as connection:
        return connection.execute(select(table).where(table.c.id == attempt_id)).one()


a: Table = Attempt.__table__  # type: ignore[assignment]
e = effects
_pending = a.c.status == Status.PENDING
_is_wrong = {
    "completed_at is set exactly when it is terminal": _pending == a.c.completed_at.is_not(None),
    "a terminal attempt is not claimed": ~_pending & a.c.claim_id.is_not(None),
    "errors, crashes and losses are no more than tries": a.c.num_errors + a.c.num_crashes + a.c.num_losses
    > a.c.num_attempts,
    "an attempt that succeeded was tried": (a.c.status == Status.SUCCEEDED) & (a.c.num_attempts == 0),
}
_broken = select(a.c.id, *(wrong.label(promise) for promise, wrong in _is_wrong.items())).where(
    or_(*_is_wrong.values())
)
_done = select(e.c.attempt_id).where(e.c.what == "done")
_succeeded = select(a.c.id).where(a.c.status == Status.SUCCEEDED)


def broken_promises(connection: Connection) -> list[str]:
    """What does not hold for the rows that a test leaves, in sentences; empty if everything holds."""
    rows = connection.execute(_broken).mappings().all()
    found = [f"{promise}: not so for {row['id']}" for row in rows for promise in _is_wrong if row[promise]]
    ids = list(connection.scalars(_done))
    succeeded = {str(one) for one in connection.scalars(_succeeded)} if ids else set()
    found += [f"attempt {one} has an effect, but did not succeed" for one in set(ids) - succeeded]
    found += [f"attempt {one} has its effect twice" for one in set(ids) if ids.count(one) > 1]
    return found
