"""What a batch would find now, and what of it this process could not perform."""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Table

from async_task.encryption.ciphers import refuse_missing_key
from async_task.encryption.encryptors import encryptor_named
from async_task.encryption.rotation import key_head
from async_task.errors import AsyncTaskError
from async_task.queue import pauses, predicates
from async_task.queue.backlog import Scope, calls_due
from async_task.queue.running_batches import RunningBatch, running_batch
from async_task.queue.sweep_preview import count_swept
from async_task.targets.registry import target_named


@dataclass(frozen=True, slots=True)
class DueCalls:
    """The attempts of one target that are due in one queue: how many, how many of those this process cannot perform
    (it would leave them to other processes, or park them), and why not."""

    queue: str
    target: str
    due: int
    unperformable: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchPreview:
    """What a batch would find: `due` attempts, by queue and target in `calls`; orphans to recover (which then are due
    as well) and what is to expire, in all queues and of all targets, 10,000 of each at most. `overlapped`: a batch that
    is running now. `paused`: the queues that are left out.
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
        to_recover, to_expire = count_swept(connection, table, lease)
        return BatchPreview(
            due=sum(one.due for one in found),
            calls=found,
            to_recover=to_recover,
            to_expire=to_expire,
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
