"""`async-task run-batch`."""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from async_task import MOST_COUNTED, AsyncTask, BatchPreview, BatchReport, FinalFailureGroup, Status
from async_task_cli.application import existing
from async_task_cli.columns import Column, print_table
from async_task_cli.faults import NO_TIME_LEFT, SOME_FAILED, one_line
from async_task_cli.fields import as_json_value
from async_task_cli.logs import without_final_failures
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.progress import Bar
from async_task_cli.queue_names import warn_of_unknown
from async_task_cli.signals import INTERRUPTED, Stop, end
from async_task_cli.terminal import counted, is_watched, page, plain, print_sheet, say

PREVIEW_COLUMNS = Column("QUEUE", shortest=12), Column("TARGET", shortest=12), Column("DUE", is_number=True)
STOPPING = "async-task: stopping: finishing running calls; a second signal abandons them"


class Name(click.ParamType):  # type: ignore[type-arg]
    """The name of a queue or a target. An empty one comes from a variable that was not set."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value) or self.fail("a name has at least one character", param, ctx)


class Seconds(click.FloatRange):
    """A length of time."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        return seconds if math.isfinite(seconds) else self.fail(f"{value} is not a length of time", param, ctx)


@click.command("run-batch", context_settings=SETTINGS)
@click.option(
    "--limit", type=click.IntRange(min=0), metavar="N", help="At most N attempts [default: all that are due]."
)
@click.option(
    "--max-seconds",
    type=Seconds(min=0),
    metavar="S",
    help="Start no attempt later than S seconds after the begin; end with 75 if any that are due are left.",
)
@click.option("--queue", "queues", type=Name(), metavar="NAME", multiple=True, help="Only this queue; may be repeated.")
@click.option(
    "--target",
    "targets",
    type=Name(),
    metavar="NAME",
    multiple=True,
    help="Only calls of this target, by one of its names; may be repeated.",
)
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=4, show_default=True, metavar="N", help="Calls at a time."
)
@click.option(
    "--overlap",
    type=click.Choice(["allow", "skip", "fail"]),
    default="allow",
    show_default=True,
    help="While another run-batch is running on these attempts, on any machine: share the work with it, do nothing, "
    "or do nothing and end with 75.",
)
@click.option("--fail-on", type=click.Choice(["failed"]), help="End with 3 if any attempt failed for good.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Show what is due, and do nothing.")
@as_json
@reaching
def run_batch(wanted: Wanted, is_dry: bool, is_json: bool, fail_on: str | None, **options: Any) -> int:
    """Recover, expire, then perform all calls that were due when it began, once, and end.

    Made for cron: it prints nothing when all went well and there is no terminal. A call that will be retried is not a
    failure. Calls that failed for good or expired are printed on standard error, one line for those that ended alike.
    After SIGINT or SIGTERM no call is started, and running calls are finished. Recovery and expiry are for
    all queues and targets, whichever are named.

    \b
    --json writes one object:
      claimed     attempts that were started; they ended as:
      succeeded, retried (pending, due later), failed, expired, canceled,
      parked      (not the call's fault, nothing charged),
      superseded  (another process claimed or changed it)
      expired     includes those that the sweep before expired
      recovered   attempts whose process died, released by that sweep
      seconds     how long it took
      left        due and not started for lack of time; 10000: or more
      paused      queues with waiting attempts, left out because paused
      unknown     due and left to other processes, because this one does
                  not know their target, method or key; 10000: or more
      failures    final failures in groups: [{call, status, reason, count,
                  latest: the attempt of the last one}]
      overlapped  null, or the other run because of which it did nothing:
                  {worker, host, pid, started_at}
    With --dry-run:
      dry_run     true
      due         attempts that are due now
      calls       [{queue, target, due, unperformable, problems: []}]
                  unperformable: not by this process, as problems say
      to_recover, to_expire
      paused      the names of the queues that are paused
      overlapped  null, or the other run that is running now
    Fields may be added, and are not renamed.
    """
    with existing(wanted) as app:
        if is_dry or is_watched():  # not to cron: a queue may be empty for long
            warn_of_unknown(app, options["queues"])
        return _preview(app, is_json=is_json, **options) if is_dry else _run(app, is_json, fail_on, **options)


