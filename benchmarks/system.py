"""What is measured: one of these a peer, each in processes of its own, so that its processor time can be taken and its
crash does not end the run.

As a program (`python -m benchmarks.system NAME`) it answers requests: a line of JSON in, a line of JSON out. As
`python -m benchmarks.system NAME work URL BOARD OPTIONS` it is a worker, until SIGTERM.
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
"""Seconds that a call of "hold" lasts: nobody waits for its end."""
BUSINESS = "CREATE TABLE IF NOT EXISTS business (id bigserial PRIMARY KEY, note text NOT NULL)"
INSERT = "INSERT INTO business (note) VALUES ('an order')"


class Cannot(Exception):
    """A system does not do this; the message says why."""


class System(Protocol):
    """A library that performs jobs out of PostgreSQL. URLs are libpq's. Kinds of jobs:

    "noop" counts itself on the board; "mark" notes when it began, by its number; "hold" the same, and lasts;
    "write" takes the transaction of its own outcome and writes one row with it.
    """

    name: str
    table: str
    """Where its jobs lie."""
    fresh: Mapping[str, str]
    """For a copy of a job's row (number `n`): SQL for each column that differs; "DEFAULT" for the column's own."""
    also: tuple[str, ...]
    """SQL that gives the copies what else belongs to a job."""
    unfinished: str
    """SQL: how many jobs are not recorded as done. Only asked when all have been called."""
    finished: str | None
    """SQL: a condition for rows of `table` that are done; None where they leave the table."""
    by_restart: bool
    """Whether a dead worker's jobs come back only when it is started again."""
    doors: tuple[str, ...]
    """Ways to write a job into a caller's transaction; each has its own baseline."""

    def version(self) -> str: ...

    def settings(self) -> dict[str, str]:
        """Those that differ from its defaults, and those that matter."""
        ...

    def prepare(self, url: str) -> None:
        """Make its tables."""
        ...

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        """Seconds for `count` transactions on one connection, each with one INSERT of business and, if `enqueue`, a job
        that is a no-op."""
        ...

    def enqueue_many(self, url: str, count: int) -> float:
        """Seconds to write so many no-op jobs, in one transaction if it can."""
        ...

    def enqueue(self, url: str, kind: str, numbers: list[int], delay: float) -> None:
        """One job of this kind for each number, due `delay` seconds from now."""
        ...

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        """Jobs "mark" 0 to `count` - 1, so many a second, each in a transaction of its own on one open connection:
        when each commit had returned (seconds, monotonic)."""
        ...

    def produce(self, url: str, producers: int, seconds: float) -> int:
        """How many no-op jobs so many concurrent connections commit in that time, one a transaction."""
        ...

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        """Perform jobs until SIGTERM. `options`: "single" (one commit a job), "lanes", "kind", "processes",
        "defaults" (nothing that was set for speed), "hold" (seconds that such a job lasts here, if not for ever)."""
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
"""The file of each system."""
OURS, BARE = "async-task", "psycopg"
PEERS = tuple(name for name in NAMES if name not in (OURS, BARE))


def load(name: str) -> System:
    """The system of this name. Raises Cannot where it is not installed."""
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
    """Where the system can: a run that is killed leaves no worker behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG


def _answer(name: str) -> None:
    """Requests from standard input, answers to what was standard output: what libraries print goes to the log."""
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
