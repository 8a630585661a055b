"""A collector for `prometheus_client`; it needs `async-task[prometheus]`.

from prometheus_client import REGISTRY
from async_task.integrations.prometheus import OutboxCollector

REGISTRY.register(OutboxCollector(outbox))
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from async_task.application.app import AsyncTask
from async_task.database.greenlets import has_loop_running
from async_task.error_text import describe
from async_task.reading.metrics import UP, WORDS, Gauge, gauge
from async_task.targets.retry import Duration

logger = logging.getLogger("async_task")


class OutboxCollector(Collector):
    """The gauges of `/metrics` and `async-task metrics`, read at each scrape by a few bounded queries.

    `within`: seconds, or a timedelta, that each statement may take. If the database cannot be used, that is logged and
    `async_task_up` is 0, alone: what else the registry collects is not lost. A registry takes the collector of one
    application. Raises ConfigurationError for an invalid `within`.
    """

    def __init__(self, outbox: AsyncTask, *, within: Duration = 2.0) -> None:
        self._outbox = outbox
        self._within = within
        with outbox.reading(within=within):  # which checks it
            pass

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The gauges without their values: what the registry compares names by. Asks no database."""
        return _families(gauge(name) for name in WORDS)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges with their values."""
        # prometheus_client's ASGI application collects on the thread of the event loop, where the database is not read.
        if not has_loop_running():
            return _families(self._read())
        with ThreadPoolExecutor(1, "async-task-metrics") as thread:
            return _families(thread.submit(copy_context().run, self._read).result())

    def _read(self) -> Iterable[Gauge]:
        try:
            with self._outbox.reading(within=self._within):
                return self._outbox.gauges()
        except Exception as error:
            logger.warning("the metrics could not be read: %s", describe(error).summary)
            return (gauge(UP, [({}, 0.0)]),)


def _families(gauges: Iterable[Gauge]) -> Iterator[GaugeMetricFamily]:
    for one in gauges:
        labels = tuple(one.samples[0].labels) if one.samples else ()
        family = GaugeMetricFamily(one.name, one.words, labels=labels)
        for sample in one.samples:
            family.add_metric(tuple(sample.labels.values()), sample.value)
        yield family