def _run(app: AsyncTask, is_json: bool, fail_on: str | None, **options: Any) -> int:
    with Stop(STOPPING, abandons=True).listening() as stop, _progress() as progress, without_final_failures():
        try:
            report = app.run_batch(stop=stop.event, progress=progress, **options)
        except KeyboardInterrupt:
            return end(stop.exit_code or INTERRUPTED)
    for one in report.failures:
        say(f"async-task: {one_line(failure_words(one))}")
    if is_json:
        click.echo(json.dumps(as_data(report)))
    elif report.overlapped is None and (is_watched() or stop.exit_code is not None):
        say(figures(report))
    elif is_watched():
        say(f"Nothing was done: another batch is running: {report.overlapped}.")
    if stop.exit_code is not None:
        return stop.exit_code
    if report.left:
        say(f"async-task: no time left: {_left(report.left)} due and not started")
    if fail_on and report.failed:
        return SOME_FAILED
    return NO_TIME_LEFT if report.left else 0


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[BatchReport], None] | None]:
    """A progress bar on a terminal, else nothing. What targets print goes to standard error, apart from the report."""
    with contextlib.redirect_stdout(sys.stderr):
        if not is_watched():
            yield None
            return
        with Bar() as bar:
            yield bar


def as_data(report: BatchReport | BatchPreview) -> dict[str, Any]:
    """The report for JSON."""
    data = dataclasses.asdict(report)
    if report.overlapped is not None:
        data["overlapped"]["started_at"] = as_json_value(report.overlapped.started_at)
    if isinstance(report, BatchReport):
        data["seconds"] = round(report.seconds, 3)
        data["failures"] = [one | {"latest": str(one["latest"])} for one in data["failures"]]
    return data


def failure_words(group: FinalFailureGroup) -> str:
    """`12 calls of shop.orders.fulfill failed for good: ConnectionError: refused (the last one: attempt 0192...)`."""
    ended = "failed for good" if group.status is Status.FAILED else "expired"
    attempt = f"attempt {group.latest}" if group.count == 1 else f"the last one: attempt {group.latest}"
    return f"{counted(group.count, 'call')} of {group.call} {ended}: {group.reason} ({attempt})"


def figures(report: BatchReport) -> str:
    """One line for people: `12 attempts in 0.4 s: 10 succeeded, 2 to be retried; 1 recovered.`"""
    ended = _listed(
        (report.succeeded, "succeeded"), (report.retried, "to be retried"), (report.failed, "failed"),
        (report.canceled, "canceled"), (report.parked, "parked"), (report.superseded, "taken over by other processes"),
    )  # fmt: skip
    swept = _listed((report.expired, "expired"), (report.recovered, "recovered"))
    swept = "; ".join(part for part in (swept, _left_out(report.paused), _unknown(report.unknown)) if part)
    if not report.claimed:
        begun = "Nothing was started" if report.left or report.paused or report.unknown else "Nothing was due"
        return "; ".join(part for part in (begun, swept) if part) + "."
    made = ": ".join(
        part for part in (f"{counted(report.claimed, 'attempt')} in {report.seconds:.1f} s", ended) if part
    )
    return "; ".join(part for part in (made, swept) if part) + "."


def _left_out(paused: int) -> str:
    return f"{counted(paused, 'queue is', 'queues are')} paused, and left out" if paused else ""


def _unknown(number: int) -> str:
    if not number:
        return ""
    return f"{_left(number)} of targets, methods or keys that this process does not know left to other processes"


def _listed(*numbers: tuple[int, str]) -> str:
    return ", ".join(f"{number:,} {words}" for number, words in numbers if number)


def _left(left: int) -> str:
    return f"{left:,} or more attempts are" if left >= MOST_COUNTED else counted(left, "attempt is", "attempts are")


def _preview(
    app: AsyncTask, *, is_json: bool, limit: int | None, queues: tuple[str, ...], targets: tuple[str, ...], **_: Any
) -> int:
    found = app.preview_batch(queues=queues, targets=targets)
    if is_json:
        click.echo(json.dumps({"dry_run": True, **as_data(found)}))
        return 0
    console = page()
    if found.calls:
        print_table(console, PREVIEW_COLUMNS, [(one.queue, one.target, f"{one.due:,}") for one in found.calls])
    for one in found.calls:
        for problem in one.problems:
            hindered = (
                f"{counted(one.unperformable, 'attempt')} of {one.target} in {one.queue} cannot be performed here"
            )
            print_sheet(console, [("!", plain(f"{hindered}: {problem}"))], indent=0)
    for sentence in _expectations(found, limit):
        console.print(plain(sentence), soft_wrap=True)
    return 0


def _expectations(found: BatchPreview, limit: int | None) -> Iterator[str]:
    due = f"{counted(found.due, 'attempt is', 'attempts are')} due" if found.due else "Nothing is due"
    yield f"{due}; a run with this limit starts {limit:,} of them." if _cuts(limit, found.due) else f"{due}."
    swept = _listed((found.to_recover, "would be recovered, and then be due"), (found.to_expire, "would expire"))
    if swept:
        yield f"Before that, {swept}."
    if found.paused:
        yield f"Left out because paused: {', '.join(found.paused)}."
    if found.overlapped is not None:
        yield f"Another batch is running: {found.overlapped}."
    yield "Nothing was done: this is a dry run."


def _cuts(limit: int | None, due: int) -> bool:
    return limit is not None and limit < due
