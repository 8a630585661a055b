"""Real processes that start in milliseconds, forked from a server that has imported the library."""

import contextlib
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import IO, Any

from async_task import AsyncTask, BatchReport

DRIVERS = (
    "psycopg",
    "pymysql",
    "aiosqlite",
    "aiomysql",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.dialects.postgresql.psycopg",
)
PROGRAMS = (
    "alembic.command",
    "alembic.config",
    "async_task_cli.main",
    *(f"async_task_cli.commands.{name}" for name in ("attempt", "attempts", "batch", "check", "install", "run_now")),
    "rich.table",
)
PATIENCE = 30.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["async_task.application.app", "async_task.attempts.attempt", *DRIVERS, *PROGRAMS])
_path = [one for one in sys.path if one not in ("", str(pathlib.Path(__file__).parent))]


@dataclass
class Process:
    """A running process. `answer()` is what its function returned."""

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
    """Run `work(*args)` in a process of its own, which is killed at the end."""
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


class Program:
    """`python -m module words...` in a process of its own, without the second of CPU that the imports take. It is not
    for tests about imports or about a new interpreter.

    `stdin`, `stdout`, `stderr`: file descriptors. Without them, standard input is empty, and the outputs are pipes.
    """

    def __init__(
        self, *words: str, cwd: pathlib.Path | str, env: Mapping[str, str], strict: bool = False,
        stdin: int | None = None, stdout: int | None = None, stderr: int | None = None,
    ) -> None:  # fmt: skip
        with contextlib.ExitStack() as until:
            self.stdout, out = _pipe(stdout, until)
            self.stderr, err = _pipe(stderr, until)
            if stdin is None:
                stdin = os.open(os.devnull, os.O_RDONLY)
                until.callback(os.close, stdin)
            streams = [until.enter_context(Connection(os.dup(one))) for one in (stdin, out, err)]
            self._process = _context.Process(target=_be, args=(words, str(cwd), dict(env), strict, streams))
            self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = PATIENCE) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it never ended"
        return self._process.exitcode

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """Its whole output and errors when it has ended; "" for a stream that is not a pipe."""
        late = threading.Timer(timeout, self.kill)
        late.start()
        with ThreadPoolExecutor(2) as readers:
            out, err = readers.map(_read, (self.stdout, self.stderr))
        late.cancel()
        self.wait(timeout)
        return out, err

    def completed(self, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        out, err = self.communicate(timeout)
        return subprocess.CompletedProcess("", self.wait(), out, err)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Kill it, and close its pipes."""
        self.kill()
        self._process.join()
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


def _pipe(given: int | None, until: contextlib.ExitStack) -> tuple[IO[str] | None, int]:
    if given is not None:
        return None, given
    ours, theirs = os.pipe()
    until.callback(os.close, theirs)
    return os.fdopen(ours), theirs


def _read(pipe: IO[str] | None) -> str:
    return "" if pipe is None or pipe.closed else pipe.read()


def _stream(number: int, mode: str, env: Mapping[str, str]) -> IO[str]:
    buffering = 1 if number == 2 or os.isatty(number) else -1
    return os.fdopen(number, mode, buffering, encoding=env.get("PYTHONIOENCODING"), closefd=False)


def _be(words: tuple[str, ...], cwd: str, env: dict[str, str], strict: bool, streams: list[Connection]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin, sys.stdout, sys.stderr = (_stream(number, mode, env) for number, mode in enumerate("rww"))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *_path]
    sys.argv = list(words)
    if strict:
        warnings.simplefilter("error")
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def barrier(parties: int) -> Any:
    """A barrier for processes started here."""
    return _context.Barrier(parties)


def _live(link: Any, work: Callable[..., Any], *args: Any) -> None:
    link.send(work(*args))


def run_batch(url: str, lease: float, meet: Any = None, concurrency: int = 4) -> BatchReport:
    app = _app(url, lease)
    if meet is not None:
        meet.wait(PATIENCE)
    return app.run_batch(concurrency=concurrency)


def command_line(words: list[str], meet: Any = None) -> int:
    """The exit code of `async-task words...`."""
    from async_task_cli.main import main

    if meet is not None:
        meet.wait(PATIENCE)
    return main(words)


def perform(url: str, lease: float, ids: list[uuid.UUID], meet: Any = None) -> list[str]:
    """The names of the outcomes. Waits at `meet` before each."""
    app, ended = _app(url, lease), []
    for attempt_id in ids:
        if meet is not None:
            meet.wait(PATIENCE)
        ended.append(type(app.perform(attempt_id)).__name__)
    return ended


def _app(url: str, lease: float) -> AsyncTask:
    return AsyncTask(url, lease=lease, modules=["outbox"])


def await_(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait until `condition()` is true, and return it. A slow condition is asked less often, to leave the CPU to what
    it waits for."""
    until = time.monotonic() + patience
    asked = time.monotonic()
    while not (found := condition()):
        now = time.monotonic()
        assert now < until, f"it never came to this: {what}"
        time.sleep(min(max(0.005, 4 * (now - asked)), 0.1))
        asked = time.monotonic()
    return found


def notes(folder: pathlib.Path | str) -> list[tuple[str, int, int, str]]:
    """What the targets of `outbox.Elsewhere` noted in this folder: attempt, number of the try, process, word."""
    path = pathlib.Path(folder, "notes")
    lines = path.read_text().splitlines() if path.exists() else []
    parts = [line.split(" ", 3) for line in lines]
    return [(one[0], int(one[1]), int(one[2]), one[3]) for one in parts]
