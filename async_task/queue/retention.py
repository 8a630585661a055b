"""Pruning: attempts that ended long ago are deleted, page by page, while workers run.

1. Read a stretch of the primary key, from its begin. An id begins with the time of its creation, and what ended long
   ago was created long ago: so the walk ends where younger attempts begin, and needs no index of its own.
2. Delete a page of what was found, in one short transaction: only rows that nobody has locked, and that are still as
   they were when they were found. The others are left to the next run.
3. Wait for as long as that took: in half of the time nothing is locked or written.

An attempt whose idempotence token is still remembered is not deleted, but emptied: arguments, error and trace are
gone, and the unique index still knows the token. So `ensure` needs no second table, and no race is left between them.

Notes of people are never deleted: they are found by the id of their attempt.
"""

import datetime as dt
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Engine, Table, and_, false, func, inspect, or_, select, update

from async_task.database.clock import statement_now
from async_task.database.dialects import by_primary_key, delete_by_key
from async_task.database.greenlets import sleep
from async_task.database.transactions import retry_transient
from async_task.queue.pages import PAGE, Refused, refusing
from async_task.schema.audit import NOTE
from async_task.schema.columns import CLOCK_SLACK, first_uuid7
from async_task.schema.states import emptying, has_ended, is_emptied
from async_task.schema.tables import companion_tables, table_of
from async_task.targets.keeping import Ages
from async_task.targets.registry import registered_targets

logger = logging.getLogger("async_task")
STRETCH = 10_000
"""How many entries of the primary key one statement reads."""
EVENTS = 5_000
"""How many events one transaction deletes at most: an attempt may have any number."""
LOOKED_UP = 50
"""For how many attempts events are looked up in one statement."""
LONGEST_PAUSE = 1.0
"""Seconds between two pages at most."""
FIRST = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
Ids: TypeAlias = Sequence[uuid.UUID]


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What `prune` did, or would do. `deleted`: attempts. `emptied`: attempts of which only the token, the status and
    the times are left, because the token is still remembered. `events`: how many were deleted with both. `left`:
    attempts that others had locked or changed meanwhile; the next run sees to them. `refused`: why the database refused
    to delete attempts, by id."""

    deleted: int = 0
    emptied: int = 0
    events: int = 0
    left: int = 0
    refused: dict[uuid.UUID, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to prune."""
        return not (self.deleted or self.emptied or self.left or self.refused)


