"""The table of the scopes and predicates, row by row, on every database at the exact boundaries."""

import csv
import datetime as dt
import pathlib
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, exists, insert, literal, select, text

from async_task.asyncable.columns import columns_of
from async_task.asyncable.scopes import Scopes, of_columns, of_values
from async_task.asyncable.verbs import status_of
from async_task.database.clock import held_in
from async_task.schema.columns import Instant
from reviews import OldReview, Review

TABLE = pathlib.Path(__file__).with_name("scopes.csv")
ROWS = list(csv.DictReader(TABLE.read_text().splitlines()))
INSTANTS = {
    "submitted_off_s": "submitted_at", "last_submitted_off_s": "last_submitted_at", "attempted_off_s": "attempted_at",
    "processed_off_s": "processed_at", "canceled_off_s": "canceled_at",
}  # fmt: skip
SCOPES = {
    "submitted_and_ready_p": "submitted_and_ready", "submitted_not_processed_p": "submitted_not_processed",
}  # fmt: skip
SAID = [name for name in ROWS[0] if name not in ("id", "what", *INSTANTS, "error", "status")]
INTERVAL, WINDOW = Review.processing.interval, Review.processing.window
NOW = dt.datetime(2026, 10, 25, 1, 30, tzinfo=dt.UTC)


def ids() -> list[str]:
    return [f"{row['id']}: {row['what']}" for row in ROWS]


def offsets(row: dict[str, str]) -> dict[str, float | None]:
    return {name: float(row[column]) if row[column] else None for column, name in INSTANTS.items()}


def write(connection: Connection, model: type[Any], row: dict[str, str]) -> None:
    """Write the row of the table, so many seconds before or after NOW."""
    columns = columns_of(model)
    values = {
        columns[name]: None
        if off is None
        else held_in(literal(NOW + dt.timedelta(seconds=off), Instant()), columns[name])
        for name, off in offsets(row).items()
    }
    values[columns["error"]] = row["error"] or None
    connection.execute(insert(model.__table__).values({column.name: value for column, value in values.items()}))


def then(seconds: float) -> Any:
    return literal(NOW + dt.timedelta(seconds=seconds), Instant())


def elsewhere(connection: Connection) -> None:
    """In a session whose time zone is not UTC."""
    statements = {"postgresql": "SET TIME ZONE 'Asia/Kolkata'", "mysql": "SET time_zone = '+05:30'"}
    if statement := statements.get(connection.dialect.name):
        connection.execute(text(statement))


def home(connection: Connection) -> None:
    statements = {"postgresql": "SET TIME ZONE DEFAULT", "mysql": "SET time_zone = DEFAULT"}
    if statement := statements.get(connection.dialect.name):
        connection.execute(text(statement))


@pytest.mark.in_turns
@pytest.mark.parametrize("model", [Review, OldReview])
@pytest.mark.parametrize("row", ROWS, ids=ids())
def test_each_scope_has_the_rows_of_the_table(engine: Engine, row: dict[str, str], model: type[Any]) -> None:
    can = of_columns(columns_of(model), INTERVAL, WINDOW, then)
    with engine.connect() as connection:
        elsewhere(connection)
        try:
            write(connection, model, row)
            conditions = {name: getattr(can, SCOPES.get(name, name))() for name in SAID}
            rows = (exists(select(model.id).where(condition)).label(name) for name, condition in conditions.items())
            found = dict(connection.execute(select(*rows)).mappings().one())
        finally:
            connection.rollback()
            home(connection)
    assert found == {name: row[name] == "1" for name in SAID}


@pytest.mark.parametrize("row", ROWS, ids=ids())
def test_each_predicate_says_the_same_of_a_row(row: dict[str, str]) -> None:
    said = of_row(row, NOW)
    assert {name: getattr(said, SCOPES.get(name, name))() for name in SAID} == {name: row[name] == "1" for name in SAID}
    assert status_of(said) == row["status"]


def of_row(row: dict[str, str], now: dt.datetime) -> Scopes[Any]:
    values: dict[str, Any] = {
        name: None if off is None else now + dt.timedelta(seconds=off) for name, off in offsets(row).items()
    }
    return of_values({**values, "error": row["error"] or None}, INTERVAL, WINDOW, now)
