"""`async-task workers`."""

import datetime as dt
import json
from typing import Any

import click
from rich.text import Text

from async_task import WorkerInfo
from async_task_cli.application import existing
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import coloured, counted, page, plain, span, table

SILENT = dt.timedelta(minutes=1)
"""An idle worker's heartbeat comes four times in that time, a busy one's more often."""


@click.command("workers", context_settings=SETTINGS)
@as_json
@reaching
def workers(wanted: Wanted, is_json: bool) -> None:
    """List the processes that perform attempts, the oldest first.

    STATE: busy (has claims), awake (polls), asleep (waits for a notification), or silent: without a heartbeat for a
    minute. A dead process stays in the list for a day; its claims are recovered within seconds.

    \b
    --json writes one object a line:
      name, host, pid, kind (worker, run-batch, or null), started_at,
      beat_at, silent_seconds, state, asleep,
      claims (running attempts; at most 10000 of all are counted)
      about  what it reports: queues (threads by name; none: all),
             concurrency, async_concurrency, targets, version
    Fields may be added, and are not renamed.
    """
    with existing(wanted) as app:
        found = app.workers()
    if is_json:
        for one in found:
            click.echo(json.dumps(as_data(one)))
        return
    console = page()
    if found:
        console.print(sheet(found))
    console.print(f"{counted(len(found), 'process', 'processes')}.")


def sheet(found: list[WorkerInfo]) -> Any:
    """For people."""
    made = table(["NAME", "SINCE", "LAST BEAT", "STATE", "QUEUES", "LANES", "CLAIMS"], numbers=["LANES", "CLAIMS"])
    for one in found:
        beat, since = (f"{span(length.total_seconds())} ago" for length in (one.silent_for, _at_work(one)))
        queues = ", ".join(one.about.get("queues") or ["all"]) if one.kind == "worker" else ""
        cells = [plain(one.name), Text(since), Text(beat), coloured(state(one)), plain(queues)]
        made.add_row(*cells, Text(str(one.about.get("concurrency", ""))), Text(f"{one.claims:,}"))
    return made


def state(one: WorkerInfo) -> str:
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


def _at_work(one: WorkerInfo) -> dt.timedelta:
    return one.beat_at + one.silent_for - one.started_at
