"""The backlog: what waits and is due. It is looked at, and nothing is written; each function is one transaction."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, select, union_all

from async_task.database.clock import clock_now
from async_task.database.dialects import MYSQL
from async_task.queue import claim_statements, predicates

MOST_COUNTED = 10_000
"""What is left of a batch, and what is listed, is counted so far: to count millions takes seconds."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which attempts a batch is about: those in `queues`, and of `targets`, by every name that a row may hold; of none
    named: of all."""

    queues: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


def queues(engine: Engine, table: Table, wanted: Iterable[str] = ()) -> tuple[list[str], dt.datetime]:
    """The queues in which anything waits, or those `wanted`; and the database's clock before it was looked."""
    found = list(wanted)
    with engine.begin() as connection:
        now = connection.scalar(select(clock_now()))
        assert now is not None
        if not found:
            while (name := connection.scalar(predicates.next_queue(table, found[-1] if found else None))) is not None:
                found.append(name)
        return found, now


def with_due(
    engine: Engine, table: Table, names: Iterable[str], began: dt.datetime, targets: Sequence[str], *, suspects: bool
) -> list[str]:
    """Those of these queues in which anything is due: suspects, or all but suspects. Locked rows are seen too."""
    conditions = predicates.due(table, began=began, suspects=suspects, targets=targets)
    with engine.begin() as connection:
        return [
            name for name in names if any(connection.execute(predicates.priorities_due(table, name, conditions)).one())
        ]


def left(engine: Engine, table: Table, names: Sequence[str], began: dt.datetime, targets: Sequence[str]) -> int:
    """How many attempts a batch has still to start; MOST_COUNTED where it is so many or more."""
    conditions = (table.c.queue.in_(names), *predicates.due(table, began=began, targets=targets))
    with engine.begin() as connection:
        return connection.scalar(predicates.count(table, conditions, MOST_COUNTED)) or 0


def with_suspects(engine: Engine, table: Table, wanted: Sequence[str] = ()) -> list[str]:
    """The queues in which suspects are due, of those `wanted` or of all."""
    conditions = predicates.due(table, suspects=True)
    with engine.begin() as connection:
        found = connection.scalars(select(table.c.queue).where(*conditions).distinct()).all()
        return [name for name in found if not wanted or name in wanted]


@dataclass(frozen=True, slots=True)
class PollResult:
    """What one look found: the `queues` in which something is due, without those that are `paused`; those that are
    `limited`, by what the database knows; and whether there are attempts that have just
    arrived and wait for their turn, due suspects, orphans (or claims of this worker that it may have lost), and
    attempts past their `expires_at`."""

    queues: frozenset[str]
    paused: frozenset[str]
    limited: frozenset[str]
    has_arrivals: bool
    has_suspects: bool
    has_orphans: bool
    has_overdue: bool


class SeenQueues:
    """The queues that were seen so far, for a server that cannot walk from one name to the next in its index, and would
    read all that waits: MySQL and MariaDB. There it is asked for what lies between those that are known."""

    def __init__(self) -> None:
        self.seen: tuple[str, ...] = ()

    def look(self, connection: Connection, table: Table, worker: str, lease: dt.timedelta) -> Any:
        while True:
            rows: Any = connection.execute(
                claim_statements.poll(table, lease, (), self.seen), {"a_worker": worker}
            ).all()
            new = {name for kind, name in rows if kind == claim_statements.UNKNOWN and name is not None}
            if not new:
                return rows
            self.seen = tuple(sorted({*self.seen, *new}))


def poll(
    connection: Connection, table: Table, worker: str, lease: dt.timedelta, wanted: Sequence[str] = (),
    names: SeenQueues | None = None,
) -> PollResult:  # fmt: skip
    """Look at everything that `worker` might have to do, in the queues `wanted` or in all, by one statement; on MySQL
    and MariaDB by one more for each queue that is not among those `names` yet."""
    found: dict[str, set[str | None]] = {}
    rows: Any
    if names is not None and not wanted and connection.dialect.name in MYSQL:
        rows = names.look(connection, table, worker, lease)
    else:
        rows = connection.execute(claim_statements.poll(table, lease, tuple(wanted)), {"a_worker": worker})
    for kind, name in rows:
        found.setdefault(kind, set()).add(name)
    named = (claim_statements.QUEUE, claim_statements.PAUSED, claim_statements.LIMITED)
    due, paused, limited = (frozenset(name for name in found.get(kind, ()) if name is not None) for kind in named)
    return PollResult(due - paused, paused, limited, *(kind in found for kind in claim_statements.KINDS))


@dataclass(frozen=True, slots=True)
class Depth:
    """Of one queue: how many attempts are `due`, how many wait to be due `later`, and how many are `claimed`. So far as
    MOST_COUNTED. What waits for an earlier one of its key is in none of these."""

    queue: str
    due: int
    later: int
    claimed: int


def depths(engine: Engine, table: Table, wanted: Sequence[str] = ()) -> list[Depth]:
    """How deep these queues are, and those in which anything is claimed, by two statements; of none named, all queues:
    one statement more for each."""
    names = list(wanted) or queues(engine, table)[0]
    with engine.begin() as connection:
        found: Any = connection.execute(predicates.in_hand(table, table.c.queue, MOST_COUNTED)).all()
        claimed: dict[str, int] = dict(found)
        known = [*names, *(name for name in claimed if name not in names)]
        if not known:
            return []
        rows: Any = connection.execute(
            union_all(*(predicates.depth(table, name, MOST_COUNTED) for name in known))
        ).all()
    return sorted(
        (
            Depth(name, min(due, MOST_COUNTED), max(0, waiting - due), claimed.get(name, 0))
            for name, due, waiting in rows
        ),
        key=lambda depth: depth.queue,
    )
