"""chancy: its executor for async jobs with 1,000 running jobs and eager polling."""

import asyncio
import datetime as dt
import importlib.metadata
import importlib.util
import logging
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg.rows import dict_row

from benchmarks.board import Board
from benchmarks.system import BUSINESS, HOLD, INSERT, Cannot, System

CONCURRENCY = 1000
lasting = [HOLD]
boards: list[Board] = []
"""The board of this worker."""


async def noop() -> None:
    boards[0].add()


async def mark(*, number: int) -> None:
    boards[0].mark(number)


async def hold(*, number: int) -> None:
    boards[0].mark(number)
    await asyncio.sleep(lasting[-1])


TARGETS = {"noop": noop, "mark": mark, "hold": hold}


class Chancy:
    """Sync producers on the caller's cursor, and an async worker with the default plugins."""

    name = "chancy"
    table = "chancy_jobs"
    fresh: Mapping[str, str] = MappingProxyType({"id": "gen_random_uuid()"})
    unfinished = (
        "SELECT count(*) FROM chancy_jobs WHERE state IN ('pending', 'running', 'retrying') "
        "AND scheduled_at < now() + interval '1 hour'"
    )
    finished = "state = 'succeeded'"
    also: tuple[str, ...] = ()
    by_restart = False
    doors = ("",)

    def version(self) -> str:
        return importlib.metadata.version("chancy")

    def settings(self) -> dict[str, str]:
        return {
            "queue": f"AsyncExecutor, concurrency {CONCURRENCY}, eager_polling",
            "driver": f"psycopg {importlib.metadata.version('psycopg')}",
            "all else": "defaults (notifications on; outcomes are written at most once a second)",
        }

    def prepare(self, url: str) -> None:
        from chancy import Queue

        async def prepare() -> None:
            async with _chancy(url) as chancy:
                await chancy.migrate()
                queue = Queue(
                    "default",
                    concurrency=CONCURRENCY,
                    executor="chancy.executors.asyncex.AsyncExecutor",
                    eager_polling=True,
                )
                await chancy.declare(queue, upsert=True)

        asyncio.run(prepare())
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(BUSINESS)

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        with _chancy(url) as chancy, psycopg.connect(url, row_factory=dict_row) as connection:
            cursor = connection.cursor()
            for step in (20, count):
                begun = time.perf_counter()
                for _ in range(step):
                    cursor.execute(INSERT)
                    if enqueue:
                        chancy.sync_push_many_ex(cursor, [_job("noop")])
                    connection.commit()
            return time.perf_counter() - begun

    def enqueue_many(self, url: str, count: int) -> float:
        with _chancy(url) as chancy, psycopg.connect(url, row_factory=dict_row) as connection:
            begun = time.perf_counter()
            chancy.sync_push_many_ex(connection.cursor(), [_job("noop") for _ in range(count)])
            connection.commit()
            return time.perf_counter() - begun

    def enqueue(self, url: str, kind: str, numbers: list[int], delay: float) -> None:
        if kind == "write":
            raise Cannot("a job's outcome has no transaction that its function can write in")
        with _chancy(url) as chancy:
            for number in numbers:
                chancy.sync_push(_job(kind, number, delay))

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        with _chancy(url) as chancy:
            commits, begun = [], time.monotonic() + 0.01
            for number in range(count):
                time.sleep(max(0.0, begun + number / rate - time.monotonic()))
                chancy.sync_push(_job("mark", number))
                commits.append(time.monotonic())
            return commits

    def produce(self, url: str, producers: int, seconds: float) -> int:
        async def produce() -> int:
            async with _chancy(url, min_connection_pool_size=producers, max_connection_pool_size=producers) as chancy:
                await chancy.pool.wait()
                until = time.monotonic() + seconds

                async def one() -> int:
                    made = 0
                    while time.monotonic() < until:
                        await chancy.push(_job("noop"))
                        made += 1
                    return made

                return sum(await asyncio.gather(*(one() for _ in range(producers))))

        return asyncio.run(produce())

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        from chancy import Worker

        boards.append(board)
        lasting.append(options.get("hold", HOLD))

        async def work() -> None:
            async with _chancy(url) as chancy, Worker(chancy) as worker:
                await worker.wait_for_shutdown()

        asyncio.run(work())


def _chancy(url: str, **options: Any) -> Any:
    import chancy

    log = logging.getLogger("chancy")
    log.setLevel(logging.ERROR)
    return chancy.Chancy(url, log=log, **options)


def _job(kind: str, number: int = 0, delay: float = 0.0) -> Any:
    from chancy import Job

    at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=delay)
    kwargs = {} if kind == "noop" else {"number": number}
    job = Job.from_func(TARGETS[kind], queue="default", kwargs=kwargs)
    return job.with_scheduled_at(at) if delay else job


def make(_name: str) -> System:
    if importlib.util.find_spec("chancy") is None:
        raise Cannot("chancy is not installed: pip install 'async-task[bench]'")
    return Chancy()
