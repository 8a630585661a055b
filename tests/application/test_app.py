"""What all verbs of an application have in common: they check the tables first, and refuse to block an event loop."""

import asyncio
import contextlib
import inspect
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase

from async_task import (
    AppSchedule,
    AsyncTask,
    Attempt,
    BaseAttempt,
    ConfigurationError,
    Schedule,
    SchemaMismatch,
    UnknownAttempt,
    UnknownTarget,
    metadata,
)
from async_task.reading.browse import Attempts
from mess import mess
from outbox import Client, application

VERBS: dict[str, Callable[[AsyncTask], object]] = {
    "backlog": lambda app: app.backlog(),
    "check_calls": lambda app: app.check_calls(),
    "check_schema": lambda app: app.check_schema(),
    "clock": lambda app: app.clock().run(),
    "explain_job": lambda app: app.explain_job("test.review", 17),
    "gauges": lambda app: app.gauges(),
    "job": lambda app: app.job("test.review", 17),
    "jobs": lambda app: app.jobs(),
    "key_uses": lambda app: app.key_uses(),
    "now": lambda app: app.now(),
    "pause": lambda app: app.pause("mail"),
    "paused": lambda app: app.paused(),
    "perform": lambda app: app.perform(uuid.uuid4()),
    "preview_batch": lambda app: app.preview_batch(),
    "preview_sweep": lambda app: app.preview_sweep(),
    "process_models": lambda app: app.process_models(),
    "prune": lambda app: app.prune("30d"),
    "queues": lambda app: app.queues(),
    "read": lambda app: app.read(lambda session: None),
    "reveal": lambda app: app.reveal(uuid.uuid4(), reason="it is mended"),
    "restart_models": lambda app: app.restart_models("test.review", reason="it is mended"),
    "resume": lambda app: app.resume("mail"),
    "retry_failures": lambda app: app.retry_failures("0" * 12, reason="it is mended"),
    "rotate_keys": lambda app: app.rotate_keys(),
    "runs": lambda app: app.runs(),
    "run_batch": lambda app: app.run_batch(),
    "summarize_models": lambda app: app.summarize_models(),
    "sweep": lambda app: app.sweep(),
    "worker": lambda app: app.worker().run(),
    "workers": lambda app: app.workers(),
    "write": lambda app: app.write(lambda session: None),
}
READING: dict[str, Callable[[AsyncTask], object]] = {
    "arguments": lambda app: app.attempts.arguments(uuid.uuid4()),
    "audit": lambda app: app.attempts.audit(),
    "counts": lambda app: app.attempts.counts(),
    "depths": lambda app: app.attempts.depths(),
    "durations": lambda app: app.attempts.durations(),
    "errors": lambda app: app.attempts.errors(),
    "events": lambda app: app.attempts.events(uuid.uuid4()),
    "explain": lambda app: app.attempts.explain(uuid.uuid4()),
    "failed_by": lambda app: app.attempts.failed_by("0" * 12),
    "failures": lambda app: app.attempts.failures(),
    "get": lambda app: app.attempts.get(uuid.uuid4()),
    "history": lambda app: app.attempts.history("24h"),
    "lags": lambda app: app.attempts.lags(),
    "list": lambda app: app.attempts.list(),
    "notes": lambda app: app.attempts.notes(uuid.uuid4()),
    "oldest_due": lambda app: app.attempts.oldest_due(),
    "rates": lambda app: app.attempts.rates(),
    "short_ids": lambda app: app.attempts.short_ids([uuid.uuid4()]),
    "stuck": lambda app: app.attempts.stuck(),
}
SCHEDULED: dict[str, Callable[[AsyncTask], object]] = {
    "schedule.list": lambda app: app.schedule.list(),
    "schedule.next": lambda app: app.schedule.next(),
    "schedule.occurrences": lambda app: app.schedule.occurrences(),
    "schedule.pause": lambda app: app.schedule.pause("test.client.ping"),
    "schedule.resume": lambda app: app.schedule.resume("test.client.ping"),
    "schedule.run": lambda app: app.schedule.run("test.client.ping"),
}
ALL = VERBS | READING | SCHEDULED
UNCHECKED = {
    "app_context", "check_models", "close", "create_schema", "dashboard", "health", "on_connection", "process_health",
    "reading", "row", "schema_version", "system",
}  # fmt: skip
CHANGING = {
    "clock", "pause", "perform", "preview_sweep", "process_models", "prune", "restart_models", "resume", "reveal",
    "retry_failures", "rotate_keys", "run_batch", "schedule.pause", "schedule.resume", "schedule.run", "sweep",
    "worker", "write",
}  # fmt: skip
"""The verbs that change or lock rows."""
NO_CHANGES: dict[str, Callable[[AsyncTask], object]] = {
    "check_schema": lambda app: app.check_schema(),
    "health": lambda app: app.health(),
    "pause": lambda app: app.pause("mail", dry_run=True),
    "process_health": lambda app: app.process_health(),
    "process_models": lambda app: app.process_models(dry_run=True),
    "prune": lambda app: app.prune("30d", dry_run=True),
    "resume": lambda app: app.resume("mail", dry_run=True),
    "rotate_keys": lambda app: app.rotate_keys(dry_run=True),
    "schedule.pause": lambda app: app.schedule.pause("test.client.ping", dry_run=True),
    "schedule.resume": lambda app: app.schedule.resume("test.client.ping", dry_run=True),
    "schema_version": lambda app: app.schema_version(),
}


