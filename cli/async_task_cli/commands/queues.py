"""`async-task pause | resume | queues`: queues that are paused or limited."""

import dataclasses
import json

import click
from rich.text import Text

from async_task import QueueState, acting
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.fields import as_json_value
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import moment, page, plain, say, table

QUEUE = click.option("--queue", metavar="NAME", help="The queue.")
TARGET = click.option("--target", metavar="NAME", help="The target, in any queue.")


@click.command("pause", context_settings=SETTINGS)
@QUEUE
@TARGET
@click.option("--reason", metavar="TEXT", help="Why; `queues` shows it.")
@as_actor
@reaching
def pause(wanted: Wanted, queue: str | None, target: str | None, reason: str | None, actor: str | None) -> None:
    """Start no more calls of a queue or a target until `resume`. Running calls are finished.

    A target must be known here (--app or --module). Where it shares its queue with others, its calls are moved to a
    queue named after it when they would start.
    """
    _refuse_none_or_two(queue, target)
    with existing(wanted) as app, acting(actor_of(actor)):
        is_new = app.pause(queue, target=target, reason=reason)
    say(f"{_named(queue, target)} is paused." if is_new else f"{_named(queue, target)} was paused before.")


@click.command("resume", context_settings=SETTINGS)
@QUEUE
@TARGET
@reaching
def resume(wanted: Wanted, queue: str | None, target: str | None) -> None:
    """Resume a queue or a target that was paused."""
    _refuse_none_or_two(queue, target)
    with existing(wanted) as app:
        was_paused = app.resume(queue, target=target)
    say(f"{_named(queue, target)} is resumed." if was_paused else f"{_named(queue, target)} was not paused.")


@click.command("queues", context_settings=SETTINGS)
@as_json
@reaching
def queues(wanted: Wanted, is_json: bool) -> None:
    """List the queues that are paused (by whom, since when and why) or limited (running calls, starts a second).

    --json writes one object a line: name, paused_at, paused_by, reason, max_running, rate.
    """
    with existing(wanted) as app:
        found = app.queues()
    if is_json:
        for one in found:
            click.echo(json.dumps({name: as_json_value(value) for name, value in dataclasses.asdict(one).items()}))
    elif found:
        made = table(["QUEUE", "STATE", "RUNNING", "RATE"], numbers=["RUNNING", "RATE"], whole=["RUNNING", "RATE"])
        for one in found:
            made.add_row(plain(one.name), plain(_state(one)), _number(one.max_running), _number(one.rate, "/s"))
        page().print(made)
    else:
        page().print(Text("No queue is paused or limited."))


def _refuse_none_or_two(queue: str | None, target: str | None) -> None:
    if (queue is None) is (target is None):
        raise click.UsageError("give --queue NAME or --target NAME")


def _named(queue: str | None, target: str | None) -> str:
    return f"The queue {queue}" if target is None else f"The target {target}"


def _state(one: QueueState) -> str:
    if one.paused_at is None:
        return "served"
    by = "" if one.paused_by is None else f" by {one.paused_by}"
    why = "" if one.reason is None else f": {one.reason}"
    return f"paused since {moment(one.paused_at)}{by}{why}"


def _number(number: float | None, unit: str = "") -> Text:
    return Text("" if number is None else f"{number:g}{unit}")
