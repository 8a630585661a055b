"""The aims for speed, and whether a run reached them. An aim without figures in the run is left out."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

Measures = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Aim:
    what: str
    aim: str
    found: str
    is_reached: bool


def aims(measures: Measures) -> list[Aim]:
    return [aim for aim in _aims(Figures(measures)) if aim is not None]


class Figures:
    """The medians of a run. NaN if there are none."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures

    def of(self, measure: str, label: str, column: str = "rate") -> float:
        for row in self._measures.get(measure, {"rows": []})["rows"]:
            if row["label"] == label:
                return float(row["medians"].get(column, math.nan))
        return math.nan

    def best(self, measure: str, column: str = "rate", lowest: bool = False) -> float:
        """The best figure of all peers."""
        rows = self._measures.get(measure, {"rows": []})["rows"]
        peers = [
            row["medians"][column]
            for row in rows
            if row["system"] not in ("async-task", "psycopg") and column in row["medians"]
        ]
        return (min if lowest else max)(peers, default=math.nan)


def _aims(at: Figures) -> Iterator[Aim | None]:
    ours, single, loop = "async-task", "async-task, settle_within=0, 8 lanes", "psycopg, a loop in 8 threads"
    yield _least("drain, over graphile-worker", at.of("drain", ours) / at.of("drain", "graphile-worker"), 1.0)
    yield _least("drain, over pgqueuer on asyncpg", at.of("drain", ours) / at.of("drain", "pgqueuer/asyncpg"), 2.0)
    yield _least("drain, two processes over one", at.of("two", ours) / at.of("drain", ours), 1.2)
    yield _least("one commit a job, over the bare loop", at.of("single", single) / at.of("single", loop), 0.7)
    for lanes in (1, 8):
        with_session, orm = f"async-task, session: Session, lanes: {lanes}", f"SQLAlchemy ORM, a loop, threads: {lanes}"
        what = f"a call with a session, over a bare ORM loop, lanes: {lanes}"
        yield _least(what, at.of("writes", with_session) / at.of("writes", orm), 1.0)
    for session, tasks in (("Session on an AsyncEngine, lanes: 1", 1), ("AsyncSession, coroutines: 10", 10)):
        in_tasks = at.of("writes", f"SQLAlchemy AsyncSession, a loop, tasks: {tasks}")
        found = at.of("writes", f"async-task, session: {session}") / in_tasks
        yield _least(f"the same over a bare loop with AsyncSession; {session}", found, 1.0)
    yield _most("run_batch, client CPU ms an attempt", at.of("batch", ours, "client"), 0.2)
    yield _most("run_batch, commits an attempt", at.of("batch", ours, "commits"), 0.1)
    enqueue = {door: at.of("enqueue", f"async-task, {door}", "overhead") for door in ("ORM", "Core")}
    yield _most("enqueue overhead, ORM", enqueue["ORM"], 1.4)
    bare = at.of("enqueue", "psycopg, psycopg", "overhead")
    yield _most("enqueue overhead, Core, over that of bare psycopg", enqueue["Core"] / bare, 1.2)
    better = at.best("enqueue", "overhead", lowest=True)
    yield _least("best peer's enqueue overhead, over ours (ORM)", better / enqueue["ORM"], 1)
    yield _most("a call with 1,000 targets, over one", at.of("targets", ours, "ratio"), 1.2)
    yield _least("bulk enqueue, rows/s", at.of("bulk", ours), 100_000, digits=0)
    yield _least("bulk enqueue, over graphile-worker", at.of("bulk", ours) / at.of("bulk", "graphile-worker"), 1.5)
    for name, rate in (("latency", "10/s"), ("latency100", "100/s")):
        for column, most in (("p50", 1.5), ("p99", 2.0)):
            found = at.of(name, ours, column) / at.of(name, "psycopg, NOTIFY and a claim", column)
            yield _most(f"commit to start at {rate}, {column}, over a bare NOTIFY and claim", found, most)
        level = at.of(name, ours, "p50") / at.of(name, "graphile-worker", "p50")
        yield _most(f"commit to start at {rate}, p50, over graphile-worker", level, 1.0)
    yield _least("drain over a link of 0.5 ms, jobs/s", at.of("link", ours), 20_000, digits=0)
    yield _least("one commit a job over a link of 0.5 ms, jobs/s", at.of("link", single), 2_000, digits=0)
    for what in ("future", "finished"):
        yield _least(f"drain beside {what} rows, over an empty table", at.of(what, ours, "kept"), 0.95)
        ten = at.of(what, "async-task, ten priorities", "kept")
        yield _least(f"the same with ten priorities, {what} rows", ten, 0.95)
    yield _least("snapshot held: rate at last over at first", at.of("snapshot", ours, "kept"), 0.7)
    yield _most("recovery after kill -9, s", at.of("recovery", ours, "all"), 6.0)
    yield _most("recovery that the supervisor saw, s", at.of("supervised", "one of two children", "all"), 0.5)
    yield _most("idle, statements a minute", at.of("idle", ours, "statements"), 30)
    yield _most("idle, % of a core", at.of("idle", ours, "core"), 1.0)
    yield _most("memory, % more", at.of("memory", ours, "growth"), 5.0)


def _least(what: str, found: float, least: float, digits: int = 2) -> Aim | None:
    return None if math.isnan(found) else Aim(what, f">= {least:,}", f"{found:,.{digits}f}", found >= least)


def _most(what: str, found: float, most: float) -> Aim | None:
    return None if math.isnan(found) else Aim(what, f"<= {most:,}", f"{found:,.2f}", found <= most)
