"""The processes of a measured system."""

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.board import Board
from benchmarks.system import Cannot

HOME = pathlib.Path(__file__).parent.parent
GRACE = 5.0


class Broken(Exception):
    """A system failed at something that it supports; the message says how."""


class Child:
    """A system in a process of its own, which answers requests: `child.ask("enqueue_many", url=url, count=10)`."""

    def __init__(self, name: str, log: pathlib.Path) -> None:
        self.name, self._log = name, log
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def ask(self, do: str, patience: float = 300.0, **words: Any) -> Any:
        """The answer of the system. Raises Cannot and Broken; Broken also after `patience` seconds."""
        with self._turn:
            return self._asked(do, patience, words)

    def close(self) -> None:
        if self._process:
            _end(self._process)
            self._process = None

    def _asked(self, do: str, patience: float, words: dict[str, Any]) -> Any:
        if self._process and self._process.poll() is not None:  # it ended with the thread that started it
            self.close()
        process = self._process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps({"do": do, **words}) + "\n")
            process.stdin.flush()
            told, _, _ = select.select([process.stdout], [], [], patience)
            line = process.stdout.readline() if told else ""
        except OSError:
            line, told = "", []
        if not line:
            self.close()
            raise Broken(f"{do}: no answer after {patience:.0f} s" if not told else f"{do}: its process ended")
        answer = json.loads(line)
        if "cannot" in answer:
            raise Cannot(answer["cannot"])
        if "error" in answer:
            raise Broken(f"{do}: {answer['error'].strip().splitlines()[0]}")
        return answer["answer"]

    def _start(self) -> "subprocess.Popen[str]":
        with self._log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.system", self.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=HOME, start_new_session=True,
            )  # fmt: skip


class Worker:
    """A worker process, and its board."""

    def __init__(self, process: "subprocess.Popen[bytes]", board: Board, log: pathlib.Path) -> None:
        self.process, self.board, self.log = process, board, log

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """Kill it and everything that it started, with SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def check(self) -> None:
        """Raises Broken if it has ended."""
        if self.process.poll() is not None:
            said = self.log.read_text(errors="replace").strip().splitlines()
            raise Broken(f"its worker ended with {self.process.returncode}: {said[-1] if said else 'it said nothing'}")


@contextlib.contextmanager
def worker(name: str, url: str, folder: pathlib.Path, options: dict[str, Any]) -> Iterator[Worker]:
    """A running worker of this system on this database. It is stopped at the end."""
    path = folder / f"board-{time.monotonic_ns()}"
    log = path.with_suffix(".log")
    command = [sys.executable, "-m", "benchmarks.system", name, "work", url, str(path), json.dumps(options)]
    with Board(path) as board, log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=HOME, start_new_session=True
        )
        try:
            yield Worker(process, board, log)
        finally:
            _end(process)


def _end(process: "subprocess.Popen[Any]") -> None:
    """End a process and everything that it started: first ask, then kill."""
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
