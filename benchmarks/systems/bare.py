"""Bare psycopg on the same tables: what the statements cost without any promise. Also a bare loop with SQLAlchemy's
ORM."""

import asyncio
import importlib.metadata
import json
import queue
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
from sqlalchemy import bindparam, create_engine, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from async_task import Attempt
from benchmarks.board import Board
from benchmarks.system import INSERT, System
from benchmarks.systems.ours import AsyncTaskSystem, Business, with_driver

BATCH = 100
JOB = (
    "INSERT INTO async_task_attempts (id, status, target, method_name, method_args, encryptor, queue, priority, "
    "released, num_attempts, num_errors, num_crashes, due_at, created_at, updated_at) VALUES (%s, 'pending', "
    "'bench.noop', '__call__', '{}', 'null', 'default', 0, true, 0, 0, 0, now(), now(), now())"
)
TAKE = (
    "SELECT id FROM async_task_attempts WHERE status = 'pending' AND released AND claim_id IS NULL "
    "AND queue = 'default' AND priority = 0 AND due_at <= now() ORDER BY due_at LIMIT %s FOR NO KEY UPDATE SKIP LOCKED"
)
LOCK = "SELECT id FROM async_task_attempts WHERE id = %s AND status = 'pending' FOR NO KEY UPDATE SKIP LOCKED"
END = (
    "UPDATE async_task_attempts SET status = 'succeeded', num_attempts = num_attempts + 1, attempted_at = now(), "
    "completed_at = clock_timestamp(), updated_at = clock_timestamp() WHERE id = "
)
MARK = JOB.replace("'bench.noop'", "'bench.mark'").replace("'{}'", "%s")
CLAIM = f"{END}({TAKE.replace('%s', '1')}) RETURNING method_args::text"
CHANNEL = "bench"
WRITE = "INSERT INTO business (note) VALUES ('written by the attempt')"


class Psycopg(AsyncTaskSystem):
    """Row locks on a batch, one UPDATE and one commit; or one transaction a job under its row lock, in threads."""

    name = "psycopg"
    doors: tuple[str, ...] = ("psycopg",)

    def version(self) -> str:
        return importlib.metadata.version("psycopg")

    def settings(self) -> dict[str, str]:
        return {"batch": f"{BATCH} rows under row locks; one commit per job: 8 threads, a connection each"}

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        with psycopg.connect(url) as connection:
            for step in (20, count):
                begun = time.perf_counter()
                for _ in range(step):
                    connection.execute(INSERT)
                    if enqueue:
                        connection.execute(JOB, [uuid.uuid4()])
                    connection.commit()
            return time.perf_counter() - begun

    def enqueue_many(self, url: str, count: int) -> float:
        columns = JOB[JOB.index("(") : JOB.index(")") + 1]
        with psycopg.connect(url) as connection:
            begun = time.perf_counter()
            now = connection.execute("SELECT now()").fetchall()[0][0]
            same = ("pending", "bench.noop", "__call__", "{}", "null", "default", 0, True, 0, 0, 0, now, now, now)
            with connection.cursor() as cursor, cursor.copy(f"COPY async_task_attempts {columns} FROM STDIN") as copy:
                for _ in range(count):
                    copy.write_row((uuid.uuid4(), *same))
            connection.commit()
            return time.perf_counter() - begun

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        commits, begun = [], time.monotonic() + 0.01
        with psycopg.connect(url) as connection:
            for number in range(count):
                time.sleep(max(0.0, begun + number / rate - time.monotonic()))
                connection.execute(MARK, [uuid.uuid4(), json.dumps({"number": number})])
                connection.execute(f"NOTIFY {CHANNEL}")
                connection.commit()
                commits.append(time.monotonic())
        return commits

    def produce(self, url: str, producers: int, seconds: float) -> int:
        counts, ready = [0] * producers, threading.Barrier(producers)

        def produce(mine: int) -> None:
            with psycopg.connect(url) as connection:
                ready.wait()
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    connection.execute(JOB, [uuid.uuid4()])
                    connection.commit()
                    counts[mine] += 1

        _run([lambda mine=mine: produce(mine) for mine in range(producers)])
        return sum(counts)

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        over = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: over.set())
        if options.get("on_notice"):
            _on_notice(url, board, over)
        elif options.get("single"):
            threads = options.get("lanes") or 8
            if options.get("tasks"):
                asyncio.run(_one_by_one_in_tasks(url, board, over, options["tasks"]))
            elif options.get("orm"):
                _one_by_one_with_orm(url, board, over, threads)
            else:
                _one_by_one(url, board, over, threads, writes=options.get("kind") == "write")
        else:
            _in_batches(url, board, over)


