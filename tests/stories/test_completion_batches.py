"""The example `completion_batches` as processes: a faulty provider, a worker and a clock. They are killed in the middle
and started again."""

import contextlib
import datetime as dt
import json
import os
import pathlib
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, select, update

from async_task import Attempt, Status
from async_task.schema.columns import Instant, Name
from async_task.schema.tables import Occurrence
from databases import Database
from elsewhere import Program, await_

pytestmark = pytest.mark.long

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
MAX_AGE = 60
SETTINGS = {
    "COMPLETIONS_LEASE": "1",
    "COMPLETIONS_SCHEDULE": "[0.2, 0.3]",
    "COMPLETIONS_MAX_AGE": str(MAX_AGE),
    "COMPLETIONS_GRACE": "0.5",
    "COMPLETIONS_RESUME_EVERY": "0.3",
    "COMPLETIONS_EXPIRE_EVERY": "0.3",
    "COMPLETIONS_SUBMIT_EVERY": "1",
    "COMPLETIONS_BATCH_SIZE": "2",
    "COMPLETIONS_PROVIDER_KEY": "sk-7355608",
    "ASYNC_TASK_APP": "completion_batches.app:outbox",
}
TEXTS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
FAULTS = ("--seed", "77", "--fail", "0.25", "--delay", "0.08", "--takes", "0.4", "--lose", "2")
PROGRAMS = {
    "worker": ("async_task_cli", "worker", "--poll", "50ms"),
    "clock": ("async_task_cli", "clock"),
}

_tables = MetaData()
batches = Table(
    "completion_batches", _tables, Column("id", Integer), Column("status", Name(16)), Column("provider_id", Name(100)),
    Column("failure_reason", Name(255)),
    *(Column(f"{name}_at", Instant()) for name in ("submitted", "results_fetched", "handler_dispatched")),
)  # fmt: skip
prompts = Table(
    "completion_prompts", _tables, Column("id", Integer), Column("text", Text), Column("batch_id", Integer),
    Column("answer", Text),
)  # fmt: skip


class Example:
    """The processes of the example, by name."""

    def __init__(self, engine: Engine, url: str, folder: pathlib.Path) -> None:
        self.engine, self._folder = engine, folder
        theirs = {name: value for name, value in os.environ.items() if not name.startswith("COMPLETIONS_")}
        self._env = theirs | SETTINGS | {"PYTHONPATH": str(EXAMPLES), "COMPLETIONS_DATABASE_URL": url}
        self._running: dict[str, Program] = {}

    def run(self, *words: str) -> None:
        """`python -m completion_batches ...`"""
        with contextlib.closing(Program("completion_batches", *words, cwd=self._folder, env=self._env)) as begun:
            ended = begun.completed()
        assert ended.returncode == 0, ended.stderr

    def start_provider(self, port: str = "0") -> None:
        words = ("completion_batches.provider", "--port", port, *FAULTS)
        begun = self._running["provider"] = Program(*words, cwd=self._folder, env=self._env)
        assert begun.stdout is not None
        self._env["COMPLETIONS_PROVIDER_URL"] = begun.stdout.readline().strip()

    def restart_provider(self) -> None:
        """kill -9, and start it at the same address with what it has in its file."""
        self.kill("provider")
        self.start_provider(self._env["COMPLETIONS_PROVIDER_URL"].rpartition(":")[2])

    def start(self, *names: str) -> None:
        for name in names:
            with (self._folder / f"{name}.log").open("a") as log:
                out = log.fileno()
                self._running[name] = Program(*PROGRAMS[name], cwd=self._folder, env=self._env, stdout=out, stderr=out)

    def kill(self, *names: str) -> None:
        for name in names:
            self._running.pop(name).close()

    def stop(self, *names: str) -> list[int]:
        """SIGTERM. Returns the exit codes."""
        for name in names:
            self._running[name].send_signal(signal.SIGTERM)
        return [self._running[name].wait() for name in names]

    def close(self) -> None:
        self.kill(*self._running)

    def rows(self, table: Any) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(table)))

    def grow_old(self, batch: int) -> None:
        """Let one batch be older than its maximal age."""
        row = next(one for one in self.rows(batches) if one.id == batch)
        since = row.submitted_at - dt.timedelta(seconds=MAX_AGE)
        with self.engine.begin() as connection:
            connection.execute(update(batches).where(batches.c.id == batch).values(submitted_at=since))

    def unanswered(self) -> list[Any]:
        return [one for one in self.rows(prompts) if one.answer is None]

    def audit(self) -> dict[str, Any]:
        """What the provider knows."""
        url = self._env["COMPLETIONS_PROVIDER_URL"] + "/audit"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            known: dict[str, Any] = json.load(answer)
        return known

    def starts(self) -> list[dict[str, Any]]:
        return [one for one in self.audit()["requests"] if one["request"] == "POST /batches"]

    def is_starting(self) -> bool:
        """Whether the provider has made a batch, and has not answered yet."""
        known = {one["key"] for one in self.audit()["batches"].values()}
        return any(one["answer"] is None and one["key"] in known for one in self.starts())

    def has_ended_all(self) -> bool:
        return all(one["status"] == "ended" for one in self.audit()["batches"].values())


