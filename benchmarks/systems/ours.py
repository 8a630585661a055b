"""async-task itself."""

import datetime as dt
import gc
import importlib.metadata
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import BigInteger, Engine, Integer, MetaData, Table, Text, create_engine, insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from async_task import AsyncTask, Attempt, Retry, target
from benchmarks.board import Board
from benchmarks.system import HOLD, System

LANES = 2
"""Worker threads: as many as there are cores here. With one commit an attempt they wait for the disk: then 8."""

ORDERED_ID = (
    "(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint + n / 1000), 12, '0') || '7' "
    "|| substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 4, 15))::uuid"
)
"""SQL for an id of copy number `n`: a UUIDv7 of now, as the library makes them."""

lasting = [HOLD]
boards: list[Board] = []
"""The board of this worker."""


class Base(DeclarativeBase):
    metadata = MetaData()


class Business(Base):
    """The business table of an application."""

    __tablename__ = "business"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    note: Mapped[str] = mapped_column(Text)


@target("bench.noop")
def noop() -> None:
    boards[0].add()


@target("bench.mark")
def mark(number: int) -> None:
    boards[0].mark(number)


@target("bench.hold", timeout=HOLD, retry=Retry.every(1))
def hold(number: int) -> None:
    boards[0].mark(number)
    time.sleep(lasting[-1])


@target("bench.write")
def write(session: Session) -> None:
    session.add(Business(note="written by the attempt"))
    session.flush()
    boards[0].add()


@target("bench.write_later")
async def write_later(session: AsyncSession) -> None:
    session.add(Business(note="written by the attempt"))
    await session.flush()
    boards[0].add()


TARGETS: dict[str, Any] = {"noop": noop, "mark": mark, "hold": hold, "write": write, "write_later": write_later}


