"""Reading beside a million rows: no question of `app.attempts` walks a table, and each reads what it says at most."""

import datetime as dt
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import DeclarativeBase

from async_task import AsyncTask, BaseAttempt, ConfigurationError, UnknownTarget
from async_task_cli.figures import figures_of

pytestmark = pytest.mark.long


class Many(DeclarativeBase):
    pass


class ManyAttempt(BaseAttempt, Many):
    __tablename__ = "attempts"
    __table_args__ = {"schema": "a_million"}  # noqa: RUF012


FILL = """
INSERT INTO a_million.attempts (
  id, status, target, method_name, method_args, encryptor, queue, priority, released, num_attempts, num_errors,
  num_crashes, due_at, created_at, updated_at, completed_at, last_error
)
SELECT (lpad(to_hex(1790000000000 + n), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
  CASE WHEN n % 50 = 0 THEN 'pending' WHEN n % 97 = 0 THEN 'failed' ELSE 'succeeded' END,
  CASE WHEN n % 2 = 0 THEN 'test.act' ELSE 'test.client' END, '__call__', '{}', 'null',
  'queue' || n % 3, n % 10, true, 1, 0, 0, now() + (n % 7200 - 3600) * interval '1 s',
  to_timestamp(1790000000 + n / 1000.0), now(), CASE WHEN n % 50 = 0 THEN NULL ELSE now() END,
  CASE WHEN n % 97 = 0 THEN 'HTTPError: ' || n END
FROM generate_series(1, 1000000) AS n
"""
FILL_EVENTS = """
INSERT INTO a_million.async_task_job_events (job_type, job_id, kind, message, created_at, fingerprint)
SELECT 'attempts', (lpad(to_hex(1790000000000 + n), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
  CASE WHEN n % 2 = 0 THEN 'error' ELSE 'note' END, 'HTTPError: ' || n % 5, now(),
  CASE WHEN n % 10 = 0 THEN 'eeeeeeeeeeee' END
FROM generate_series(1, 50000) AS n
"""


@pytest.fixture(scope="module")
def many(engine: Engine) -> Iterator[AsyncTask]:
    """An application over a million attempts, 2 % of them live. (On PostgreSQL: all tables are there, so that the
    database of this process is the one.)"""
    app = AsyncTask(engine, model=ManyAttempt)
    app.create_schema()
    with engine.begin() as connection:
        for table in ("attempts", "async_task_job_events"):  # what is not written ahead is written sooner
            connection.execute(text(f"ALTER TABLE a_million.{table} SET UNLOGGED"))
        indexes = ManyAttempt.__table__.indexes  # type: ignore[attr-defined]
        for index in indexes:  # quicker to make afterwards
            index.drop(connection)
        connection.execute(text(FILL))
        for index in indexes:
            index.create(connection)
        connection.execute(text(FILL_EVENTS))
        connection.execute(text("ANALYZE a_million.attempts, a_million.async_task_job_events"))
    yield app
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA a_million CASCADE"))


QUESTIONS: dict[str, tuple[Callable[[AsyncTask], Any], int]] = {
    "newest": (lambda app: app.attempts.list(), 60),
    "oldest": (lambda app: app.attempts.list(order="oldest", limit=1000), 1100),
    "a rare status": (lambda app: app.attempts.list(status="failed", limit=1000), 21_000),
    "a status that no row has": (lambda app: app.attempts.list(status="canceled"), 21_000),
    "due": (lambda app: app.attempts.list(status="due", target="test.act"), 21_000),
    "stuck": (lambda app: app.attempts.list(status="stuck", order="oldest"), 21_000),
    "an error": (lambda app: app.attempts.list(error="timeout"), 21_000),
    "a token": (lambda app: app.attempts.list(token="order-7"), 21_000),
    "a time in the middle": (lambda app: app.attempts.list(until=dt.datetime(2026, 9, 21, 20, tzinfo=dt.UTC)), 21_000),
    "far behind": (lambda app: app.attempts.list(target="test.act", after=_id(500_000)), 21_000),
    "an unknown queue": (lambda app: _refused(lambda: app.attempts.list(queue="queue7")), 45_000),
    "an unknown target": (lambda app: _refused(lambda: app.attempts.list(target="test.acr")), 35_000),
    "by due time": (lambda app: app.attempts.list(order="due"), 3 * 10 * 52 + 60),
    "by due time, filtered": (lambda app: app.attempts.list(order="due_last", error="no"), 3 * 10 * 1000 + 60),
    "counts": (lambda app: app.attempts.counts(), 101_000),
    "filtered counts": (lambda app: app.attempts.counts(status="failed", target="test.client"), 101_000),
    "depths": (lambda app: app.attempts.depths(), 70_000),
    "the oldest due": (lambda app: app.attempts.oldest_due(), 100),
    "health": (lambda app: app.health(), 200),
    "backlog": (lambda app: app.backlog(), 70_000),
    "workers": (lambda app: app.workers(), 70_000),
    "stats and top": (figures_of, 100_000),
    "rates": (lambda app: app.attempts.rates(), 41_000),
    "lags": (lambda app: app.attempts.lags(), 41_000),
    "durations": (lambda app: app.attempts.durations(), 41_000),
    "what people did": (lambda app: app.attempts.audit(actor="anna"), 20_100),
    "what was done to one": (lambda app: app.attempts.audit(attempt=_id(7)), 10),
    "runs": (lambda app: app.runs(), 60),
    "failures": (lambda app: app.attempts.failures(), 30_000),
    "what failed by an error": (lambda app: app.attempts.failed_by("e" * 12), 60_000),
    "what is stuck": (lambda app: app.attempts.stuck(), 70_000),
    "errors": (lambda app: app.attempts.errors(), 20_100),
    "one by its id": (lambda app: app.attempts.get(_id(7)), 3),
    "one by its begin": (lambda app: app.attempts.get(_id(7)[:-1]), 60_000),
    "one by its end": (lambda app: app.attempts.get(_id(999_983)[-9:]), 60_000),
    "why one is not performed": (lambda app: app.attempts.explain(_id(7)), 21_000),
    "short ids": (lambda app: app.attempts.short_ids([uuid.UUID(_id(7)), uuid.UUID(_id(999_983))]), 60_000),
    "a call that was cut": (lambda app: _refused(lambda: app.attempts.list(target="test…nothing")), 21_000),
    "its events": (lambda app: app.attempts.events(_id(7)), 3),
    "its arguments": (lambda app: app.attempts.arguments(_id(7)), 3),
}
"""By what is asked: the question, and how many rows and entries of indexes the answer may read at most."""


