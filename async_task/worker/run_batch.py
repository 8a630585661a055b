"""A batch: what its lanes share while they work, and what became of it."""

import datetime as dt
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, select

from async_task.encryption.ciphers import refuse_missing_key
from async_task.encryption.encryptors import encryptor_named
from async_task.encryption.rotation import key_head
from async_task.errors import AsyncTaskError
from async_task.outcomes import Canceled, Expired, Failed, Outcome, Parked, Retried, Succeeded, Superseded
from async_task.queue import pauses, predicates
from async_task.queue.backlog import Scope, calls_due
from async_task.queue.running_batches import RunningBatch, running_batch
from async_task.queue.sweep import SweepReport
from async_task.queue.workers import alive_here
from async_task.targets.registry import target_named


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a batch did, in attempts: `claimed`, and what became of those; `expired` and `recovered` with its sweep's.

    `crashed`: orphans that the sweep failed at the crash limit. `seconds`: how long the batch took. `left`: what was
    due and not started because `max_seconds` had passed; 10,000 are counted at most. `paused`: queues in which
    something waits, and from which nothing was taken because they are paused. `overlapped`: the other batch for whose
    sake nothing was done at all (`overlap="skip"`).
    """

    claimed: int = 0
    succeeded: int = 0
    retried: int = 0
    failed: int = 0
    expired: int = 0
    canceled: int = 0
    parked: int = 0
    superseded: int = 0
    recovered: int = 0
    crashed: int = 0
    seconds: float = 0.0
    left: int = 0
    paused: int = 0
    overlapped: RunningBatch | None = None


MOST_MISSES = 50
"""How often a queue may seem empty while something in it is due: then somebody holds that, and not for a moment."""
Progress = Callable[[BatchReport], object]
"""What is told of a batch while it works."""


class Batch:
    """What the lanes of one batch share: what may be started, and what became of what was.

    `began` by the database's clock, `since` and `deadline` by time.monotonic(). `swept`: what was done before.
    """

    def __init__(
        self,
        began: dt.datetime,
        since: float,
        swept: SweepReport,
        *,
        limit: int | None,
        stop: threading.Event,
        deadline: float | None,
        paused: int = 0,
    ) -> None:
        self.began = began
        self.is_out_of_time = False
        self._since = since
        self._swept = swept
        self._limit = limit
        self._stop = stop
        self._deadline = deadline
        self._paused = paused
        self._started = 0
        self._outcomes: Counter[type[Outcome]] = Counter()
        self._guard = threading.Lock()
        self._progress: Progress | None = None
        self._due = 0

    def watch(self, progress: Progress, due: int) -> None:
        """Tell `progress` the report so far now, and after each attempt, one lane at a time; what it raises ends the
        batch. `due`: how many there are to be started, were there no limit."""
        self._progress = progress
        self._due = due if self._limit is None else min(due, self._limit)
        self._tell()

    def may_start(self) -> bool:
        """Whether the limit, the time and `stop` allow one more; if so it is counted."""
        with self._guard:
            if self._stop.is_set() or (self._limit is not None and self._started >= self._limit):
                return False
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self.is_out_of_time = True
                return False
            self._started += 1
            return True

    def take_back(self) -> None:
        with self._guard:
            self._started -= 1

    def count(self, outcome: Outcome) -> None:
        with self._guard:
            self._outcomes[type(outcome)] += 1
            self._tell()

    def report(self, *, left: int = 0) -> BatchReport:
        ended, swept = self._outcomes, self._swept
        return BatchReport(
            claimed=ended.total(), succeeded=ended[Succeeded], retried=ended[Retried], failed=ended[Failed],
            expired=ended[Expired] + swept.expired, canceled=ended[Canceled], parked=ended[Parked],
            superseded=ended[Superseded], recovered=swept.recovered, crashed=swept.crashed,
            seconds=time.monotonic() - self._since, left=left, paused=self._paused,
        )  # fmt: skip

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.report(left=max(0, self._due - self._outcomes.total())))


class Turns:
    """Queues in turn, so that a full one lets none behind it wait for ever; one that was found empty has no further
    turn. Only one lane at a time asks a queue: two would skip what the other has locked for a moment, and MariaDB locks
    more than it takes; then a queue would look empty that is not."""

    def __init__(self, names: Iterable[str]) -> None:
        self._free = deque(names)
        self._taken: set[str] = set()
        self._reopened: set[str] = set()
        self._misses: Counter[str] = Counter()
        self._changed = threading.Condition()

    def take(self) -> str | None:
        """Whose turn it is; waits while other lanes ask all there are. None when all were found empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or not self._taken)
            if not self._free:
                return None
            name = self._free.popleft()
            self._taken.add(name)
            return name

    @property
    def has_others(self) -> bool:
        """Whether there is a queue to be asked besides the one that was taken last."""
        with self._changed:
            return bool(self._free)

    def reopen(self, name: str) -> None:
        """Something may have come into this queue: it has another turn, be it asked just now, or found empty before."""
        with self._changed:
            if name in self._taken:
                self._reopened.add(name)
            elif name not in self._free:
                self._free.append(name)
            self._changed.notify_all()

    def is_given_up(self, name: str) -> bool:
        """Whether this queue was found locked too often to be asked again in this batch; each question counts."""
        with self._changed:
            self._misses[name] += 1
            return self._misses[name] > MOST_MISSES

    def put_back(self, name: str, *, is_empty: bool) -> None:
        with self._changed:
            self._taken.remove(name)
            if not is_empty or name in self._reopened:
                self._free.append(name)
            self._reopened.discard(name)
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class DueCalls:
    """The attempts of one target that are due in one queue: how many, how many of those would be parked because this
    process cannot perform them, and why not."""

    queue: str
    target: str
    due: int
    unperformable: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchPreview:
    """What a batch would find: `due` attempts, by queue and target in `calls`; orphans to recover (which then are due
    as well) and what is to expire, in all queues and of all targets. `overlapped`: a batch that is at work now.
    `paused`: the queues that are left out.
    """

    due: int
    calls: tuple[DueCalls, ...]
    to_recover: int
    to_expire: int
    overlapped: RunningBatch | None
    paused: tuple[str, ...] = ()


