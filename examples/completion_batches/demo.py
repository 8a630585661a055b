"""The example in seconds: `python -m completion_batches.demo`.

Runs provider, worker and clock as processes of their own, kills worker and clock with kill -9 in the middle, and starts
them again. Checks everything that it prints. Its files are in a folder of their own, which it removes at the end.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROVIDER = ("completion_batches.provider", "--takes", "2", "--delay", "0.1", "--fail", "0.2", "--lose", "2")
SEED = "9"
WORKER = ("async_task_cli", "worker", "--poll", "100ms")
CLOCK = ("async_task_cli", "clock")
PATIENCE = 60.0
SETTINGS = {
    "COMPLETIONS_DATABASE_URL": "sqlite:///completions.sqlite",
    "COMPLETIONS_LEASE": "1",
    "COMPLETIONS_SCHEDULE": "[0.3, 0.6]",
    "COMPLETIONS_MAX_AGE": "10",
    "COMPLETIONS_GRACE": "1",
    "COMPLETIONS_RESUME_EVERY": "1",
    "COMPLETIONS_EXPIRE_EVERY": "1",
    "COMPLETIONS_SUBMIT_EVERY": "2",
    "COMPLETIONS_BATCH_SIZE": "3",
    "ASYNC_TASK_APP": "completion_batches.app:outbox",
}


class Demo:
    """The processes of one run, and what it prints."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._began = time.monotonic()
        self._said: dict[int, str] = {}

    def tell(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:5.1f} s  {line}", flush=True)

    def start(self, name: str, *words: str, out: int | None = None) -> "subprocess.Popen[str]":
        with (self._folder / f"{name}.log").open("a") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *words], stdin=subprocess.DEVNULL, stdout=log if out is None else out,
                stderr=log, text=True,
            )  # fmt: skip
        return self._running[name]

    def start_both(self, how: str) -> None:
        """Start worker and clock, and wait until both are running."""
        from completion_batches.app import outbox

        pids = {self.start("worker", *WORKER).pid, self.start("clock", *CLOCK).pid}
        self.follow(lambda: pids <= {one.pid for one in outbox.workers()}, "worker and clock run")
        self.tell(f"worker and clock are {how}")

    def kill(self, name: str) -> str:
        """kill -9. Returns its name and process id."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return f"{name} {process.pid}"

    def close(self) -> None:
        """Kill what still runs."""
        for name in list(self._running):
            self.kill(name)

    def follow(self, condition: Callable[[], bool], what: str) -> None:
        """Print what becomes of the batches, until the condition holds: when the provider has one, and its end."""
        until = time.monotonic() + PATIENCE
        while True:
            is_met = condition()
            self._tell_changes()
            if is_met:
                return
            if time.monotonic() > until:
                sys.exit(f"It did not come to this within {PATIENCE:.0f} s: {what}")
            time.sleep(0.05)

    def _tell_changes(self) -> None:
        for batch, told in batches():
            if self._said.get(batch) != told and (told == "submitted" or "handled" in told):
                self._said[batch] = told
                self.tell(f"batch {batch} is {told}")


def batches() -> list[tuple[int, str]]:
    """The number of each batch, and what its row says."""
    from completion_batches.database import SessionLocal
    from completion_batches.models import CompletionBatch

    with SessionLocal() as session:
        rows = session.query(CompletionBatch).order_by(CompletionBatch.id).all()
    return [(row.id, _of(row)) for row in rows]


def _of(row: Any) -> str:
    told = row.status if row.handler_dispatched_at is None else f"{row.status} and handled"
    return f"{told}: {row.failure_reason}" if row.failure_reason else str(told)


def num_accepted() -> int:
    return sum(told.startswith(("submitted", "in_progress", "ended")) for _, told in batches())


def unanswered() -> int:
    from completion_batches.database import SessionLocal
    from completion_batches.models import Prompt

    with SessionLocal() as session:
        return session.query(Prompt).where(Prompt.answer.is_(None)).count()


def audit() -> dict[str, Any]:
    """What the provider knows."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(os.environ["COMPLETIONS_PROVIDER_URL"] + "/audit", timeout=10) as answer:
        known: dict[str, Any] = json.load(answer)
    return known


def num_at_provider(*statuses: str) -> int:
    return sum(one["status"] in statuses for one in audit()["batches"].values())


def play(demo: Demo) -> None:
    """The story. Worker and clock die while the provider works, and are away when it has ended."""
    from completion_batches.__main__ import ask
    from completion_batches.app import create_tables

    create_tables()
    demo.start_both("started")
    ask(["Why is the sky blue?", "Why is grass green?", "Why is the sea salt?"], now=True)
    demo.tell("3 prompts are written, and submitted as a batch in the same transaction")
    ask([f"What is {number} times {number}?" for number in range(2, 8)], now=False)
    demo.tell("6 prompts are written; the clock submits them, 3 a batch")
    demo.follow(lambda: num_accepted() == 3, "the provider has accepted three batches")
    demo.tell(f"kill -9: {demo.kill('worker')} and {demo.kill('clock')}")
    ask(["Who is there?", "Who was there?"], now=False)
    demo.tell("2 more prompts are written; nobody submits them")
    demo.follow(lambda: num_at_provider("in_progress") == 0, "the provider has ended them")
    demo.tell("the provider has ended its batches; nobody asks it")
    demo.start_both("started again")
    demo.follow(lambda: unanswered() == 0 and all("handled" in told for _, told in batches()), "all have an answer")
    check(demo)


def check(demo: Demo) -> None:
    """Compare what the application knows with what the provider knows."""
    known = audit()
    starts = [one["key"] for one in known["requests"] if one["request"].startswith("POST")]
    busy = sum(one["answer"] == 503 for one in known["requests"])
    made = len(known["batches"])
    if not len(set(starts)) == made == len(batches()):
        sys.exit(f"The provider was to start {len(batches())} batches, each once: {known}")
    if not any("failed" in told for _, told in batches()):
        sys.exit("The batch that the provider has lost was to fail")
    demo.tell("all 11 prompts have their answer")
    print(f"The provider got {len(known['requests'])} requests, and answered {busy} of them 503.")
    print(f"Requests to start a batch: {len(starts)}. Keys: {len(set(starts))}. Batches: {made}, of which it lost 1.")


@contextlib.contextmanager
def in_a_folder() -> Iterator[Path]:
    """A new folder as the working directory, with the environment of the demo."""
    here = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory(prefix="completion-batches-") as folder:
        os.environ.update(
            {**SETTINGS, **os.environ}, PYTHONPATH=os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
        )
        with contextlib.chdir(folder):
            yield Path(folder)


def main() -> None:
    with in_a_folder() as folder, contextlib.closing(Demo(folder)) as demo:
        provider = demo.start("provider", *PROVIDER, "--port", "0", "--seed", SEED, out=subprocess.PIPE)
        assert provider.stdout is not None
        os.environ["COMPLETIONS_PROVIDER_URL"] = provider.stdout.readline().strip()
        demo.tell(f"provider {provider.pid} is started: slow, at times 503, and it will lose its second batch")
        play(demo)


if __name__ == "__main__":
    main()