def _id(number: int) -> str:
    return str(uuid.UUID(f"{1790000000000 + number:012x}70008{number:015x}"))


def _refused(ask: Callable[[], Any]) -> None:
    with pytest.raises((ConfigurationError, UnknownTarget)):
        ask()


@pytest.mark.only_on("postgresql")
def test_beside_a_million_rows_no_question_walks_a_table(engine: Engine, many: AsyncTask) -> None:
    wrong = []
    for question, (ask, most) in QUESTIONS.items():
        plans = [_plan(engine, *one) for one in _sent(ask, many)]
        nodes = [node for plan in plans for node in _scans(plan)]
        walks = [one for one in nodes if one["Node Type"] == "Seq Scan" and one["Relation Name"] in BIG]
        read = sum(map(_rows_read, nodes))
        if walks or read > most:
            wrong.append((question, f"{read:,.0f} rows of {most:,}", *(one["Relation Name"] for one in walks)))
    assert wrong == []


def _plan(engine: Engine, statement: str, parameters: Any) -> dict[str, Any]:
    with engine.begin() as connection:
        told = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
    plan: dict[str, Any] = (json.loads(told) if isinstance(told, str) else told)[0]["Plan"]
    return plan


BIG = ("attempts", "async_task_job_events")


def _sent(ask: Callable[[AsyncTask], Any], app: AsyncTask) -> list[tuple[str, Any]]:
    """The statements that ask about attempts and events."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "a_million." in statement:
            sent.append((statement, parameters))

    app.check_schema()
    event.listen(Engine, "before_cursor_execute", note)
    try:
        ask(app)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert sent
    return sent


def _scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Scan" in plan["Node Type"]:
        yield plan
    for part in plan.get("Plans", ()):
        yield from _scans(part)


def _rows_read(node: dict[str, Any]) -> float:
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    each: float = node["Actual Rows"] + sum(node.get(name, 0) for name in removed)
    return each * node["Actual Loops"] if "Relation Name" in node or "Index Name" in node else 0


def _prune_a_page(app: AsyncTask) -> None:
    stop = threading.Event()
    report = app.prune(0, stop=stop, tell=lambda _: stop.set())
    assert (report.deleted, report.left) == (500, 0)


PRUNES: dict[str, tuple[Callable[[AsyncTask], Any], int]] = {
    "nothing to prune": (lambda app: app.prune("30d", dry_run=True), 100),
    "all that failed": (lambda app: app.prune(0, statuses=["failed"], dry_run=True), 100),
    "a page": (_prune_a_page, 1),
}
"""By what is pruned: the question, and how many stretches of the table it reads."""


@pytest.mark.only_on("postgresql")
def test_no_statement_of_a_prune_reads_more_than_a_stretch_of_a_million_rows(engine: Engine, many: AsyncTask) -> None:
    wrong = []
    for question, (ask, stretches) in PRUNES.items():
        sent = _sent(ask, many)
        assert sum("OFFSET" in statement for statement, _ in sent) in range(stretches, stretches + 2), question
        for one in [*sent[:8], *sent[-8:]]:
            nodes = list(_scans(_plan(engine, *one)))
            walks = [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] in BIG]
            read = sum(map(_rows_read, nodes))
            if walks or read > 10_000:
                wrong.append((question, f"{read:,.0f} rows", one[0]))
    assert wrong == []