def preview(engine: Engine, table: Table, lease: dt.timedelta, scope: Scope) -> BatchPreview:
    """What a batch would find now."""
    paused = sorted(pauses.paused(engine, table))
    due = calls_due(table, (*_conditions(table, scope), table.c.queue.not_in(paused)), key_head(table))
    with engine.begin() as connection:
        rows = connection.execute(due).all()
        found = tuple(_by_queue_and_target(rows))
        return BatchPreview(
            due=sum(one.due for one in found),
            calls=found,
            to_recover=_orphans(connection, table, lease),
            to_expire=_count(connection, table, predicates.can_expire(table)),
            overlapped=running_batch(connection, table, lease),
            paused=tuple(paused),
        )


def _conditions(table: Table, scope: Scope) -> tuple[Any, ...]:
    wanted = (table.c.queue.in_(scope.queues),) if scope.queues else ()
    return (*wanted, *predicates.due(table, targets=scope.targets))


def _by_queue_and_target(rows: Iterable[Any]) -> Iterable[DueCalls]:
    together: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        together.setdefault((row.queue, row.target), []).append(row)
    for (queue, target), mine in sorted(together.items()):
        problems = [(row.number, _problem(row)) for row in mine]
        hindered = [(number, problem) for number, problem in problems if problem is not None]
        said = tuple(sorted({problem for _, problem in hindered}))
        yield DueCalls(queue, target, sum(row.number for row in mine), sum(number for number, _ in hindered), said)


def _problem(row: Any) -> str | None:
    """Why this process cannot perform such a row; of its arguments only their key is looked at."""
    try:
        target_named(row.target).method(row.method_name)
        refuse_missing_key(encryptor_named(row.encryptor), row.head)
    except AsyncTaskError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"the encryptor {row.encryptor!r} could not be loaded ({type(error).__name__})"
    return None


def _orphans(connection: Connection, table: Table, lease: dt.timedelta) -> int:
    alive = alive_here(connection, table)
    return _count(connection, table, (*predicates.is_orphan(table, lease), table.c.claimed_by.not_in(alive)))


def _count(connection: Connection, table: Table, conditions: Iterable[Any]) -> int:
    return connection.scalar(select(func.count()).select_from(table).where(*conditions)) or 0
