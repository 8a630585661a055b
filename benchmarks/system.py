"""The measured systems. Each runs in processes of its own, so that its processor time can be measured and its crash
does not end the run.

`python -m benchmarks.system NAME` answers requests: a line of JSON in, a line of JSON out.
`python -m benchmarks.system NAME work URL BOARD OPTIONS` is a worker until SIGTERM.
"""

import contextlib
import ctypes
import importlib
import json
import logging
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Protocol

from benchmarks.board import Board

HOLD = 3600.0
"""Seconds that a call of "hold" lasts. Nothing waits for its end."""
BUSINESS = "CREATE TABLE IF NOT EXISTS business (id bigserial PRIMARY KEY, note text NOT NULL)"
INSERT = "INSERT INTO business (note) VALUES ('an order')"


class Cannot(Exception):
    """A system does not support this; the message says why."""


class System(Protocol):
    """A library that performs jobs from PostgreSQL. URLs are those of libpq. Kinds of jobs:

    "noop" counts itself on the board. "mark" notes when it began, by its number. "hold" does the same and then lasts.
    "write" writes one row in the transaction of its own outcome; "write_later" is the same for a coroutine.
    """

    name: str
    table: str
    """The table of its jobs."""
    fresh: Mapping[str, str]
    """SQL for each column that differs in copy number `n` of a job's row; "DEFAULT" for the default of the column."""
    also: tuple[str, ...]
    """SQL that adds what else belongs to the copies."""
    unfinished: str
    """SQL: how many jobs are not recorded as done. It is asked only when all were called."""
    finished: str | None
    """SQL: a condition for finished rows of `table`; None if they leave the table."""
    by_restart: bool
    """Whether the jobs of a dead worker run again only after it is restarted."""
    doors: tuple[str, ...]
    """The ways to enqueue a job in the caller's transaction. Each has a baseline of its own."""

    def version(self) -> str: ...

    def settings(self) -> dict[str, str]:
        """The settings that differ from its defaults, and those that matter."""
        ...

    def prepare(self, url: str) -> None:
        """Make its tables."""
        ...

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        """Seconds for `count` transactions on one connection. Each has one business INSERT and, if `enqueue`, a no-op
        job."""
        ...

    def enqueue_many(self, url: str, count: int) -> float:
        """Seconds to enqueue `count` no-op jobs, in one transaction if possible."""
        ...

    def enqueue(self, url: str, kind: str, numbers: list[int], delay: float) -> None:
        """Enqueue one job of this kind for each number, due in `delay` seconds."""
        ...

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        """Enqueue jobs "mark" 0 to `count` - 1 at `rate` a second, each in a transaction of its own on one connection.
        Returns when each commit had returned (seconds, monotonic)."""
        ...

    def produce(self, url: str, producers: int, seconds: float) -> int:
        """How many no-op jobs `producers` concurrent connections commit in `seconds`, one a transaction."""
        ...

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        """Perform jobs until SIGTERM. `options`: "single" (one commit a job), "lanes", "kind", "processes", "defaults"
        (no settings for speed), "hold" (seconds that such a job lasts, if not for ever)."""
        ...


NAMES = {
    "async-task": "ours",
    "psycopg": "bare",
    "pgqueuer/asyncpg": "pgqueuer",
    "pgqueuer/psycopg": "pgqueuer",
    "procrastinate": "procrastinate",
    "chancy": "chancy",
    "dbos": "dbos",
    "graphile-worker": "node",
    "pg-boss": "node",
}
"""The module of each system."""
OURS, BARE = "async-task", "psycopg"
PEERS = tuple(name for name in NAMES if name not in (OURS, BARE))
FASTEST = ("graphile-worker", "pgqueuer/asyncpg")


def load(name: str) -> System:
    """The system of this name. Raises Cannot if it is not installed."""
    module = importlib.import_module(f"benchmarks.systems.{NAMES[name]}")
    made: System = module.make(name)
    return made


def main(words: list[str]) -> None:
    _end_with_the_run()
    logging.basicConfig(level=logging.ERROR)
    name = words[0]
    if words[1:]:
        _, url, board, options = words[1:]
        load(name).work(url, Board(pathlib.Path(board)), json.loads(options))
    else:
        _answer(name)


def _end_with_the_run() -> None:
    """End with the run also if it is killed, where the operating system supports that."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG


def _answer(name: str) -> None:
    """Read requests from standard input, and answer on what was standard output. Libraries print to the log."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    system: System | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            system = system or load(name)
            member = getattr(system, request.pop("do"))
            answer = {"answer": member(**request) if callable(member) else member}
        except Cannot as error:
            answer = {"cannot": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer, default=dict) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
