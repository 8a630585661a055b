"""`async-task rotate-keys`."""

import json
import time
from collections.abc import Callable

import click

from async_task import RotationReport
from async_task_cli.application import existing
from async_task_cli.faults import NO_TIME_LEFT, UNEXPECTED
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.signals import Stop
from async_task_cli.terminal import counted, is_watched, say

SHOWN = 10
STOPPING = "async-task: stopping after this page; what is rotated stays so"


@click.command("rotate-keys", context_settings=SETTINGS)
@click.option(
    "--page",
    type=click.IntRange(1, 1_000_000),
    default=500,
    show_default=True,
    metavar="N",
    help="Rows in a transaction.",
)
@click.option("--from", "encryptor", metavar="NAME", help="Only attempts under this encryptor.")
@click.option("--pending-only", is_flag=True, help="Leave ended attempts under their old keys.")
@click.option("--to-policy", is_flag=True, help="Also attempts whose target names another encryptor now.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@as_json
@reaching
def rotate_keys(
    wanted: Wanted, page: int, encryptor: str | None, pending_only: bool, to_policy: bool, dry_run: bool, is_json: bool
) -> int:
    """Encrypt again, under the first key of its encryptor, what is under another key.

    Runs beside workers and people, waits for nobody, and may be interrupted and run again. Attempts that cannot be
    decrypted or encrypted are named and left as they are, and it ends with 1. It ends with 75 when some attempts were
    locked all the time: run it again.

    --json writes one object: rotated, left (still under an old key), seconds, and unreadable, a list of id and reason.
    """
    with existing(wanted) as app, Stop(STOPPING).listening() as stop:
        report = app.rotate_keys(
            page=page, encryptor=encryptor, pending_only=pending_only, to_policy=to_policy, dry_run=dry_run,
            stop=stop.event, tell=_progress() if is_watched() and not is_json else None,
        )  # fmt: skip
    if is_json:
        click.echo(json.dumps(_as_data(report)))
    elif is_watched() or dry_run or report.left or report.unreadable:
        _say(report, dry_run=dry_run)
    if stop.exit_code is not None:
        return stop.exit_code
    if report.unreadable:
        return UNEXPECTED
    return NO_TIME_LEFT if report.left and not dry_run else 0


def _as_data(report: RotationReport) -> dict[str, object]:
    unreadable = [{"id": str(one), "reason": reason} for one, reason in report.unreadable.items()]
    numbers = {"rotated": report.rotated, "left": report.left, "seconds": round(report.seconds, 3)}
    return {**numbers, "unreadable": unreadable}


def _say(report: RotationReport, *, dry_run: bool) -> None:
    if dry_run:
        say(f"{counted(report.left, 'attempt')} would be rotated.")
        return
    left = f"; {report.left:,} left: run it again" if report.left else ""
    unreadable = f"; {len(report.unreadable):,} cannot be rotated" if report.unreadable else ""
    say(f"{counted(report.rotated, 'attempt')} rotated in {report.seconds:.1f} s{left}{unreadable}.")
    for one, reason in list(report.unreadable.items())[:SHOWN]:
        say(f"{one}: {reason}")
    if len(report.unreadable) > SHOWN:
        say(f"and {len(report.unreadable) - SHOWN:,} more: --json names all")


def _progress() -> Callable[[int], None]:
    """A line on the terminal after the first second, and then each second."""
    printed = time.monotonic()

    def tell(rotated: int) -> None:
        nonlocal printed
        if time.monotonic() - printed > 1:
            printed = time.monotonic()
            say(f"{rotated:,} rotated so far")

    return tell
