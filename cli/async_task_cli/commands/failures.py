"""`async-task failures list | retry`: errors that are alike, and the retry of what failed by them."""

import datetime as dt
import json
import re
from collections.abc import Callable

import click

from async_task import AsyncTask, FailedSet, RetryReport, Status, acting
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.changes import Change, Verb, change_as_data, each, report
from async_task_cli.chosen import confirm
from async_task_cli.columns import print_table
from async_task_cli.faults import UNEXPECTED, USAGE, one_line
from async_task_cli.figures import FAILURE_COLUMNS, failure_rows, failures_as_data
from async_task_cli.moments import Length
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.signals import Stop
from async_task_cli.standard_output import tell
from async_task_cli.terminal import counted, moment, page, say

STOPPING = "async-task: stopping: nothing further is retried"
VERB = "retry"


@click.group("failures", context_settings=SETTINGS, invoke_without_command=True)
@click.pass_context
def failures(ctx: click.Context) -> int:
    """List errors and crashes that are alike, and retry what failed by them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return USAGE
    return 0


@failures.command("list", short_help="List errors that are alike, the most frequent first.", context_settings=SETTINGS)
@as_json
@reaching
def list_failures(wanted: Wanted, is_json: bool) -> None:
    """List errors and crashes that are alike, the most frequent first.

    They are those among the newest 10,000 events, whether they were retried or not. What is alike has one FINGERPRINT:
    target, class of the error, message without numbers, UUIDs and quoted texts, and the innermost functions of your
    own code. Errors that were written before version 6 of the tables have none, and are grouped without functions.
    `crash`: a call killed its process; `loss`: it was lost with its worker. A target is empty where the attempts are no
    longer there.

    \b
    --json writes one object a line:
      target, exception, message, count,
      attempts (to how many it happened), first_at, last_at,
      latest (the id of the last of these attempts),
      fingerprint (null: none)
    Fields may be added, and are not renamed.
    """
    with existing(wanted) as app:
        found, now = app.attempts.failures(), app.now()
    if is_json:
        for one in failures_as_data(found):
            click.echo(json.dumps(one))
        return
    if found.groups:
        print_table(page(), FAILURE_COLUMNS, failure_rows(found, now))
    among = "" if found.is_complete else " among the newest 10,000 events"
    kinds = counted(len(found.groups), "kind")
    say(f"{counted(found.counted, 'error')} of {kinds}{among}." if found.groups else f"No errors{among}.")


def _fingerprint(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{12}", text):
        raise click.BadParameter(f"{text!r} is no fingerprint: `async-task failures list` prints them")
    return text


@failures.command("retry", short_help="Retry the attempts that failed by one error.", context_settings=SETTINGS)
@click.argument("fingerprint", callback=_fingerprint)
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the attempts' events.")
@click.option(
    "--first", type=click.IntRange(min=1), metavar="N", help="Retry N, and the others only if all of these succeed."
)
@click.option(
    "--wait", type=Length(), default="10min", show_default=True, metavar="DURATION", help="For how long to await the N."
)
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Show what would be retried, and change nothing.")
@as_actor
@as_json
@reaching
def retry(
    wanted: Wanted, fingerprint: str, reason: str, first: int | None, wait: dt.timedelta, is_sure: bool, is_dry: bool,
    actor: str | None, is_json: bool,
) -> int:  # fmt: skip
    """Retry the attempts that failed for good, and whose last error has this fingerprint.

    They are read once, and counted, before it asks: what fails later is not among them. They are made due, the oldest
    first, each in a transaction of its own and in its place in its order key. It stops when an error of this
    fingerprint returns, of whatever attempt. With --first, workers must run: it waits until these attempts have ended.

    A run that was stopped can be repeated: it retries those that are still failed. Ends with 0 when all were retried,
    with 1 when one was refused (somebody changed it meanwhile) or the rest was left because an error came, and with 130
    or 143 after a signal.

    --json as with `retry`: one object a line for each attempt.
    """
    with existing(wanted) as app, acting(actor_of(actor)):
        failed = app.attempts.failed_by(fingerprint)
        say(_found(failed))
        if not failed.ids or is_dry:
            verb = Verb(VERB, "retry_now", Status.PENDING, "pending, due now", {"reason": reason})
            return report(VERB, each(app, verb, failed.ids, is_dry=True), is_dry=True, is_json=is_json)
        if not is_sure:
            some = f", the first {first:,} of them first" if first is not None and first < len(failed.ids) else ""
            confirm(f"{VERB} {counted(len(failed.ids), 'attempt')}{some}")
        return _retry(app, failed, reason, first, wait, is_json=is_json)


def _found(failed: FailedSet) -> str:
    more = "" if failed.is_complete else ", among the oldest 100,000 of its errors"
    number = counted(len(failed.ids), "attempt") if failed.ids else "No attempt"
    return f"{number} failed with {failed.fingerprint} until {moment(failed.cutoff)}{more}."


def _retry(
    app: AsyncTask, failed: FailedSet, reason: str, first: int | None, wait: dt.timedelta, *, is_json: bool
) -> int:
    with Stop(STOPPING).listening() as stop:
        done = app.retry_failures(
            failed, reason=reason, first=first, wait=wait,
            progress=_printing(is_json=is_json), stop=stop.event,
        )  # fmt: skip
    refused = f", {done.refused:,} refused" if done.refused else ""
    left = f", {done.left:,} left" if done.left else ""
    say(f"{VERB}: {done.retried:,} done{refused}{left}{_WHY[done.end]}.")
    if stop.exit_code is not None:
        return stop.exit_code
    return UNEXPECTED if done.refused or done.left else 0


_WHY = {
    "done": "",
    "returned": ": an error of this fingerprint came again",
    "canary": ": one of those that were tried first has not succeeded",
    "late": ": those that were tried first have not ended in time",
    "stopped": "",
}


def _printing(*, is_json: bool) -> Callable[[RetryReport], None]:
    def printed(so_far: RetryReport) -> None:
        if so_far.is_waiting:
            say(f"Waiting until {counted(so_far.retried, 'attempt has', 'attempts have')} ended.")
            return
        assert so_far.attempt_id is not None
        is_done, why = so_far.why_refused is None, so_far.why_refused or "pending, due now"
        change = Change(so_far.attempt_id, is_done, Status.PENDING if is_done else None, why)
        if is_json:
            tell(json.dumps(change_as_data(VERB, change, is_dry=False)))
        elif is_done:
            tell(f"{change.attempt_id}  {why}")
        if not is_done:
            say(f"async-task: {one_line(why)}")

    return printed
