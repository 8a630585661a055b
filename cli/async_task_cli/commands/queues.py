"""`async-task pause | resume | queues`: queues that are paused or limited."""

import dataclasses
import datetime as dt
import json
from collections.abc import Sequence

import click
from rich.text import Text

from async_task import QueueState, acting
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.faults import one_line
from async_task_cli.fields import as_json_value
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.queue_names import why_unknown
from async_task_cli.selection import naming
from async_task_cli.terminal import briefly, page, say

COLUMNS = (
    Column("QUEUE", shortest=12), Column("STATE"), Column("SINCE"), Column("RUNNING", is_number=True),
    Column("RATE", is_number=True), Column("BY", shortest=8), Column("REASON", shortest=12),
)  # fmt: skip
QUEUE = click.option("--queue", metavar="NAME", help="The queue.")
TARGET = click.option("--target", metavar="NAME", help="The target, in any queue.")
DRY = click.option("--dry-run", "is_dry", is_flag=True, help="Say what would change, and change nothing.")


@click.command("pause", context_settings=SETTINGS)
@QUEUE
@TARGET
@click.option("--reason", metavar="TEXT", help="Why; `queues` shows it.")
@DRY
@as_actor
@reaching
def pause(
    wanted: Wanted, queue: str | None, target: str | None, reason: str | None, is_dry: bool, actor: str | None
) -> None:
    """Start no more calls of a queue or a target until `resume`. Running calls are finished.

    A target must be known here (--app or --module). Where it shares its queue with others, its calls are moved to a
    queue named after it when they would start. A queue that nothing knows is paused too, and the nearest name is
    printed.
    """
    _refuse_none_or_two(queue, target)
    with existing(wanted) as app, acting(actor_of(actor)), naming():
        unknown = why_unknown(app, queue)  # before: a paused queue is a known one
        is_new = app.pause(queue, target=target, reason=reason, dry_run=is_dry)
    done = "would be paused" if is_dry else "is paused"
    say(f"{_named(queue, target)} {done if is_new else 'was paused before'}.")
    if unknown is not None:
        say(f"Note: {one_line(unknown)}")


@click.command("resume", context_settings=SETTINGS)
@QUEUE
@TARGET
@DRY
@as_actor
@reaching
def resume(wanted: Wanted, queue: str | None, target: str | None, is_dry: bool, actor: str | None) -> None:
    """Resume a queue or a target that was paused."""
    _refuse_none_or_two(queue, target)
    with existing(wanted) as app, acting(actor_of(actor)), naming():
        was_paused = app.resume(queue, target=target, dry_run=is_dry)
    done = "would be resumed" if is_dry else "is resumed"
    say(f"{_named(queue, target)} {done if was_paused else 'was not paused'}.")


@click.command("queues", context_settings=SETTINGS)
@as_json
@reaching
def queues(wanted: Wanted, is_json: bool) -> None:
    """List the queues that are paused (by whom, since when and why) or limited (running calls, starts a second).

    --json writes one object a line: name, paused_at, paused_by, reason, max_running, rate.
    """
    with existing(wanted) as app:
        found, now = app.queues(), app.now()
    if is_json:
        for one in found:
            click.echo(json.dumps({name: as_json_value(value) for name, value in dataclasses.asdict(one).items()}))
    elif found:
        print_table(page(), COLUMNS, [_row(one, now) for one in found])
    else:
        page().print(Text("No queue is paused or limited."))


def _refuse_none_or_two(queue: str | None, target: str | None) -> None:
    if (queue is None) is (target is None):
        raise click.UsageError("give --queue NAME or --target NAME")


def _named(queue: str | None, target: str | None) -> str:
    return f"The queue {queue}" if target is None else f"The target {target}"


def _row(one: QueueState, now: dt.datetime) -> Sequence[str]:
    since = "" if one.paused_at is None else briefly(one.paused_at, now)
    state = "served" if one.paused_at is None else "paused"
    limits = _number(one.max_running), _number(one.rate, "/s")
    return one.name, state, since, *limits, one.paused_by or "", one.reason or ""


def _number(number: float | None, unit: str = "") -> str:
    return "" if number is None else f"{number:g}{unit}"