class AsyncTaskSystem:
    """async-task with its defaults. It takes URLs of libpq, and those of SQLAlchemy for any database."""

    name = "async-task"
    table = "async_task_attempts"
    fresh: Mapping[str, str] = MappingProxyType({"id": ORDERED_ID})
    unfinished = "SELECT count(*) FROM async_task_attempts WHERE status = 'pending' AND scheduled_at IS NULL"
    finished: str | None = "status = 'succeeded'"
    also: tuple[str, ...] = ()
    by_restart = False
    doors: tuple[str, ...] = ("ORM", "Core")

    def version(self) -> str:
        return importlib.metadata.version("async-task")

    def settings(self) -> dict[str, str]:
        return {
            "driver": f"psycopg {importlib.metadata.version('psycopg')}",
            "SQLAlchemy": importlib.metadata.version("sqlalchemy"),
            "lanes": f"{LANES}; one commit per attempt: 8",
            "worker": "outbox.worker(), defaults" if hasattr(AsyncTask, "worker") else "outbox.run_batch() in a loop",
        }

    def prepare(self, url: str) -> None:
        engine = _engine(url)
        AsyncTask(engine).create_schema()
        Base.metadata.create_all(engine)
        engine.dispose()

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        engine = _engine(url)
        make = {"ORM": _orm, "Core": _core}[door]
        taken = make(engine, count, enqueue)
        engine.dispose()
        return taken

    def enqueue_many(self, url: str, count: int) -> float:
        engine = _engine(url)
        with engine.connect() as warm:
            warm.exec_driver_sql("SELECT 1")
        begun = time.perf_counter()
        with engine.begin() as connection:
            Attempt.create_many(connection, [{"target": noop} for _ in range(count)])
        taken = time.perf_counter() - begun
        engine.dispose()
        return taken

    def enqueue(self, url: str, kind: str, numbers: list[int], delay: float) -> None:
        engine = _engine(url)
        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=delay) if delay else None
        rows = [{"target": TARGETS[kind], "method_args": _arguments(kind, one), "scheduled_at": at} for one in numbers]
        with engine.begin() as connection:
            Attempt.create_many(connection, rows)
        engine.dispose()

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        engine = _engine(url)
        make = sessionmaker(engine)
        commits, begun = [], time.monotonic() + 0.01
        for number in range(count):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            with make.begin() as session:
                Attempt.create(target=mark, method_args={"number": number}, session=session)
            commits.append(time.monotonic())
        engine.dispose()
        return commits

    def produce(self, url: str, producers: int, seconds: float) -> int:
        engine = _engine(url, pool_size=producers)
        make, counts = sessionmaker(engine), [0] * producers
        ready = threading.Barrier(producers)

        def produce(mine: int) -> None:
            with engine.connect():
                ready.wait()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                with make.begin() as session:
                    Attempt.create(target=noop, session=session)
                counts[mine] += 1

        threads = [threading.Thread(target=produce, args=(mine,)) for mine in range(producers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        engine.dispose()
        return sum(counts)

    def run_batch(self, url: str) -> tuple[int, float, float]:
        """One batch: how many it performed, and its seconds, on the clock and on a processor."""
        with tempfile.TemporaryDirectory() as folder, Board(pathlib.Path(folder, "board")) as board:
            boards[:] = [board]
            app = AsyncTask(with_driver(url))
            begun, processor = time.perf_counter(), time.process_time()
            report = app.run_batch()
            taken = time.perf_counter() - begun, time.process_time() - processor
            app.close()
        return report.succeeded, *taken

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        if options.get("processes"):
            _supervise(url, board, options)
        boards.append(board)
        lasting.append(options.get("hold", HOLD))
        single = options.get("single", False)
        lanes = options.get("lanes") or (8 if single else LANES)
        app = AsyncTask(create_async_engine(with_driver(url)) if options.get("tasks") else with_driver(url))
        if not hasattr(app, "worker"):
            _work_in_batches(app, lanes)
            return
        settle: dict[str, Any] = {"settle_within": 0} if single else {}
        if "tasks" in options:
            settle["async_concurrency"] = options["tasks"]
        named = {"name": options["given_name"]} if "given_name" in options else {}
        gc.collect()
        gc.freeze()  # as `async-task worker` does
        app.worker(concurrency=lanes, **settle, **named).run()


def _supervise(url: str, board: Board, options: dict[str, Any]) -> None:
    """Replace this process by the command line, which imports `benchmarks.app`."""
    words = ["worker", "--app", "benchmarks.app:outbox", "--concurrency", str(options["lanes"])]
    told = {**os.environ, "BENCH_URL": url, "BENCH_BOARD": str(board.path)}
    command = [sys.executable, "-m", "async_task_cli", *words, "--processes", str(options["processes"])]
    os.execve(sys.executable, command, told)  # noqa: S606


def _work_in_batches(app: AsyncTask, lanes: int) -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    while not over.is_set():
        app.run_batch(concurrency=lanes, stop=over)
        over.wait(0.01)


def _orm(engine: Engine, count: int, enqueue: bool) -> float:
    make = sessionmaker(engine)

    def once() -> None:
        with make.begin() as session:
            session.add(Business(note="an order"))
            if enqueue:
                Attempt.create(target=noop, session=session)

    return _timed(once, count)


def _core(engine: Engine, count: int, enqueue: bool) -> float:
    table = Business.__table__
    assert isinstance(table, Table)
    statement = insert(table).values(note="an order")

    def once() -> None:
        with engine.begin() as connection:
            connection.execute(statement)
            if enqueue:
                Attempt.create_many(connection, [{"target": noop}])

    return _timed(once, count)


def _timed(once: Any, count: int) -> float:
    for _ in range(20):
        once()
    begun = time.perf_counter()
    for _ in range(count):
        once()
    return time.perf_counter() - begun


def _arguments(kind: str, number: int) -> dict[str, int]:
    return {"number": number} if kind in ("mark", "hold") else {}


def with_driver(url: str) -> str:
    """The SQLAlchemy URL for one of libpq. Other URLs stay as they are."""
    return url.replace("postgresql://", "postgresql+psycopg://")


def _engine(url: str, **options: Any) -> Engine:
    return create_engine(with_driver(url), **options)


def make(_name: str) -> System:
    return AsyncTaskSystem()
