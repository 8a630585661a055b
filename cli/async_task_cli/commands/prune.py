"""`async-task prune`."""

import dataclasses
import datetime as dt
import json
import time
from collections.abc import Callable
from typing import Any

import click

from async_task import PruneReport, Status
from async_task_cli.application import existing
from async_task_cli.faults import UNEXPECTED, one_line
from async_task_cli.moments import Length
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.selection import State, naming
from async_task_cli.signals import Stop
from async_task_cli.terminal import counted, is_watched, say

SHOWN = 10
ENDED = [one.value for one in Status if one.is_terminal]
STOPPING = "async-task: stopping after this page; what is deleted stays so"


@click.command("prune", context_settings=SETTINGS)
@click.option("--older-than", type=Length(), metavar="AGE", help="Only what ended longer ago: 12h, 30d, 1y.")
@click.option(
    "--status", "statuses", type=State(ENDED), multiple=True,
    help="Only in these; may be repeated [default: all but failed].",
)  # fmt: skip
@click.option("--target", metavar="NAME", help="Only of this target, or of this call, as `list` prints it.")
@click.option("--queue", metavar="NAME", help="Only in this queue.")
@click.option("--keep-events", is_flag=True, help="Leave what happened to them.")
@click.option(
    "--keep-tokens", type=Length(), metavar="AGE",
    help="How long tokens are remembered [default: as the application says, else for ever].",
)  # fmt: skip
@click.option(
    "--page",
    type=click.IntRange(1, 1_000_000),
    default=500,
    show_default=True,
    metavar="N",
    help="Rows in a transaction.",
)
@click.option("--dry-run", "is_dry", is_flag=True, help="Only count them.")
@as_json
@reaching
def prune(
    wanted: Wanted, older_than: dt.timedelta | None, statuses: tuple[str, ...], target: str | None, queue: str | None,
    keep_events: bool, keep_tokens: dt.timedelta | None, page: int, is_dry: bool, is_json: bool,
) -> int:  # fmt: skip
    """Delete attempts that ended long ago, with their events.

    Of an attempt with an idempotence token the token, the status and the times stay, for as long as tokens are
    remembered. What failed is only deleted with --status failed. Without --older-than, everything is kept for as long
    as the application and its targets say (keep=).

    Runs beside workers and people, waits for nobody, and may be interrupted and run again. Prints nothing without a
    terminal. Attempts that the database refuses to delete are named, and it ends with 1.

    --json writes one object: deleted, emptied, events, left (locked by others), seconds, dry_run, and refused, a list
    of id and reason.
    """
    with existing(wanted) as app, Stop(STOPPING).listening() as stop:
        if older_than is None and (statuses or target is not None or queue is not None or not app.keeps):
            raise click.UsageError("how old? --older-than 30d deletes what ended longer ago than 30 days")
        with naming():
            report = app.prune(
                older_than, statuses=statuses or None, target=target, queue=queue, keep_events=keep_events,
                keep_tokens=keep_tokens, page=page, dry_run=is_dry, stop=stop.event,
                tell=_progress(is_dry=is_dry) if is_watched() and not is_json else None,
            )  # fmt: skip
    if is_json:
        click.echo(json.dumps(_as_data(report, is_dry=is_dry)))
    elif is_watched() or is_dry or report.refused:
        _say(report, is_dry=is_dry)
    if stop.exit_code is not None:
        return stop.exit_code
    return UNEXPECTED if report.refused else 0


def _as_data(report: PruneReport, *, is_dry: bool) -> dict[str, Any]:
    refused = [{"id": str(one), "reason": one_line(reason)} for one, reason in report.refused.items()]
    return {**dataclasses.asdict(report), "seconds": round(report.seconds, 3), "refused": refused, "dry_run": is_dry}


def _say(report: PruneReport, *, is_dry: bool) -> None:
    be = "would be " if is_dry else ""
    said = [f"{counted(report.deleted, 'attempt')} {be}deleted, with {counted(report.events, 'event')}"]
    if report.emptied:
        said.append(f"{report.emptied:,} {be}emptied, for their tokens are remembered")
    if report.left:
        said.append(f"{report.left:,} left to the next run, for others had locked them")
    if report.refused:
        said.append(f"{len(report.refused):,} cannot be deleted")
    say("; ".join(said) + ("." if is_dry else f"; {report.seconds:.1f} s."))
    for one, reason in list(report.refused.items())[:SHOWN]:
        say(f"{one}: {one_line(reason)}")
    if len(report.refused) > SHOWN:
        say(f"and {len(report.refused) - SHOWN:,} more: --json names all")


def _progress(*, is_dry: bool) -> Callable[[int], None]:
    """A line on the terminal after the first second, and then each second."""
    printed = time.monotonic()

    def tell(number: int) -> None:
        nonlocal printed
        if time.monotonic() - printed > 1:
            printed = time.monotonic()
            say(f"{number:,} {'counted' if is_dry else 'pruned'} so far")

    return tell