@pytest.fixture
def example(engine: Engine, database: Database, tmp_path: pathlib.Path) -> Iterator[Example]:
    """With a running provider. The first `ask` makes the tables."""
    made = Example(engine, database.sync_url, tmp_path)
    made.start_provider()
    yield made
    made.close()
    for table in (prompts, batches):
        table.drop(engine, checkfirst=True)


def test_every_result_is_reclaimed_before_its_expiry_and_a_lost_batch_ends_visibly(example: Example) -> None:
    example.run("ask", "--now", *TEXTS[:2])
    example.start("worker", "clock")
    example.run("ask", *TEXTS[2:6])
    await_(lambda: len(example.audit()["batches"]) >= 2, "the provider has one of those that the clock submits")
    await_(example.is_starting, "the provider is asked to start another")
    example.kill("worker", "clock")
    example.restart_provider()
    example.run("ask", *TEXTS[6:])
    await_(example.has_ended_all, "the provider has results, and nobody asks for them")
    assert example.unanswered()
    example.start("worker", "clock")
    await_(lambda: lost(example), "what was lost is the rest")
    example.grow_old(lost(example)[0])
    await_(lambda: not example.unanswered(), "the prompts of the lost batch are answered by another")
    await_(lambda: all(one.handler_dispatched_at for one in example.rows(batches)), "the handlers have returned")
    assert example.stop("worker", "clock") == [143, 143]
    check_results(example)
    check_provider(example)
    check_chains(example)


def lost(example: Example) -> list[int]:
    """The batch that the provider has lost, once all other prompts have their answers."""
    waiting = {one.batch_id for one in example.unanswered()}
    theirs = {one.id for one in example.rows(batches) if one.provider_id == "b-2"}
    return list(theirs) if waiting == theirs else []


def check_results(example: Example) -> None:
    assert {one.text: one.answer for one in example.rows(prompts)} == {
        text: f"An answer in 1 words to {text!r}" for text in TEXTS
    }
    (failed,) = [one for one in example.rows(batches) if one.status != "ended"]
    reason = f"it had not ended after its maximal age of {dt.timedelta(seconds=MAX_AGE)}; its last check raised "
    assert (failed.status, failed.provider_id, failed.failure_reason[: len(reason)]) == ("failed", "b-2", reason)
    ended = [one for one in example.rows(batches) if one.status == "ended"]
    ages = [(one.results_fetched_at - one.submitted_at).total_seconds() for one in ended]
    assert max(ages) < MAX_AGE


def check_provider(example: Example) -> None:
    """Each batch was started once, although the provider was asked more often."""
    known, starts = example.audit(), example.starts()
    assert sorted(known["batches"]) == sorted(one.provider_id for one in example.rows(batches))
    assert {one["key"] for one in starts} == {one["key"] for one in known["batches"].values()}
    assert len(starts) > len(known["batches"])
    assert [one for one in known["requests"] if one["answer"] == 503]


def check_chains(example: Example) -> None:
    """One attempt polled each batch, and none is left."""
    attempts = example.rows(Attempt.__table__)
    polls = [one for one in attempts if one.target == "completion_batches"]
    assert [one.status for one in polls] == [Status.SUCCEEDED] * len(example.rows(batches))
    written = [one.attempt_id for one in example.rows(Occurrence.__table__) if one.attempt_id is not None]
    submits = {one.id for one in attempts if one.target == "completion_batches.submit_waiting"}
    assert sorted(written) == sorted(submits)
