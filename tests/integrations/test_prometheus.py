"""The collector for prometheus_client: the figures of `/metrics`, at each scrape."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.asgi import make_asgi_app
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from async_task import AsyncTask, Attempt, ConfigurationError
from async_task.integrations.prometheus import OutboxCollector
from dashboards import browser
from outbox import Client, act

Write = Callable[..., Attempt]


@pytest.fixture
def registry(app: AsyncTask) -> CollectorRegistry:
    made = CollectorRegistry(auto_describe=True)
    made.register(OutboxCollector(app))
    return made


def figures_in(text: str) -> dict[str, str]:
    """The lines with values: everything before the value, and the value. Ages differ from one look to the next."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: "some" if "oldest" in name else f"{float(value)}" for name, _, value in lines}


def about_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


@pytest.mark.slow
def test_a_scrape_has_the_names_words_and_values_of_the_page(
    app: AsyncTask, registry: CollectorRegistry, write: Write
) -> None:
    write(act, queue='qu"eue\\')
    write(Client, "ping")
    app.run_batch(queues=["default"])
    scraped = generate_latest(registry).decode()
    with browser(app) as client:
        page = client.get("/metrics").text
    assert figures_in(scraped) == figures_in(page)
    assert about_in(scraped) == about_in(page)
    found = figures_in(scraped)
    assert found[r'async_task_attempts_due{queue="qu\"eue\\"}'] == "1.0"
    assert found["async_task_up"] == "1.0"
    assert float(registry.get_sample_value("async_task_attempts_ended_per_second", {"target": "test.client"}) or 0) > 0


@pytest.fixture
def away(app: AsyncTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise OperationalError("SELECT", {}, ConnectionError("refused"))

    monkeypatch.setattr(type(app), "_run", refused)


@pytest.mark.usefixtures("away")
def test_without_the_database_up_is_0_and_other_metrics_are_there(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    Gauge("shop_orders", "Orders.", registry=registry).set(7)
    caplog.set_level(logging.WARNING, "async_task")
    assert figures_in(generate_latest(registry).decode()) == {"async_task_up": "0.0", "shop_orders": "7.0"}
    assert "the metrics could not be read" in caplog.text


def test_registering_asks_no_database_and_a_second_outbox_is_refused(
    app: AsyncTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(type(app), "_run", lambda self, verb, work: asked.append(verb))
    made = CollectorRegistry(auto_describe=True)
    made.register(OutboxCollector(app))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        made.register(OutboxCollector(app))
    assert asked == []


@pytest.mark.slow
def test_it_is_scraped_on_the_thread_of_an_event_loop(registry: CollectorRegistry) -> None:
    assert "async_task_up 1.0" in TestClient(make_asgi_app(registry)).get("/").text

    async def scrape() -> bytes:
        return generate_latest(registry)

    assert b"async_task_up 1.0" in asyncio.run(scrape())


def test_an_invalid_limit_is_refused_when_it_is_made(app: AsyncTask) -> None:
    with pytest.raises(ConfigurationError, match="within is from"):
        OutboxCollector(app, within=0)
