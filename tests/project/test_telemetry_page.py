"""The examples of docs/telemetry.md do what the page says, and its tables name what is exported."""

import logging
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import prometheus_client
import pytest
import sentry_sdk
import structlog
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from async_task import Attempt, Succeeded
from async_task.attempts.telemetry import set_telemetry
from async_task.integrations import opentelemetry as integration
from async_task.outcomes import Canceled, Expired, Failed, Parked, Retried, Superseded
from async_task.schema.tables import table_of
from outbox import Client, act, calls, will
from said import Run
from spans import exported
from workers import make

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
OTEL, PROMETHEUS, SENTRY, STRUCTLOG, OF_ATTEMPT, FINAL = BLOCK.findall(PAGE)
pytestmark = pytest.mark.only_on("postgresql", "sqlite")
Write = Callable[..., Attempt]


@pytest.fixture
def names(sessions: sessionmaker[Session]) -> Iterator[dict[str, Any]]:
    """What the examples take for granted."""
    yield {"SessionLocal": sessions}
    set_telemetry(table_of(Attempt), None)


def execute(block: str, names: dict[str, Any]) -> Any:
    exec(block, names)  # noqa: S102
    return names.get("outbox")


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_with_opentelemetry_calls_are_written_down_and_performed(names: dict[str, Any], write: Write) -> None:
    outbox = execute(OTEL, names)
    attempt = write(Client, "ping")
    assert outbox.perform(attempt.id) == Succeeded(attempt.id)


@pytest.mark.only_on("sqlite")
def test_the_tables_name_every_metric_attribute_and_outcome(names: dict[str, Any], write: Write) -> None:
    seen = exported()
    names["telemetry"] = seen.telemetry
    outbox = execute("from async_task import AsyncTask\noutbox = AsyncTask(SessionLocal, telemetry=telemetry)", names)
    outbox.perform(write(Client, "ping").id)
    with names["SessionLocal"].begin() as session:
        Attempt.create_many(session, [{"target": act}] * 2)
    told = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", section("OpenTelemetry")))
    used = {name for span in seen.spans.get_finished_spans() for name in span.attributes or ()}
    metrics = {name for name in told if seen.points(name)}
    assert used <= told
    assert {one for one in told if one.startswith("messaging.client") or one == "messaging.process.duration"} <= metrics
    assert {"async_task.lag", "async_task.outcomes"} <= metrics
    kinds = (Succeeded, Retried, Failed, Expired, Canceled, Parked, Superseded)
    [row] = re.findall(r"^\| `async_task.outcome` \| (.*) \|$", PAGE, re.MULTILINE)
    assert {*re.findall(r"`(\w+)`", row)} == {*(one.__name__.lower() for one in kinds), "again"}
    assert f"{integration.SYSTEM}`" in section("OpenTelemetry")


def test_the_collector_is_registered(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    names["outbox"] = execute("from async_task import AsyncTask\noutbox = AsyncTask(SessionLocal)", names)
    execute(PROMETHEUS, names)
    assert b"async_task_up 1.0" in prometheus_client.generate_latest(registry)


def test_the_line_for_cron_writes_the_file(run: Run, tmp_path: pathlib.Path) -> None:
    [line] = re.findall(r"^```cron\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    words = line.partition(".venv/bin/async-task ")[2].replace("/var/lib/node_exporter", str(tmp_path)).split()
    assert (run(*words).code, (tmp_path / "async_task.prom").exists()) == (0, True)


class Sent(Transport):
    """Keeps what Sentry's SDK would send."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events.append(envelope.get_event())


@pytest.fixture
def sent() -> Iterator[Sent]:
    transport = Sent()
    sentry_sdk.init(dsn="http://key@localhost/1", transport=transport, auto_enabling_integrations=False)
    yield transport
    sentry_sdk.init(default_integrations=False)  # its own one for SQLAlchemy would listen to all engines from now on


@pytest.mark.slow
def test_sentry_has_one_event_of_a_final_failure_and_the_call_on_what_is_sent_from_inside(
    names: dict[str, Any], engine: Engine, sent: Sent
) -> None:
    outbox = execute(SENTRY, names)
    will(lambda: sentry_sdk.capture_message("from inside"))
    [attempt_id] = make(engine, act, queue="mail")
    outbox.perform(attempt_id)
    [inside] = sent.events
    assert (inside["transaction"], inside["tags"]["queue"]) == ("test.act", "mail")
    assert inside["contexts"]["attempt"] == {"id": str(attempt_id), "try": 1}
    [failing] = make(engine, Client, method_name="fail", method_args={"message": "canary-7355608"}, max_attempts=1)
    outbox.perform(failing)
    _, failed = sent.events
    assert (failed["level"], failed["extra"]["target"], failed["extra"]["try"]) == ("error", "test.client", 1)
    assert failed["exception"]["values"][-1]["type"] == "Broken"
    assert "canary" not in str(failed)


def test_what_a_target_logs_with_structlog_has_the_attempt(names: dict[str, Any], engine: Engine) -> None:
    outbox = execute(STRUCTLOG, names)
    [attempt_id] = make(engine, act)
    logged: list[Any] = []

    def keep(_: Any, __: str, event: Any) -> Any:
        logged.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    will(lambda: structlog.get_logger().info("packed"))
    outbox.perform(attempt_id)
    structlog.get_logger().info("outside")
    structlog.reset_defaults()
    assert logged == [
        {"event": "packed", "attempt_id": str(attempt_id), "call": "test.act", "number": 1},
        {"event": "outside"},
    ]


def test_records_of_targets_have_the_attempt_and_those_of_final_failures_are_told_from_others(
    names: dict[str, Any], engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = execute(OF_ATTEMPT + FINAL + "from async_task import AsyncTask\noutbox = AsyncTask(SessionLocal)", names)
    lines: list[str] = []
    handler, final = names["handler"], names["FinalFailures"]()
    shop = logging.getLogger("shop")
    shop.addHandler(handler)
    handler.emit = lambda record: lines.append(handler.format(record))
    will(lambda: shop.warning("packed"))
    [attempt_id], [failing] = make(engine, act), make(engine, Client, method_name="fail", max_attempts=1)
    outbox.perform(attempt_id)
    shop.warning("outside")
    shop.removeHandler(handler)
    assert lines == [f"packed [{attempt_id}]", "outside [-]"]
    caplog.clear()
    outbox.perform(failing)
    assert [record.attempt_id for record in caplog.records if final.filter(record)] == [str(failing)]
    assert calls
