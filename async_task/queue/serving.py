"""Which queues and targets the running workers serve, by what their rows tell."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from sqlalchemy import Table, or_, select
from sqlalchemy.orm import Session

from async_task.database.clock import statement_now
from async_task.queue.workers import WORKER, about_of
from async_task.schema.tables import companion_tables

SILENT_AFTER = 60.0
"""Seconds without a heartbeat after which a worker does not count as running. An idle one has four in that time."""
MOST_WORKERS = 1_000
"""How many are read at most."""
MOST_NAMED = 10
"""How many queues a sentence names."""


class Served(NamedTuple):
    """What one running worker serves: these queues (none: all), and these targets by all their names; None: it does not
    tell."""

    queues: frozenset[str]
    targets: frozenset[str] | None

    def serves(self, queue: str) -> bool:
        return not self.queues or queue in self.queues


class Serving(NamedTuple):
    """What all running workers serve. A batch does not count: it serves only what was due when it began."""

    workers: Sequence[Served]

    @classmethod
    def read(cls, session: Session, table: Table) -> Self:
        """One statement."""
        c = companion_tables(table).workers.c
        is_ours = or_(c.job_type.is_(None), c.job_type == table.name)
        running = (is_ours, c.kind == WORKER, c.beat_at > statement_now(-SILENT_AFTER))
        asked: Any = select(c.about).where(*running).order_by(c.beat_at.desc()).limit(MOST_WORKERS)
        return cls([_served(about_of(about)) for about in session.scalars(asked)])

    def serves(self, queue: str) -> bool:
        return any(one.serves(queue) for one in self.workers)

    @property
    def said(self) -> str:
        """What they serve, of a queue that none of them serves."""
        names = sorted({name for one in self.workers for name in one.queues})
        return f"they serve {', '.join(names[:MOST_NAMED])}"

    def is_unknown(self, queue: str, target: str) -> bool:
        """Whether running workers serve the queue, and none of these knows the target."""
        able = [one for one in self.workers if one.serves(queue)]
        return bool(able) and all(one.targets is not None and target not in one.targets for one in able)


def _served(about: dict[str, Any]) -> Served:
    known = about.get("target_names")
    return Served(frozenset(about.get("queues") or ()), None if known is None else frozenset(known))
