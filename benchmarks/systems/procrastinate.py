"""procrastinate: async tasks, a concurrency of 30; done jobs are kept."""

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import logging
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import psycopg

from benchmarks.board import Board
from benchmarks.system import BUSINESS, HOLD, INSERT, Cannot, System

CONCURRENCY = 30
lasting = [HOLD]
boards: list[Board] = []
"""The board of this worker."""


class Procrastinate:
    """Sync producers with a pool of connections, and an async worker."""

    name = "procrastinate"
    table = "procrastinate_jobs"
    fresh: Mapping[str, str] = MappingProxyType({"id": "DEFAULT"})
    unfinished = (
        "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing') "
        "AND (scheduled_at IS NULL OR scheduled_at < now() + interval '1 hour')"
    )
    finished = "status = 'succeeded'"
    also: tuple[str, ...] = ()
    by_restart = False
    doors = ("",)

    def version(self) -> str:
        return importlib.metadata.version("procrastinate")

    def settings(self) -> dict[str, str]:
        return {
            "concurrency": str(CONCURRENCY),
            "tasks": "async def",
            "driver": f"psycopg {importlib.metadata.version('psycopg')}, a pool of 10",
            "all else": "defaults (LISTEN on; done jobs are kept)",
        }

    def prepare(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(BUSINESS)
        with _opened(url) as (app, _):
            app.schema_manager.apply_schema()

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        with _opened(url) as (_, tasks), psycopg.connect(url) as connection:
            defer = tasks["noop"].configure(connection=connection).defer
            for step in (20, count):
                begun = time.perf_counter()
                for _ in range(step):
                    connection.execute(INSERT)
                    if enqueue:
                        defer()
                    connection.commit()
            return time.perf_counter() - begun

    def enqueue_many(self, url: str, count: int) -> float:
        with _opened(url) as (_, tasks):
            begun = time.perf_counter()
            tasks["noop"].batch_defer(*({} for _ in range(count)))
            return time.perf_counter() - begun

    def enqueue(self, url: str, kind: str, numbers: list[int], delay: float) -> None:
        if kind == "write":
            raise Cannot("a job's outcome has no transaction that its task can write in")
        schedule = {"schedule_in": {"seconds": delay}} if delay else {}
        with _opened(url) as (_, tasks):
            for number in numbers:
                tasks[kind].configure(**schedule).defer(**({} if kind == "noop" else {"number": number}))

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        with _opened(url) as (_, tasks):
            commits, begun = [], time.monotonic() + 0.01
            for number in range(count):
                time.sleep(max(0.0, begun + number / rate - time.monotonic()))
                tasks["mark"].defer(number=number)
                commits.append(time.monotonic())
            return commits

    def produce(self, url: str, producers: int, seconds: float) -> int:
        async def produce() -> int:
            app, tasks = _application(url, min_size=producers, max_size=producers)
            async with app.open_async():
                until = time.monotonic() + seconds

                async def one() -> int:
                    made = 0
                    while time.monotonic() < until:
                        await tasks["noop"].defer_async()
                        made += 1
                    return made

                return sum(await asyncio.gather(*(one() for _ in range(producers))))

        return asyncio.run(produce())

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        boards.append(board)
        lasting.append(options.get("hold", HOLD))

        async def work() -> None:
            app, _ = _application(url)
            async with app.open_async():
                await app.run_worker_async(concurrency=options.get("lanes") or CONCURRENCY)

        asyncio.run(work())


def _application(url: str, **pool: Any) -> tuple[Any, dict[str, Any]]:
    import procrastinate

    return _with_tasks(procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, **pool)))


def _with_tasks(app: Any) -> tuple[Any, dict[str, Any]]:

    @app.task(name="noop")
    async def noop() -> None:
        boards[0].add()

    @app.task(name="mark")
    async def mark(number: int) -> None:
        boards[0].mark(number)

    @app.task(name="hold")
    async def hold(number: int) -> None:
        boards[0].mark(number)
        await asyncio.sleep(lasting[-1])

    return app, {"noop": noop, "mark": mark, "hold": hold}


@contextlib.contextmanager
def _opened(url: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    import procrastinate

    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    app, tasks = _with_tasks(procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url)))
    with app.open():
        yield app, tasks


def make(_name: str) -> System:
    if importlib.util.find_spec("procrastinate") is None:
        raise Cannot("procrastinate is not installed: pip install 'async-task[bench]'")
    return Procrastinate()
