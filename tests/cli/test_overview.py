"""The overview of `async-task top`: what it reads, what comes first, and what is left out of a narrow terminal."""

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text

from async_task import (
    AsyncTask,
    Attempt,
    ConfigurationError,
    EventInfo,
    FailureGroup,
    FailureReport,
    OldestDue,
    Rate,
    Rates,
    Status,
    StatusCounts,
    WorkerInfo,
)
from async_task_cli import overview
from async_task_cli.figures import Figure, Figures
from async_task_cli.overview import Overview, OverviewReader, SlowFigures
from conftest import by_one_door
from outbox import Client

Write = Callable[..., Attempt]
NOW = dt.datetime(2026, 10, 25, 12, tzinfo=dt.UTC)
MINUTE, QUARTER = Rate(12, 0.05), Rate(11, 0)
ADDRESS = "postgresql://db/shop"


def figure(name: str) -> Figure:
    return Figure(name, 1204, 17, 4, dt.timedelta(seconds=200), MINUTE, QUARTER, is_paused=name == "mail")


def group(number: int) -> FailureGroup:
    message = f"no order N, and {'very ' * 20}long"
    return FailureGroup(
        target=f"shop.orders:Client{number}", exception="Timeout", message=message, count=71 - number, attempts=40,
        first=NOW - dt.timedelta(minutes=14), last=NOW - dt.timedelta(seconds=2), latest=uuid.UUID(int=number),
        fingerprint=f"{number:012x}",
    )  # fmt: skip


def crowded() -> Overview:
    """Every table has rows."""
    queues, targets = [figure("default"), figure("mail")], [figure(f"shop.orders:Client{one}") for one in range(3)]
    figures = Figures(figure(""), queues, targets, is_counted=False, is_rated=True, read_at=NOW)
    counts = StatusCounts({Status.FAILED: 1003, Status.EXPIRED: 2, Status.SUCCEEDED: 40_000}, "next")
    rates = Rates((), (), MINUTE, QUARTER, is_complete=True, read_at=NOW)
    failures = FailureReport(tuple(map(group, range(7))), counted=400, is_complete=True)
    worker = WorkerInfo(
        name="worker@host-with-a-name:7:5b1de7a4", host="host", pid=7, kind="worker", started_at=NOW, beat_at=NOW,
        silent_for=dt.timedelta(0), is_asleep=False, claims=4, about={"queues": ["default"], "concurrency": 4},
        is_dead=False,
    )  # fmt: skip
    event: Any = EventInfo(
        id=1,
        attempt_id=uuid.UUID(int=7),
        kind="error",
        message="Timeout: no answer\nmore",
        created_at=NOW,
        num_attempt=1,
        actor=None,
        detail={},
    )
    oldest = OldestDue(dt.timedelta(seconds=200), "default", uuid.UUID(int=1), is_complete=True, read_at=NOW)
    return Overview(oldest, figures, SlowFigures(rates, counts, failures), [worker], [event])


def test_the_oldest_due_comes_first_and_then_all_together() -> None:
    assert [line.plain for line in overview.head(crowded(), ADDRESS)] == [
        "Oldest due: 3 min 20 s, in default",
        "1,204+ due, 4 running, 17+ later, 1,003+ failed, 2+ expired.",
        "720 done per minute, 3 of them failed.",
        f"{ADDRESS}, read at 2026-10-25 12:00:00 UTC",
    ]


def test_what_needs_a_person_comes_before_queues_targets_workers_and_errors() -> None:
    tables = [[line.plain for line in part] for part in overview.parts(crowded(), 120)]
    assert [table[0].split()[0] for table in tables] == ["Needs", "QUEUE", "TARGET", "NAME", "WHEN"]
    assert tables[0][0] == "Needs you, and 2 other kinds of failure"
    assert len(tables[0]) == 2 + overview.MOST_GROUPS
    assert tables[0][2].split()[0] == "71"
    assert tables[4][1].endswith("Timeout: no answer")


@pytest.mark.parametrize("width", [120, 80, 60, 44])
def test_a_narrow_terminal_loses_the_least_important_columns(width: int) -> None:
    tables = overview.parts(crowded(), width)
    assert [line.plain for table in tables for line in table[1:] if len(line.plain) > width] == []
    heads = [table[0].plain.split() for table in tables[1:]]
    assert [head[0] for head in heads] == ["QUEUE", "TARGET", "NAME", "WHEN"]
    assert ("RATE" in heads[0], "DUE" in heads[0], "OLDEST" in heads[0]) == (width >= 60, True, True)
    failures = tables[0][1].plain.split()
    assert ("ERROR" in failures, "FIRST" in failures) == (True, width >= 80)
    assert "STATE" in heads[2]


@by_one_door
@pytest.mark.only_on("sqlite")
def test_it_reads_all_in_transactions_that_cannot_write_and_slow_figures_seldom(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Client, "fail", {"message": "closed"})
    app.run_batch()
    write(Client, "ping", queue="mail")
    reader = OverviewReader(app)
    first = reader.read()
    assert (first.oldest.queue, first.busiest.total.due, len(first.slow.failures.groups)) == ("mail", 1, 1)
    assert [one.message for one in first.errors] == ["Broken: closed"]
    write(Client, "ping", queue="mail")
    again = reader.read()
    assert (again.busiest.total.due, again.slow is first.slow) == (2, True)
    monkeypatch.setattr(app, "workers", lambda: app.write(lambda session: session.execute(text("SELECT 1"))))
    with pytest.raises(ConfigurationError, match="reads"):
        reader.read()
