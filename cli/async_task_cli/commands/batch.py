"""`async-task run-batch`."""

import contextlib
import dataclasses
import json
import sys

import click

from async_task import BatchReport
from async_task_cli.application import existing
from async_task_cli.faults import SOME_FAILED
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.signals import Stop
from async_task_cli.terminal import counted, is_watched, say

STOPPING = "async-task: stopping: what is in hand is being finished; a second signal abandons it"


@click.command("run-batch", context_settings=SETTINGS)
@click.option(
    "--limit", type=click.IntRange(min=0), metavar="N", help="At most so many attempts; all that are due unless said."
)
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=4, show_default=True, metavar="N", help="Calls at a time."
)
@click.option("--fail-on", type=click.Choice(["failed"]), help="End with 3 if any attempt failed for good.")
@as_json
@reaching
def run_batch(wanted: Wanted, limit: int | None, concurrency: int, fail_on: str | None, is_json: bool) -> int:
    """Recover, expire, then make all calls that were due when it began, once, and end.

    Made for cron: it says nothing when all went well and nobody watches. Calls that failed and will be tried again are
    no failure. SIGINT or SIGTERM: nothing further is started, what is in hand is finished.
    """
    # What targets print is words, and the report is data.
    with existing(wanted) as app, Stop(STOPPING).listening() as stop, contextlib.redirect_stdout(sys.stderr):
        report = app.run_batch(limit, concurrency=concurrency, stop=stop.event)
    if is_json:
        click.echo(json.dumps({**dataclasses.asdict(report), "seconds": round(report.seconds, 3)}))
    elif is_watched() or stop.exit_code is not None:
        say(figures(report))
    if stop.exit_code is not None:
        return stop.exit_code
    return SOME_FAILED if fail_on and report.failed + report.crashed else 0


def figures(report: BatchReport) -> str:
    """One line for people: `12 attempts in 0.4 s: 10 succeeded, 2 to be retried; 1 recovered.`"""
    ended = _listed(
        (report.succeeded, "succeeded"), (report.retried, "to be retried"), (report.failed, "failed"),
        (report.canceled, "canceled"), (report.parked, "parked"), (report.superseded, "taken over by others"),
    )  # fmt: skip
    swept = _listed(
        (report.expired, "expired"), (report.recovered, "recovered"), (report.crashed, "failed at the crash limit")
    )
    if not report.claimed:
        return "; ".join(part for part in ("Nothing was due", swept) if part) + "."
    made = ": ".join(
        part for part in (f"{counted(report.claimed, 'attempt')} in {report.seconds:.1f} s", ended) if part
    )
    return "; ".join(part for part in (made, swept) if part) + "."


def _listed(*numbers: tuple[int, str]) -> str:
    return ", ".join(f"{number:,} {words}" for number, words in numbers if number)