def _in_batches(url: str, board: Board, over: threading.Event) -> None:
    with psycopg.connect(url) as connection:
        while not over.is_set():
            taken = [row[0] for row in connection.execute(TAKE, [BATCH])]
            for _ in taken:
                board.add()
            if taken:
                connection.execute(END + "ANY(%s)", [taken])
            connection.commit()
            if not taken:
                over.wait(0.05)


def _on_notice(url: str, board: Board, over: threading.Event) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        while not over.is_set():
            while (row := connection.execute(CLAIM).fetchone()) is not None:
                board.mark(json.loads(row[0])["number"])
            for _ in connection.notifies(timeout=0.5, stop_after=1):
                pass


def _one_by_one(url: str, board: Board, over: threading.Event, threads: int, *, writes: bool) -> None:
    known = _known(url)

    def lane() -> None:
        with psycopg.connect(url) as connection:
            for job in _until(over, known):
                if connection.execute(LOCK, [job]).fetchone():
                    board.add()
                    if writes:
                        connection.execute(WRITE)
                    connection.execute(END + "%s", [job])
                connection.commit()

    _run([lane] * threads)
    over.wait()


def _one_by_one_with_orm(url: str, board: Board, over: threading.Event, threads: int) -> None:
    """A session for each job, as one would write it: row lock, the row that is written, outcome, commit."""
    known, engine = _known(url), create_engine(with_driver(url), pool_size=threads)
    lock, end = _lock_and_end()

    def lane() -> None:
        for job in _until(over, known):
            with Session(engine) as session, session.begin():
                if session.execute(lock, {"job": job}).first() is not None:
                    board.add()
                    session.add(Business(note="written by the attempt"))
                    session.flush()
                    session.connection().execute(end, {"job": job})

    _run([lane] * threads)
    over.wait()
    engine.dispose()


async def _one_by_one_in_tasks(url: str, board: Board, over: threading.Event, tasks: int) -> None:
    """The same with an AsyncSession, in tasks of one loop."""
    known, engine = _known(url), create_async_engine(with_driver(url), pool_size=tasks)
    lock, end = _lock_and_end()

    async def lane() -> None:
        for job in _until(over, known):
            async with AsyncSession(engine) as session, session.begin():
                if (await session.execute(lock, {"job": job})).first() is not None:
                    board.add()
                    session.add(Business(note="written by the attempt"))
                    await session.flush()
                    await (await session.connection()).execute(end, {"job": job})

    await asyncio.gather(*(lane() for _ in range(tasks)))
    await asyncio.to_thread(over.wait)
    await engine.dispose()


def _lock_and_end() -> tuple[Any, Any]:
    table = Attempt.__table__
    lock = select(table.c.id).where(table.c.id == bindparam("job"), table.c.status == "pending")
    end = update(table).where(table.c.id == bindparam("job"))
    ended = {"status": "succeeded", "num_attempts": table.c.num_attempts + 1, "attempted_at": func.now()}
    end = end.values(**ended, completed_at=func.clock_timestamp(), updated_at=func.clock_timestamp())
    return lock.with_for_update(key_share=True, skip_locked=True), end


def _known(url: str) -> "queue.SimpleQueue[uuid.UUID]":
    """Ask once which jobs there are, so that only the transactions of the jobs are measured."""
    known: queue.SimpleQueue[uuid.UUID] = queue.SimpleQueue()
    with psycopg.connect(url) as connection:
        for row in connection.execute("SELECT id FROM async_task_attempts WHERE status = 'pending' ORDER BY due_at"):
            known.put(row[0])
    return known


def _until(over: threading.Event, known: "queue.SimpleQueue[uuid.UUID]") -> Iterator[uuid.UUID]:
    while not over.is_set():
        try:
            yield known.get_nowait()
        except queue.Empty:
            break


def _run(works: list[Any]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def make(_name: str) -> System:
    return Psycopg()