class Base(DeclarativeBase): ...


class Nowhere(BaseAttempt, Base):
    __tablename__ = "nowhere_attempts"


@pytest.fixture
def app(engine: Engine, door: str, async_engine_url: str) -> AsyncTask:
    """An application whose tables are not there."""
    schedule = Schedule()
    schedule.every(minutes=5, call=Client.ping)
    given = engine if door == "sync" else create_async_engine(async_engine_url)
    return AsyncTask(given, model=Nowhere, schedule=schedule)


@pytest.mark.in_turns
@pytest.mark.parametrize("verb", ALL)
def test_every_verb_says_first_that_the_tables_are_missing(app: AsyncTask, verb: str) -> None:
    with pytest.raises(SchemaMismatch, match="the database has no table 'nowhere_attempts"):
        ALL[verb](app)


def test_every_verb_is_tried_above_or_named_as_one_that_does_not_check() -> None:
    assert verbs_of(AsyncTask) == {*VERBS, *UNCHECKED}
    assert verbs_of(Attempts) == {*READING}
    assert {f"schedule.{name}" for name in verbs_of(AppSchedule)} == {*SCHEDULED}


@pytest.mark.in_turns
@pytest.mark.parametrize("verb", ALL)
def test_every_verb_refuses_to_block_an_event_loop_and_its_remedy_works(app: AsyncTask, verb: str) -> None:
    names: dict[str, Any] = {
        "outbox": app,
        "worker": app.worker(),
        "clock": app.clock(),
        "attempt_id": uuid.uuid4(),
        "queue": "mail",
    }
    names |= {"attempt_id": uuid.uuid4(), "work": lambda _: None, "age": "30d", "key": "test.client.ping"}
    names |= {"span": "24h", "fingerprint": "0" * 12, "reason": "it is mended", "model": "test.review"}

    async def run() -> None:
        with pytest.raises(ConfigurationError, match="would block this event loop") as refused:
            ALL[verb](app)
        remedy = re.search(r"await (asyncio\.to_thread\(.*\))$", str(refused.value))
        assert remedy is not None
        await eval(remedy[1], {"asyncio": asyncio} | names)  # noqa: S307 - it is our own sentence

    with pytest.raises(SchemaMismatch):  # there, where nothing is blocked
        asyncio.run(run())


@pytest.mark.slow
def test_inside_of_reading_every_verb_reads_or_is_refused_before_it_changes_anything(
    engine: Engine, door: str, async_engine_url: str, write: Callable[..., Attempt], own_encryptors: None
) -> None:
    schedule = Schedule()
    schedule.every(minutes=5, call=Client.ping)
    app = application(engine, door, async_engine_url, schedule=schedule)
    mess(engine, write)
    before = rows_of(engine)
    refusing = {**ALL, "on_connection": lambda app: app.on_connection(print), "create_schema": AsyncTask.create_schema}
    with app.reading(within=30):
        for name in {*CHANGING, "on_connection", "create_schema"}:
            with pytest.raises(ConfigurationError, match=r"changes or locks rows, and outbox\.reading\(\) only reads"):
                refusing[name](app)
        for name in {*ALL} - CHANGING:
            with contextlib.suppress(UnknownAttempt, UnknownTarget):
                ALL[name](app)
        for verb in NO_CHANGES.values():
            verb(app)
        for one in app.attempts.list().attempts:
            app.attempts.explain(one.id)
    assert rows_of(engine) == before


def rows_of(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return [connection.execute(select(table)).all() for table in metadata.sorted_tables]


def test_a_connection_is_given_without_a_check(app: AsyncTask) -> None:
    assert app.on_connection(lambda connection: connection.exec_driver_sql("SELECT 17").scalar()) == 17


def verbs_of(kind: type[Any]) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