@dataclass(frozen=True, slots=True)
class Rule:
    """Attempts of these targets, of this method and in this queue (without any: of all) are kept for `ages`, by
    status."""

    ages: Ages
    targets: tuple[str, ...] = ()
    queue: str | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """What is pruned, by the first of any `rules`. `keep_tokens`: how long a token is remembered after its attempt has
    ended; None: for ever. `keep_events`: whether events stay."""

    rules: tuple[Rule, ...]
    keep_tokens: dt.timedelta | None = None
    keep_events: bool = False


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long an application keeps attempts, where their target does not say it; `tokens` as `keep_tokens`."""

    general: Ages = ()
    tokens: dt.timedelta | None = None

    def retention(self) -> Retention:
        """For the targets of this process; what it does not know may be kept for longer by others. Without rules where
        nobody has said how long anything is kept."""
        names: dict[Ages, list[str]] = {}
        for one in registered_targets():
            ages = self.general if one.policy.keep is None else one.policy.keep
            names.setdefault(ages, []).extend(one.names)
        rules = (Rule(ages, tuple(targets)) for ages, targets in names.items() if ages)
        return Retention(tuple(rules), self.tokens)


def prune(
    engine: Engine, model: type[Any], retention: Retention, *, page: int = PAGE, is_dry: bool = False,
    stop: threading.Event | None = None, tell: Callable[[int], object] = lambda number: None,
) -> PruneReport:  # fmt: skip
    """Delete or empty what `retention` no longer keeps, `page` rows in a transaction, until `stop` is set.

    `is_dry`: only count. `tell` is called after each page with the number of attempts so far.
    """
    began = time.monotonic()
    now = retry_transient(partial(_clock, engine))
    run = _Run(engine, _Tables.of(model), _Chosen(table_of(model), retention, now), retention.keep_events)
    change = partial(run.count, page) if is_dry else partial(run.prune, page)
    run.walk(change, stop or threading.Event(), tell)
    return PruneReport(run.deleted, run.emptied, run.events, run.left, run.refused, time.monotonic() - began)


def _clock(engine: Engine) -> dt.datetime:
    with engine.begin() as connection:
        now: dt.datetime | None = connection.scalar(select(statement_now()))
    assert now is not None
    return now


@dataclass(frozen=True, slots=True)
class _Tables:
    """The table with the state of the attempts; those of joined inheritance, the deepest first; and the events."""

    root: Table
    joined: tuple[Table, ...]
    events: Table

    @classmethod
    def of(cls, model: type[Any]) -> "_Tables":
        root, mapper = table_of(model), inspect(model).base_mapper
        tables = [one.local_table for one in mapper.self_and_descendants]
        joined = tuple(reversed([one for one in dict.fromkeys(tables) if one is not root]))
        return cls(root, joined, companion_tables(root).events)


class _Chosen:
    """Which rows are pruned at the instant `now` of the database's clock."""

    def __init__(self, table: Table, retention: Retention, now: dt.datetime) -> None:
        c = table.c
        self._table, self._now = table, now
        memory = retention.keep_tokens
        youngest = [] if memory is None else [c.completed_at >= _before(now, memory)]
        self.keeps_token: ColumnElement[bool] = and_(c.idempotence_token.is_not(None), *youngest)
        rules = or_(false(), *(self._rule(one) for one in retention.rules))
        is_done = and_(is_emptied(table), self.keeps_token)
        self.conditions = (has_ended(table), rules, ~is_done)
        ages = [age for rule in retention.rules for _, age in rule.ages]
        self.last_id = first_uuid7(_before(now, min(ages, default=dt.timedelta.max)), CLOCK_SLACK)

    def _rule(self, rule: Rule) -> ColumnElement[bool]:
        c = self._table.c
        old = (and_(c.status == status, c.completed_at < _before(self._now, age)) for status, age in rule.ages)
        mine = [c.target.in_(rule.targets)] if rule.targets else []
        exact = ((c.queue, rule.queue), (c.method_name, rule.method))
        return and_(or_(false(), *old), *mine, *(column == wanted for column, wanted in exact if wanted is not None))


def _before(now: dt.datetime, age: dt.timedelta) -> dt.datetime:
    return now - age if age < now - FIRST else FIRST


