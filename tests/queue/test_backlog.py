"""The backlog: what waits, and what is due."""

import datetime as dt
from collections.abc import Callable

from sqlalchemy import Engine, update

from async_task import Attempt
from async_task.database.dialects import has_partial_indexes
from async_task.queue import backlog
from async_task.queue.backlog import Depth
from claims import TABLE, claimed, seconds_from_now
from outbox import Client, effect

Write = Callable[..., Attempt]


def test_each_queue_in_which_anything_waits_is_found(engine: Engine, write: Write) -> None:
    for name in ("b", "a", "a", "B"):
        write(Client, "ping", queue=name)
    claimed(engine, write(Client, "ping", queue="claimed").id)
    only_runs = [] if has_partial_indexes(engine.dialect) else ["claimed"]
    assert sorted(backlog.queues(engine, TABLE)[0]) == ["B", "a", "b", *only_runs]
    assert backlog.queues(engine, TABLE, ["x"])[0] == ["x"]


def test_queues_are_asked_for_due_attempts_of_some_targets_and_for_suspects(engine: Engine, write: Write) -> None:
    ping = write(Client, "ping", queue="ping")
    write(effect, queue="effect")
    write(Client, "ping", queue="later", scheduled_at=seconds_from_now(60))
    suspect = write(Client, "ping", queue="suspect")
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == suspect.id).values(num_attempts=1, num_crashes=1))
    names, began = backlog.queues(engine, TABLE)
    began += dt.timedelta(seconds=1)
    assert sorted(backlog.with_due(engine, TABLE, names, began, (), suspects=False)) == ["effect", "ping"]
    assert backlog.with_due(engine, TABLE, names, began, (ping.target,), suspects=False) == ["ping"]
    assert backlog.with_due(engine, TABLE, names, began, (), suspects=True) == ["suspect"]
    assert backlog.with_suspects(engine, TABLE) == ["suspect"]
    assert backlog.with_suspects(engine, TABLE, ["ping"]) == []
    assert backlog.left(engine, TABLE, names, began, ()) == 3


def test_depths_count_what_is_due_later_and_claimed(engine: Engine, write: Write) -> None:
    for priority in (0, 9):
        write(Client, "ping", queue="mail", priority=priority)
    write(Client, "ping", queue="mail", scheduled_at=seconds_from_now(60))
    claimed(engine, write(Client, "ping", queue="claimed").id)
    write(Client, "ping", queue="keyed", order_key="a")  # until it is released
    assert backlog.depths(engine, TABLE) == [Depth("claimed", 0, 0, 1), Depth("mail", 2, 1, 0)]
    assert backlog.depths(engine, TABLE, ["mail"])[-1] == Depth("mail", 2, 1, 0)
