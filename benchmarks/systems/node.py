"""graphile-worker and pg-boss on Node. Their programs are in `benchmarks/node`, their packages in a cache folder."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg

from benchmarks.board import Board
from benchmarks.system import BUSINESS, Cannot, System

PROGRAMS = pathlib.Path(__file__).parent.parent / "node"


@dataclass
class Node:
    """Passes each request to its Node program. A worker replaces this process by that program."""

    name: str
    table: str
    fresh: Mapping[str, str]
    unfinished: str
    finished: str | None
    told: dict[str, str]
    also: tuple[str, ...] = ()
    by_restart: bool = False
    doors: tuple[str, ...] = ("",)
    packages: pathlib.Path = field(init=False)
    _process: "subprocess.Popen[str] | None" = None
    _answers: Any = None

    def __post_init__(self) -> None:
        self.packages = _installed()

    def version(self) -> str:
        return str(self._ask("version"))

    def settings(self) -> dict[str, str]:
        return self.told

    def prepare(self, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(BUSINESS)
        self._ask("prepare", url=url)

    def transactions(self, url: str, count: int, door: str, enqueue: bool) -> float:
        return float(self._ask("transactions", url=url, count=count, enqueue=enqueue))

    def enqueue_many(self, url: str, count: int) -> float:
        return float(self._ask("enqueue_many", url=url, count=count))

    def enqueue(self, url: str, kind: str, numbers: list[int], delay: float) -> None:
        if kind == "write":
            raise Cannot("is not asked to write in the transaction of a job's outcome")
        self._ask("enqueue", url=url, kind=kind, numbers=numbers, delay=delay)

    def pace(self, url: str, count: int, rate: float) -> list[float]:
        commits: list[float] = self._ask("pace", url=url, count=count, rate=rate)
        return commits

    def produce(self, url: str, producers: int, seconds: float) -> int:
        return int(self._ask("produce", url=url, producers=producers, seconds=seconds))

    def work(self, url: str, board: Board, options: dict[str, Any]) -> None:
        command = ["node", str(PROGRAMS / f"{self.name}.mjs"), url, str(board.path), json.dumps(options)]
        os.execvpe("node", command, self._environment())  # noqa: S606

    def _ask(self, do: str, **words: Any) -> Any:
        process = self._process = self._process or self._start()
        assert process.stdin
        process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        process.stdin.flush()
        if not (line := self._answers.readline()):
            self._process = None
            raise RuntimeError("its program ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def _start(self) -> "subprocess.Popen[str]":
        """Answers come on descriptor 3, because libraries print to the other ones."""
        ours, theirs = os.pipe()
        self._answers = os.fdopen(ours)
        command = ["/bin/sh", "-c", f'exec "$@" 3>&{theirs}', "sh", "node", str(PROGRAMS / f"{self.name}.mjs")]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, env=self._environment(), pass_fds=[theirs]
        )
        os.close(theirs)
        return process

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "BENCH_PACKAGES": str(self.packages), "NODE_NO_WARNINGS": "1"}


def _installed() -> pathlib.Path:
    """The folder with the packages, which npm fills once. Raises Cannot."""
    if not (shutil.which("node") and shutil.which("npm")):
        raise Cannot("node and npm are not here")
    wanted = (PROGRAMS / "package.json").read_bytes()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    folder = cache / "async-task-bench" / hashlib.sha256(wanted).hexdigest()[:12]
    if not (folder / "installed").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_bytes(wanted)
        command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            raise Cannot(f"npm could not install it: {' '.join(said[1:2]) or done.stderr[-200:]}")
        (folder / "installed").touch()
    return folder


def make(name: str) -> System:
    if name == "graphile-worker":
        return Node(
            name,
            table="graphile_worker._private_jobs",
            fresh={"id": "DEFAULT"},
            unfinished="SELECT count(*) FROM graphile_worker._private_jobs WHERE run_at < now() + interval '1 hour'",
            finished=None,
            told={
                "concurrentJobs": "24", "localQueue.size": "1000", "completeJobBatchDelay": "0",
                "failJobBatchDelay": "0", "driver": "pg",
                "all else": "defaults (completion by id, not fenced; done jobs are deleted)",
            },
        )  # fmt: skip
    return Node(
        name,
        table="pgboss.job",
        fresh={"id": "gen_random_uuid()"},
        unfinished=(
            "SELECT count(*) FROM pgboss.job WHERE state < 'completed' AND name = 'bench' "
            "AND start_after < now() + interval '1 hour'"
        ),
        finished="state = 'completed' AND name = 'bench'",
        told={
            "batchSize": "500", "burstWhenBatchFull": "true", "useListenNotify": "true, and notify on the queue",
            "driver": "pg", "all else": "defaults (done jobs are kept; a handler gets the batch)",
        },
    )  # fmt: skip