class _Run:
    """A prune that runs."""

    def __init__(self, engine: Engine, tables: _Tables, chosen: _Chosen, keeps_events: bool) -> None:
        self.engine, self.tables, self.chosen, self.keeps_events = engine, tables, chosen, keeps_events
        self.deleted = self.emptied = self.events = self.left = 0
        self.refused: dict[uuid.UUID, str] = {}

    def walk(
        self, change: Callable[[Ids], Iterable[None]], stop: threading.Event, tell: Callable[[int], object]
    ) -> None:
        """Call `change` for what is found in each stretch, page by page, and pause after each page."""
        after, is_last = None, False
        while not is_last:
            if stop.is_set():
                return
            ids, after, is_last = retry_transient(partial(self._find, after))
            began = time.monotonic()
            for _ in change(ids):
                tell(self.deleted + self.emptied)
                if stop.is_set():
                    return
                sleep(min(time.monotonic() - began, LONGEST_PAUSE))
                began = time.monotonic()

    def _find(self, after: uuid.UUID | None) -> tuple[list[uuid.UUID], uuid.UUID | None, bool]:
        """What is to be pruned in the stretch behind the id `after`; the end of it; whether it is the last."""
        key, chosen = self.tables.root.c.id, self.chosen
        within = [key < chosen.last_id, *([] if after is None else [key > after])]
        with self.engine.begin() as connection:
            end = connection.scalar(select(key).where(*within).order_by(key).limit(1).offset(STRETCH - 1))
            found = select(key).where(*within, *([] if end is None else [key <= end]), *chosen.conditions)
            return list(connection.scalars(found.order_by(key))), end, end is None

    def count(self, page: int, ids: Ids) -> Iterable[None]:
        for some in _pages(ids, page):
            deleted, emptied, events = retry_transient(partial(self._counted, some))
            self._note(deleted, emptied, events)
            yield

    def prune(self, page: int, ids: Ids) -> Iterable[None]:
        for some in _pages(ids, page):
            yield from self._prune(some)

    def _prune(self, ids: Ids) -> Iterable[None]:
        """One page; in halves where the database refuses it, down to the one bad row."""
        try:
            while not self._wrote(ids):
                yield
        except Refused as refused:
            if len(ids) == 1:
                self.refused[ids[0]] = str(refused)
                logger.error("attempt %s is not pruned: %s", ids[0], refused)
                return
            for half in _pages(ids, (len(ids) + 1) // 2):
                yield from self._prune(half)
            return
        yield

    def _wrote(self, ids: Ids) -> bool:
        """Whether this page is done: not while there are more events of it than one transaction deletes."""
        deleted, emptied, events, is_done = retry_transient(partial(self._write, ids))
        self._note(deleted, emptied, events)
        if is_done:
            self.left += len(ids) - deleted - emptied
        return is_done

    def _note(self, deleted: int, emptied: int, events: int) -> None:
        self.deleted, self.emptied, self.events = self.deleted + deleted, self.emptied + emptied, self.events + events

    def _write(self, ids: Ids) -> tuple[int, int, int, bool]:
        tables, chosen = self.tables, self.chosen
        root = tables.root
        mine: Any = select(root.c.id, chosen.keeps_token).where(root.c.id.in_(ids), *chosen.conditions)
        with self.engine.begin() as connection, refusing(list(ids)):
            lock = by_primary_key(root, mine.with_for_update(skip_locked=True))
            rows: Any = connection.execute(lock.order_by(root.c.id)).all()
            events = [] if self.keeps_events else self._events_of(connection, [one for one, _ in rows])
            delete_by_key(connection, tables.events, events)
            if len(events) == EVENTS:
                return 0, 0, len(events), False
            emptied = [one for one, keeps_token in rows if keeps_token]
            deleted = [one for one, keeps_token in rows if not keeps_token]
            if emptied:
                change = update(root).where(root.c.id.in_(emptied)).values(emptying())
                connection.execute(by_primary_key(root, change))
            for table in (*tables.joined, root):
                delete_by_key(connection, table, deleted)
            return len(deleted), len(emptied), len(events), True

    def _events_of(self, connection: Connection, ids: Ids) -> list[int]:
        """The keys of up to EVENTS of their events, read without a lock: MySQL would lock the gaps between the jobs."""
        found: list[int] = []
        for mine in self._are_of(ids):
            asked = select(self.tables.events.c.id).where(*mine)
            found += connection.scalars(asked.limit(EVENTS - len(found)))
            if len(found) == EVENTS:
                break
        return found

    def _are_of(self, ids: Ids) -> Iterator[tuple[ColumnElement[bool], ...]]:
        """The events of these attempts without their notes, of a few at a time: for many, PostgreSQL may read all
        events instead of looking each attempt up in their index."""
        c = self.tables.events.c
        for some in _pages(ids, LOOKED_UP):
            yield c.job_type == self.tables.root.name, c.job_id.in_([str(one) for one in some]), c.kind != NOTE

    def _counted(self, ids: Ids) -> tuple[int, int, int]:
        root, events = self.tables.root, 0
        with self.engine.begin() as connection:
            keeping = connection.scalars(select(root.c.id).where(root.c.id.in_(ids), self.chosen.keeps_token)).all()
            if not self.keeps_events:
                counts = (select(func.count()).where(*mine) for mine in self._are_of(ids))
                events = sum(connection.scalar(count) or 0 for count in counts)
        return len(ids) - len(keeping), len(keeping), events


def _pages(ids: Ids, page: int) -> Iterable[Ids]:
    return (ids[first : first + page] for first in range(0, len(ids), page))
