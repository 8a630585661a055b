"""pgqueuer on asyncpg and on psycopg, with batches of 500 as its documentation advises for throughput."""

import asyncio
import contextlib
import importlib.metadata
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from benchmarks.board import Board
from benchmarks.system import BUSINESS, HOLD, INSERT, Cannot, System

BATCH = 500
BATCHES = 20
"""The number of jobs in one statement of a bulk enqueue."""


class PgQueuer:
    """Connects with either driver. It enqueues on the caller's connection, in the caller's transaction."""

    table = "pgqueuer"
    fresh: Mapping[str, str] = MappingProxyType({"id": "DEFAULT"})
    unfinished = "SELECT count(*) FROM pgqueuer WHERE execute_after < now() + interval '1 hour'"
    finished = None
    also: tuple[str, ...] = ()
    by_restart = False
    doors = ("",)

    def __init__(self, name: str) -> None:
        self.name = name
        self._driver = name.partition("/")[2]

    def version(self) -> str:
        return f"{importlib.metadata.version('pgqueuer')} on {self._driver} {importlib.metadata.version(self._driver)}"

    def settings(self) -> dict[str, str]:
        return {
            "batch_size": str(BATCH),
            "targets": "async def, no context",
            "connections": "one, with LISTEN on it",
            "all else": "defaults (not fenced; done jobs move to its log table)",
        }

    def prepare(self, url: str) -> None:
        async def prepare() -> None:
            async with self._connected(url) as (_, queries, execute):
                await queries.install()
                await execute(BUSINESS)

        asyncio.run(prepare())

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        async def transactions() -> float:
            async with self._connected(url) as (begin, queries, execute):

                async def once() -> None:
                    async with begin():
                        await execute(INSERT)
                        if enqueue:
                            await queries.enqueue("noop", None)

                for _ in range(20):
                    await once()
                begun = time.perf_counter()
                for _ in range(count):
                    await once()
                return time.perf_counter() - begun

        return asyncio.run(transactions())

    def enqueue_many(self, url: str, count: int) -> float:
        async def enqueue_many() -> float:
            async with self._connected(url) as (begin, queries, _):
                begun = time.perf_counter()
                async with begin():
                    await queries.enqueue(["noop"] * count, [None] * count, [0] * count)
                return time.perf_counter() - begun

        return asyncio.run(enqueue_many())

    def enqueue(self, url: str, kind: str, numbers: list[int], delay: float) -> None:
        if kind == "write":
            raise Cannot("a job's outcome has no transaction that its target can write in")
        after = timedelta(seconds=delay) if delay else None

        async def enqueue() -> None:
            async with self._connected(url) as (_, queries, _):
                for number in numbers:
                    await queries.enqueue(kind, str(number).encode(), execute_after=after)

        asyncio.run(enqueue())

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        async def pace() -> list[float]:
            async with self._connected(url) as (_, queries, _):
                commits, begun = [], time.monotonic() + 0.01
                for number in range(count):
                    await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
                    await queries.enqueue("mark", str(number).encode())
                    commits.append(time.monotonic())
                return commits

        return asyncio.run(pace())

    def produce(self, url: str, producers: int, seconds: float) -> int:
        async def produce(ready: asyncio.Barrier) -> int:
            made = 0
            async with self._connected(url) as (_, queries, _):
                await ready.wait()
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    await queries.enqueue("noop", None)
                    made += 1
            return made

        async def all_of_them() -> int:
            ready = asyncio.Barrier(producers)
            return sum(await asyncio.gather(*(produce(ready) for _ in range(producers))))

        return asyncio.run(all_of_them())

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        from pgqueuer import PgQueuer as Application
        from pgqueuer.models import Job

        async def work() -> None:
            async with self._raw(url) as connection:
                make = Application.from_asyncpg_connection
                make = make if self._driver == "asyncpg" else Application.from_psycopg_connection
                application = make(connection)

                @application.entrypoint("noop")
                async def noop(job: Job) -> None:
                    board.add()

                @application.entrypoint("mark")
                async def mark(job: Job) -> None:
                    board.mark(int(job.payload or b"0"))

                @application.entrypoint("hold")
                async def hold(job: Job) -> None:
                    board.mark(int(job.payload or b"0"))
                    await asyncio.sleep(options.get("hold", HOLD))

                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, application.shutdown.set)
                await application.run(batch_size=BATCH)

        asyncio.run(work())

    @contextlib.asynccontextmanager
    async def _raw(self, url: str) -> AsyncIterator[Any]:
        if self._driver == "asyncpg":
            import asyncpg

            connection = await asyncpg.connect(url)
        else:
            import psycopg

            connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        try:
            yield connection
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def _connected(
        self, url: str
    ) -> AsyncIterator[tuple[Callable[[], Any], Any, Callable[[str], Coroutine[Any, Any, Any]]]]:
        """How to begin a transaction, pgqueuer's queries on that connection, and how to send a statement of our own."""
        from pgqueuer.db import AsyncpgDriver, PsycopgDriver
        from pgqueuer.queries import Queries

        async with self._raw(url) as connection:
            driver = (AsyncpgDriver if self._driver == "asyncpg" else PsycopgDriver)(connection)
            yield connection.transaction, Queries(driver), connection.execute


def make(name: str) -> System:
    if importlib.util.find_spec("pgqueuer") is None:
        raise Cannot("pgqueuer is not installed: pip install 'async-task[bench]'")
    return PgQueuer(name)
