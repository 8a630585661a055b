"""dbos: workflows on a queue without limits, polled every 10 ms."""

import importlib.metadata
import importlib.util
import signal
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import create_engine, text

from benchmarks.board import Board
from benchmarks.system import BUSINESS, HOLD, INSERT, Cannot, System

QUEUE = "bench"
POLL = 0.01
BESIDE = (
    "INSERT INTO dbos.{table} SELECT jobs.workflow_uuid, one.{columns}, one.retention_timestamp "
    "FROM dbos.workflow_status jobs, (SELECT * FROM dbos.{table} ORDER BY retention_timestamp DESC LIMIT 1) one "
    "WHERE {where} ON CONFLICT DO NOTHING"
)
"""Arguments and results are in other tables."""
lasting = [HOLD]
boards: list[Board] = []
"""The board of this worker."""


class Dbos:
    """Enqueues with its client, in the caller's SQLAlchemy transaction if there is one."""

    name = "dbos"
    table = "dbos.workflow_status"
    fresh: Mapping[str, str] = MappingProxyType({"workflow_uuid": "gen_random_uuid()::text"})
    unfinished = "SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')"
    finished = "status = 'SUCCESS'"
    also: tuple[str, ...] = (
        BESIDE.format(table="workflow_input", columns="inputs", where="true"),
        BESIDE.format(table="workflow_output", columns="output, one.error", where="status = 'SUCCESS'"),
    )
    by_restart = True
    doors = ("",)

    def version(self) -> str:
        return importlib.metadata.version("dbos")

    def settings(self) -> dict[str, str]:
        return {
            "queue": f"no limits, polling_interval_sec={POLL} (default 1.0, with which idle and recovery are measured)",
            "driver": f"psycopg {importlib.metadata.version('psycopg')}",
            "all else": "defaults",
        }

    def prepare(self, url: str) -> None:
        with _launched(url):
            pass
        engine = create_engine(_sqlalchemy(url))
        with engine.begin() as connection:
            connection.execute(text(BUSINESS))
        engine.dispose()

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        engine, client, insert = create_engine(_sqlalchemy(url)), _client(url), text(INSERT)
        for step in (20, count):
            begun = time.perf_counter()
            for _ in range(step):
                with engine.begin() as connection:
                    connection.execute(insert)
                    if enqueue:
                        client.enqueue_in_transaction(connection, _options("noop"))
        taken = time.perf_counter() - begun
        client.destroy()
        engine.dispose()
        return taken

    def enqueue_many(self, url: str, count: int) -> float:
        """It has no call for many jobs: enqueue them one by one in one transaction."""
        engine, client = create_engine(_sqlalchemy(url)), _client(url)
        begun = time.perf_counter()
        with engine.begin() as connection:
            for _ in range(count):
                client.enqueue_in_transaction(connection, _options("noop"))
        taken = time.perf_counter() - begun
        client.destroy()
        engine.dispose()
        return taken

    def enqueue(self, url: str, kind: str, numbers: list[int], delay: float) -> None:
        if kind == "write":
            raise Cannot("a workflow's outcome has no transaction that it can write in")
        client = _client(url)
        for number in numbers:
            delayed = {"delay_seconds": delay} if delay else {}
            client.enqueue({**_options(kind), **delayed}, *([] if kind == "noop" else [number]))
        client.destroy()

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        client = _client(url)
        commits, begun = [], time.monotonic() + 0.01
        for number in range(count):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            client.enqueue(_options("mark"), number)
            commits.append(time.monotonic())
        client.destroy()
        return commits

    def produce(self, url: str, producers: int, seconds: float) -> int:
        client, counts = _client(url, system_database_pool_size=producers), [0] * producers

        def produce(mine: int) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                client.enqueue(_options("noop"))
                counts[mine] += 1

        threads = [threading.Thread(target=produce, args=(mine,)) for mine in range(producers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.destroy()
        return sum(counts)

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        boards.append(board)
        lasting.append(options.get("hold", HOLD))
        over = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: over.set())
        with _launched(url, 1.0 if options.get("defaults") else POLL, options.get("executor")):
            over.wait()


class _launched:
    """DBOS running in this process, with the workflows and the queue of the benchmark."""

    def __init__(self, url: str, poll: float = POLL, executor: str | None = None) -> None:
        from dbos import DBOS

        self._dbos, self._poll = DBOS, poll
        config = {
            "name": "bench-app", "system_database_url": _sqlalchemy(url), "log_level": "ERROR",
            "application_version": "1",
        }  # fmt: skip
        DBOS(config={**config, **({"executor_id": executor} if executor else {})})

        @DBOS.workflow(name="noop")
        def noop() -> None:
            boards[0].add()

        @DBOS.workflow(name="mark")
        def mark(number: int) -> None:
            boards[0].mark(number)

        @DBOS.workflow(name="hold")
        def hold(number: int) -> None:
            boards[0].mark(number)
            DBOS.sleep(lasting[-1])

    def __enter__(self) -> None:
        self._dbos.launch()
        self._dbos.register_queue(QUEUE, polling_interval_sec=self._poll, on_conflict="always_update")

    def __exit__(self, *_: object) -> None:
        self._dbos.destroy()


def _client(url: str, **options: Any) -> Any:
    from dbos import DBOSClient

    return DBOSClient(system_database_url=_sqlalchemy(url), **options)


def _options(kind: str) -> dict[str, Any]:
    return {"workflow_name": kind, "queue_name": QUEUE, "app_version": "1"}


def _sqlalchemy(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def make(_name: str) -> System:
    if importlib.util.find_spec("dbos") is None:
        raise Cannot("dbos is not installed: pip install 'async-task[bench]'")
    return Dbos()
