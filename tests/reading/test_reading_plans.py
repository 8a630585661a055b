"""Reading figures beside many rows: on no database a statement walks over the attempts or the events."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, String, cast, event, insert, literal, select, text

from async_task import AsyncTask, Attempt, JobEvent
from async_task.database.dialects import MYSQL
from conftest import by_one_door
from outbox import act

pytestmark = pytest.mark.long

QUESTIONS: dict[str, Callable[[AsyncTask], Any]] = {
    "lags": lambda app: app.attempts.lags(),
    "durations": lambda app: app.attempts.durations(),
    "rates": lambda app: app.attempts.rates(),
    "audit": lambda app: app.attempts.audit(actor="anna"),
    "audit of a job": lambda app: app.attempts.audit(job_type="async_task_attempts", job_id="7"),
    "history": lambda app: app.attempts.history("24h"),
}
BIG = ("async_task_attempts", "async_task_job_events")


@by_one_door
def test_no_figure_walks_over_a_table(app: AsyncTask, engine: Engine) -> None:
    with engine.begin() as connection:
        for _ in range(3):
            Attempt.create_many(connection, [{"target": act} for _ in range(10_000)])
        acted = {"job_type": "async_task_attempts", "kind": "cancel", "actor": "ben"}
        facts = [cast(Attempt.id, String(36)), Attempt.created_at, *map(literal, acted.values())]
        connection.execute(insert(JobEvent).from_select(["job_id", "created_at", *acted], select(*facts)))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in BIG:
            connection.execute(text(f"ANALYZE {'TABLE ' if engine.dialect.name in MYSQL else ''}{table}"))
    app.check_schema()
    walks = {}
    for question, ask in QUESTIONS.items():
        sent = statements_of(lambda ask=ask: ask(app))  # type: ignore[misc]
        with engine.connect() as connection:
            walks[question] = [plan for one in sent for plan in walks_in(connection, *one)]
    assert walks == {question: [] for question in QUESTIONS}


def statements_of(ask: Callable[[], Any]) -> list[tuple[str, Any]]:
    """The statements that ask about attempts and events."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and any(name in statement for name in BIG):
            sent.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        ask()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert sent
    return sent


def walks_in(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """The lines of the plan that tell of a walk over one of the BIG tables. That an index is read in its order is none:
    the limit of the statement ends it."""
    word = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    found = connection.exec_driver_sql(f"{word} {statement}", parameters)
    if connection.dialect.name in MYSQL:
        rows = [row._asdict() for row in found]
        aliases = {name for name in (row["table"] for row in rows) if name and not name.startswith("<")}
        return [str(row) for row in rows if row["type"] == "ALL" and row["table"] in aliases]
    lines = [str(row[-1]).strip() for row in found]
    # The key of the events is the row number of SQLite: the table itself is read in its order.
    small = BIG[1:] if not any("TEMP B-TREE" in one for one in lines) else ()
    return [
        one
        for one in lines
        for name in BIG
        if f"Seq Scan on {name}" in one or (one == f"SCAN {name}" and name not in small)
    ]


@pytest.mark.only_on("postgresql")
@by_one_door
def test_what_walks_is_noticed(engine: Engine, app: AsyncTask) -> None:
    with engine.connect() as connection:
        assert walks_in(connection, "SELECT count(*) FROM async_task_attempts WHERE queue = 'x'", ())
