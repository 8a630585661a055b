"""The summary of models that are their own jobs, as numbers, table and CSV, on every database."""

import csv
import datetime as dt
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from async_task import ModelSummary, ProcessingTimes, StuckCount
from async_task.asyncable.registration import register
from async_task.database.clock import clock_now
from conftest import by_one_door
from reviews import DAY, HOUR, Desk, Letter, Paper, Review
from said import Run

MINUTE = 60.0


@pytest.fixture
def filled(desk: Desk, engine: Engine) -> Desk:
    table: Any = Review.__table__
    stuck = [(2 * DAY + HOUR, "Refused: Ada"), (2 * DAY, "Refused: Grace"), (5 * DAY, "Timeout"), (HOUR, None)]
    took = [MINUTE, 3 * MINUTE, 8 * MINUTE, 10 * DAY]
    with engine.begin() as connection:
        for ago, error in stuck:
            at = clock_now(-ago - 1)
            connection.execute(insert(table).values(submitted_at=at, last_submitted_at=at, error=error))
        connection.execute(insert(table).values(error="Lost: everything"))
        for length in took:
            values = {"submitted_at": clock_now(-20 * DAY - length), "processed_at": clock_now(-20 * DAY)}
            connection.execute(insert(table).values(last_submitted_at=clock_now(-20 * DAY), **values))
    return desk


def test_it_counts_stuck_rows_by_age_and_error_and_measures_the_processed(filled: Desk) -> None:
    found = filled.app.summarize_models()
    assert found.stuck == tuple(
        StuckCount("test.review", *one)
        for one in [(5, "Timeout", 1), (2, "Refused", 2), (0, None, 1), (None, "Lost", 1)]
    )
    (times,) = found.times
    assert (times.model, times.count, times.within_7_days) == ("test.review", 4, 0.75)
    lengths = [times.median, times.min, times.max, times.mean]
    expected = [5.5 * MINUTE, MINUTE, 10 * DAY, (12 * MINUTE + 10 * DAY) / 4]
    assert [round(one.total_seconds()) for one in lengths if one is not None] == expected
    since = filled.app.now() - dt.timedelta(days=1)
    assert filled.app.summarize_models(since).times == (ProcessingTimes("test.review", 0),)


def test_without_rows_there_is_nothing_and_a_subclass_counts_for_itself(desk: Desk, engine: Engine) -> None:
    register(Paper)
    register(Letter)
    desk.submitted(Letter)
    found = desk.app.summarize_models()
    assert found.stuck == (StuckCount("test.letter", 0, None, 1),)
    assert [(one.model, one.count) for one in found.times] == [
        ("test.letter", 0), ("test.paper", 0), ("test.review", 0),
    ]  # fmt: skip
    assert ModelSummary() == ModelSummary((), ())


@by_one_door
def test_the_command_prints_tables_and_csv(filled: Desk, run: Run) -> None:
    lines = [line.split() for line in run("summary").out.splitlines()]
    assert lines[0] == ["MODEL", "AGE", "DAYS", "ERROR", "COUNT"]
    assert lines[1:3] == [["test.review", "5", "Timeout", "1"], ["test.review", "2", "Refused", "2"]]
    assert "Ada" not in run("summary", "--json").out
    stuck = list(csv.DictReader(run("summary", "--csv").out.splitlines()))
    assert stuck[1] == {"model": "test.review", "age_days": "2", "error": "Refused", "count": "2"}
    (times,) = csv.DictReader(run("summary", "--times", "--csv").out.splitlines())
    assert {name: round(float(times[name]), 2) for name in ("median", "within_7_days")} == {
        "median": 330, "within_7_days": 0.75,
    }  # fmt: skip
    assert "75.0%" in run("summary", "--times").out
    assert run("summary", "--times", "--since", "1d", "--json").json["count"] == 0
    assert (run("summary", "--csv", "--json").code, run("summary", "--since", "1d").code) == (2, 2)
