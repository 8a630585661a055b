"""`async-task schedule list | next | history | run | pause | resume`: the entries of the schedule and their times."""

import dataclasses
import datetime as dt
import json
from typing import Any

import click
from rich.text import Text

from async_task import EntryInfo, OccurrenceInfo, Upcoming, acting
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.faults import USAGE
from async_task_cli.fields import as_json_value
from async_task_cli.moments import Moment
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.terminal import briefly, counted, page, plain, say

ENTRIES = (
    Column("KEY", shortest=12), Column("RULE", shortest=16), Column("CALL", shortest=12), Column("NEXT"),
    Column("LAST"), Column("STATE"),
)  # fmt: skip
TIMES = (Column("KEY", shortest=12), Column("UTC"), Column("LOCAL"), Column("ZONE"))
HISTORY = (
    Column("KEY", shortest=12),
    Column("UTC"),
    Column("STATUS"),
    Column("REASON", shortest=20),
    Column("ATTEMPT"),
)
DRY = click.option("--dry-run", "is_dry", is_flag=True, help="Say what would change, and change nothing.")
KEY = click.argument("key")
ANY_KEY = click.argument("key", required=False)


@click.group("schedule", context_settings=SETTINGS, invoke_without_command=True)
@click.pass_context
def schedule(ctx: click.Context) -> int:
    """List the entries of the schedule, their next and their last times; run, pause or resume one."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return USAGE
    return 0


@schedule.command("list", short_help="List the entries, in the order of the source.", context_settings=SETTINGS)
@as_json
@reaching
def list_entries(wanted: Wanted, is_json: bool) -> None:
    """List the entries of the schedule, in the order of the source.

    STATE: active, paused, or new (no clock has seen it yet: its times count from then on).

    \b
    --json writes one object a line:
      key, rule, tz, call, catch_up, overlap, jitter (seconds),
      next_at, is_seen, paused_at, paused_by, pause_reason
      last   its last time: fire_at, status, reason, attempt_id, decided_at
    """
    with existing(wanted) as app:
        found, now = app.schedule.list(), app.now()
    if is_json:
        for one in found:
            click.echo(json.dumps(_as_data(one)))
        return
    if found:
        print_table(page(), ENTRIES, [_entry_row(one, now) for one in found])
    say(f"{counted(len(found), 'entry', 'entries')}.")


@schedule.command("next", short_help="List the times to come.", context_settings=SETTINGS)
@ANY_KEY
@click.option("--count", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="How many.")
@click.option("--after", type=Moment(), metavar="INSTANT", help="Later than this [default: now].")
@as_json
@reaching
def next_times(wanted: Wanted, is_json: bool, key: str | None, count: int, after: dt.datetime | None) -> None:
    """List the next times of all entries together, or of one, in UTC and in the zone of the entry.

    By the rules alone: when= is not asked, and paused entries are among them.

    --json writes one object a line: key, call, fire_at (UTC), local.
    """
    with existing(wanted) as app:
        found = app.schedule.next(count, key=key, after=after)
    if is_json:
        for one in found:
            click.echo(json.dumps(_as_data(one)))
        return
    if found:
        print_table(page(), TIMES, [_time_row(one) for one in found])
    else:
        say("The schedule has no entries.")


@schedule.command("history", short_help="List the last times, and what became of them.", context_settings=SETTINGS)
@ANY_KEY
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N", help="How many.")
@as_json
@reaching
def history(wanted: Wanted, is_json: bool, key: str | None, limit: int) -> None:
    """List the last times of all entries together, or of one, the newest first: enqueued, skipped or missed, and why.

    Times of more than 30 days ago are forgotten.

    --json writes one object a line: key, fire_at, status, reason, attempt_id, decided_at.
    """
    with existing(wanted) as app:
        found = app.schedule.occurrences(key, limit=limit)
        short = app.attempts.short_ids([one.attempt_id for one in found if one.attempt_id])
    if is_json:
        for one in found:
            click.echo(json.dumps(_as_data(one)))
    elif found:
        print_table(page(), HISTORY, [_history_row(one, short) for one in found])
    else:
        say("No time of the schedule has come yet.")


@schedule.command("run", short_help="Enqueue the call of an entry now.", context_settings=SETTINGS)
@KEY
@DRY
@as_actor
@reaching
def run(wanted: Wanted, key: str, is_dry: bool, actor: str | None) -> None:
    """Enqueue the call of an entry now, whatever its rule, its when= and a pause say. Prints the id of the attempt."""
    with existing(wanted) as app, acting(actor_of(actor)):
        if is_dry:
            say(f"{app.schedule.next(1, key=key)[0].call} would be enqueued.")
        else:
            click.echo(str(app.schedule.run(key)))


@schedule.command("pause", short_help="Skip the times of an entry until it is resumed.", context_settings=SETTINGS)
@KEY
@click.option("--reason", metavar="TEXT", help="Why; `schedule list` shows it.")
@DRY
@as_actor
@reaching
def pause(wanted: Wanted, key: str, reason: str | None, is_dry: bool, actor: str | None) -> None:
    """Skip the times of an entry until it is resumed. Attempts that are enqueued already are performed."""
    with existing(wanted) as app, acting(actor_of(actor)):
        is_new = app.schedule.pause(key, reason=reason, dry_run=is_dry)
    done = "would be paused" if is_dry else "is paused"
    say(f"The entry {key} {done if is_new else 'was paused before'}.")


@schedule.command("resume", short_help="Resume an entry that was paused.", context_settings=SETTINGS)
@KEY
@DRY
@as_actor
@reaching
def resume(wanted: Wanted, key: str, is_dry: bool, actor: str | None) -> None:
    """Resume an entry that was paused: its times count from now on."""
    with existing(wanted) as app, acting(actor_of(actor)):
        was_paused = app.schedule.resume(key, dry_run=is_dry)
    done = "would be resumed" if is_dry else "is resumed"
    say(f"The entry {key} {done if was_paused else 'was not paused'}.")


def _as_data(one: EntryInfo | Upcoming | OccurrenceInfo) -> dict[str, Any]:
    return {field.name: _value(getattr(one, field.name)) for field in dataclasses.fields(one)}


def _value(value: Any) -> Any:
    if isinstance(value, OccurrenceInfo):
        return {name: given for name, given in _as_data(value).items() if name != "key"}
    return value.total_seconds() if isinstance(value, dt.timedelta) else as_json_value(value)


def _entry_row(one: EntryInfo, now: dt.datetime) -> list[Text | str]:
    last = "" if one.last is None else f"{one.last.status} {briefly(one.last.fire_at, now)}"
    following = "never" if one.next_at is None else briefly(one.next_at, now)
    return [one.key, one.rule, one.call, following, last, _state(one)]


def _state(one: EntryInfo) -> str:
    if one.paused_at is None:
        return "active" if one.is_seen else "new"
    by = "" if one.paused_by is None else f" by {one.paused_by}"
    why = "" if one.pause_reason is None else f": {one.pause_reason}"
    return f"paused{by}{why}"


def _time_row(one: Upcoming) -> list[Text | str]:
    local = one.local
    return [one.key, f"{one.fire_at:%Y-%m-%d %H:%M:%S}", f"{local:%a %Y-%m-%d %H:%M:%S}", _zone(local)]


def _zone(local: dt.datetime) -> str:
    """`EDT -04:00`; for a zone without an abbreviation only the latter."""
    name, offset = local.tzname() or "", local.isoformat()[-6:]
    return f"{name} {offset}" if name.isalpha() else offset


def _history_row(one: OccurrenceInfo, short: dict[Any, str]) -> list[Text | str]:
    attempt = "" if one.attempt_id is None else short.get(one.attempt_id, str(one.attempt_id))
    return [one.key, f"{one.fire_at:%Y-%m-%d %H:%M:%S}", one.status, plain(one.reason or ""), attempt]
