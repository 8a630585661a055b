"""Other processes, real ones: each starts in milliseconds from a server that has imported the library."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from async_task import AsyncTask, BatchReport

DRIVERS = (
    "psycopg",
    "pymysql",
    "aiosqlite",
    "aiomysql",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.dialects.postgresql.psycopg",
)
PATIENCE = 30.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["async_task.app", "async_task.attempt", *DRIVERS])


@dataclass
class Process:
    """A process at work. `answer()` is what its work returned."""

    process: Any
    link: Any

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def answer(self) -> Any:
        assert self.link.poll(PATIENCE), "it never answered"
        return self.link.recv()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.exit_code()

    def exit_code(self) -> int:
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "it never ended"
        return int(self.process.exitcode)


@contextlib.contextmanager
def process(work: Callable[..., Any], *args: Any) -> Iterator[Process]:
    """`work(*args)` in a process of its own, which is gone at the end."""
    link, theirs = _context.Pipe(duplex=False)
    started = _context.Process(target=_live, args=(theirs, work, *args))
    started.start()
    theirs.close()
    try:
        yield Process(started, link)
    finally:
        started.kill()
        started.join()
        started.close()
        link.close()


def barrier(parties: int) -> Any:
    """For the processes started here."""
    return _context.Barrier(parties)


def _live(link: Any, work: Callable[..., Any], *args: Any) -> None:
    link.send(work(*args))


def run_batch(url: str, lease: float, meet: Any = None, concurrency: int = 4) -> BatchReport:
    app = _app(url, lease)
    if meet is not None:
        meet.wait(PATIENCE)
    return app.run_batch(concurrency=concurrency)


def command_line(words: list[str], meet: Any = None) -> int:
    """What `async-task words...` ends with."""
    from async_task_cli.main import main

    if meet is not None:
        meet.wait(PATIENCE)
    return main(words)


def perform(url: str, lease: float, ids: list[uuid.UUID], meet: Any = None) -> list[str]:
    """The names of the outcomes; `meet` before each."""
    app, ended = _app(url, lease), []
    for attempt_id in ids:
        if meet is not None:
            meet.wait(PATIENCE)
        ended.append(type(app.perform(attempt_id)).__name__)
    return ended


def _app(url: str, lease: float) -> AsyncTask:
    return AsyncTask(url, lease=lease, modules=["outbox"])


def await_(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait until `condition()` holds, and answer it."""
    until = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < until, f"it never came to this: {what}"
        time.sleep(0.005)
    return found


def notes(folder: pathlib.Path | str) -> list[tuple[str, int, int, str]]:
    """What the targets of `outbox.Elsewhere` noted in this folder: attempt, number of the start, process, word."""
    path = pathlib.Path(folder, "notes")
    lines = path.read_text().splitlines() if path.exists() else []
    parts = [line.split(" ", 3) for line in lines]
    return [(one[0], int(one[1]), int(one[2]), one[3]) for one in parts]
