"""A sample of what waits in queues: of each priority of a queue the first rows that are due, and the first that are due
later, along the index of what waits. Whatever is stuck is among the oldest of its queue, as others are performed."""

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Table, case, func, literal_column, select, union_all
from sqlalchemy.orm import Session

from async_task.encryption.encryptors import NullEncryptor
from async_task.encryption.rotation import stored_head
from async_task.queue.backlog import MOST_COUNTED, waiting_queues
from async_task.queue.predicates import PRIORITIES
from async_task.reading.due_pages import MOST_QUEUES
from async_task.schema.states import is_waiting

READ = 10_000
"""About how many rows are read; of each part FEWEST at least."""
FEWEST = 20
UNSERVED_AFTER = dt.timedelta(minutes=5)
"""For how long something is due in a queue before it counts as served by nobody: cron may start a batch meanwhile."""
SHOWN_ERROR = 300
"""How many characters of an error are read."""


class WaitingRow(NamedTuple):
    """The facts of one waiting attempt. `head`: what names the key of encrypted arguments."""

    id: uuid.UUID
    queue: str
    target: str
    method_name: str
    encryptor: str
    head: str
    order_key: str | None
    num_errors: int
    due_at: dt.datetime
    created_at: dt.datetime
    error: str | None


class WaitingSample(NamedTuple):
    """`rows`: by queue, by due time, without those that are too late. `is_complete`: whether these are all that
    wait."""

    rows: Mapping[str, Sequence[WaitingRow]]
    is_complete: bool
    now: dt.datetime

    def due(self, queue: str) -> list[WaitingRow]:
        return [row for row in self.rows[queue] if row.due_at <= self.now]


def sample_of(session: Session, table: Table, now: dt.datetime) -> WaitingSample:
    """One statement for each queue in which anything waits, of MOST_QUEUES queues."""
    queues = waiting_queues(session.connection(), table, MOST_QUEUES)
    part = max(FEWEST, READ // (4 * max(1, len(queues))))
    rows: dict[str, Sequence[WaitingRow]] = {}
    is_complete = len(queues) < MOST_QUEUES
    for queue in queues:
        found: Any = session.execute(_first_of(table, queue, now, part)).all()
        parts = [row.part for row in found]
        is_complete = is_complete and all(parts.count(one) < part for one in set(parts))
        in_time = [WaitingRow(*row[2:]) for row in found if row.expires_at is None or row.expires_at > now]
        rows[queue] = sorted(in_time, key=lambda row: (row.due_at, str(row.id)))
    return WaitingSample(rows, is_complete, now)


def num_due(session: Session, table: Table, sample: WaitingSample, queue: str) -> tuple[int, bool]:
    """How many are due in a queue, and whether that is exact. Outside of a complete sample, MOST_COUNTED of each
    priority are counted at most, along the index, and with those that are too late."""
    if sample.is_complete:
        return len(sample.due(queue)), True
    parts: list[Any] = []
    for priority in PRIORITIES:
        is_due = (*_place(table, queue, priority), table.c.due_at <= sample.now)
        some = select(table.c.id).where(*is_due).limit(MOST_COUNTED).subquery()
        parts.append(select(func.count()).select_from(some).scalar_subquery())
    total: Any = sum(parts[1:], start=parts[0])
    number = session.scalar(select(total)) or 0
    return number, number < MOST_COUNTED


def shown_error(table: Table) -> Any:
    """The beginning of the last error, as a column "error"."""
    return func.substr(table.c.last_error, literal_column("1"), literal_column(str(SHOWN_ERROR))).label("error")


def _first_of(table: Table, queue: str, now: dt.datetime, part: int) -> Any:
    c, parts = table.c, list[Any]()
    is_plain = c.encryptor == NullEncryptor.name
    head = case((is_plain, ""), else_=stored_head(table)).label("head")
    facts = (c.id, c.queue, c.target, c.method_name, c.encryptor, head, c.order_key, c.num_errors, c.due_at)
    for priority in PRIORITIES:
        for number, when in enumerate((c.due_at <= now, c.due_at > now)):
            named: Any = literal_column(str(2 * priority + number)).label("part")
            asked: Any = select(named, c.expires_at, *facts, c.created_at, shown_error(table))
            asked = asked.where(*_place(table, queue, priority), when)
            parts.append(select(asked.order_by(c.due_at, c.id).limit(part).subquery()))
    return union_all(*parts)


def _place(table: Table, queue: str, priority: int) -> tuple[Any, ...]:
    return (*is_waiting(table), table.c.queue == queue, table.c.priority == literal_column(str(priority)))
