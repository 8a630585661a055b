"""`async-task workers`."""

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import click
from rich.text import Text

from async_task import WorkerInfo
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import briefly, coloured, counted, page, say

COLUMNS = (
    Column("NAME", shortest=12), Column("BEGAN"), Column("LAST BEAT"), Column("STATE"), Column("QUEUES", shortest=6),
    Column("LANES", is_number=True), Column("CLAIMS", is_number=True),
)  # fmt: skip
SILENT = dt.timedelta(minutes=1)
"""An idle worker's heartbeat comes four times in that time, that of any other more often."""


@click.command("workers", context_settings=SETTINGS)
@as_json
@reaching
def workers(wanted: Wanted, is_json: bool) -> None:
    """List the processes that perform attempts, and the clocks: the living first, and of these the oldest.

    STATE: busy (has claims), awake (polls), asleep (waits for a notification), ticking (a clock), silent (runs on this
    machine, without a heartbeat for a minute: frozen, or cut off from the database), or dead. A process of this machine
    is dead as soon as it has ended. One of another machine or container is dead when its heartbeats are missing: for a
    lease (5 s) if it has claims or is a batch; for 20 s if it is an idle worker, which sends one every 15 s, or a
    clock. A clock that hangs is dead after 20 s although its process runs. A dead process stays in the list for a day;
    its claims are recovered within seconds.

    \b
    --json writes one object a line:
      name, host, pid, kind (worker, run-batch, clock, or null), started_at,
      beat_at, silent_seconds, asleep,
      state  busy, awake, asleep, ticking, silent or dead
      claims (running attempts; at most 10000 of all are counted)
      about  what it reports: queues (threads by name; none: all),
             concurrency, async_concurrency, targets (how many it knows),
             target_names (up to 1,000), version; a clock: entries
    Fields may be added, and are not renamed.
    """
    with existing(wanted) as app:
        found = app.workers()
    if is_json:
        for one in found:
            click.echo(json.dumps(as_data(one)))
        return
    if found:
        print_table(page(), COLUMNS, rows(found))
    num_dead = sum(one.is_dead for one in found)
    say(f"{counted(len(found), 'process', 'processes')}{f', {num_dead} of them dead' if num_dead else ''}.")


def rows(found: Sequence[WorkerInfo]) -> list[Sequence[Text | str]]:
    """For people."""
    return [_row(one) for one in found]


def _row(one: WorkerInfo) -> Sequence[Text | str]:
    now = one.beat_at + one.silent_for
    queues = ", ".join(one.served_queues or ["all"]) if one.kind == "worker" else ""
    lanes, claims = str(one.about.get("concurrency", "")), f"{one.claims:,}"
    return (
        one.name,
        briefly(one.started_at, now),
        briefly(one.beat_at, now),
        coloured(state(one)),
        queues,
        lanes,
        claims,
    )


def state(one: WorkerInfo) -> str:
    if one.is_dead:
        return "dead"
    if one.kind == "clock":
        return "ticking"
    if one.silent_for > SILENT:
        return "silent"
    if one.claims:
        return "busy"
    return "asleep" if one.is_asleep else "awake"


def as_data(one: WorkerInfo) -> dict[str, Any]:
    return {
        "name": one.name, "host": one.host, "pid": one.pid, "kind": one.kind,
        "started_at": one.started_at.isoformat(), "beat_at": one.beat_at.isoformat(),
        "silent_seconds": round(one.silent_for.total_seconds(), 3), "state": state(one), "asleep": one.is_asleep,
        "claims": one.claims, "about": dict(one.about),
    }  # fmt: skip
