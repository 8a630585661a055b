"""`async-task explain ID`: everything that keeps a job from running, when that changes, and what helps."""

import json
from typing import Any

import click
from rich.text import Text

from async_task import Explanation, UnknownAttempt
from async_task_cli.application import existing
from async_task_cli.commands.job import say_reasons
from async_task_cli.faults import Refusal
from async_task_cli.options import SETTINGS, Wanted, as_json, of_model, reaching
from async_task_cli.reason_lines import print_reasons, reason_as_data
from async_task_cli.selection import identifier
from async_task_cli.terminal import page, plain, print_sheet


@click.command("explain", context_settings=SETTINGS)
@click.argument("key", metavar="ID")
@of_model
@as_json
@reaching
def explain(wanted: Wanted, key: str, model: str | None, is_json: bool) -> None:
    """Name everything that keeps one job from running, when that changes next, and the command that helps.

    ID is the whole id, or at least 4 digits of its end or its begin. What is to be looked at first stands first. Keys,
    targets and arguments are judged by what this process knows, so run it with the workers' application. Ends with 0
    whatever it finds, and with 1 where there is no such job.

    With --model, ID is the primary key of a row of that model, with a comma between the values of several columns. The
    reasons of the row come first, and then those of its attempt.

    \b
    --json writes one object:
      id, call, status, read_at
      reasons  each: kind, words, remedy (a command, or empty),
               until (when it changes by itself; null: not known)
    With --model: model, job_type, key, state, submitted_at, last_submitted_at, attempted_at, processed_at,
    canceled_at, error, user, read_at, attempt (its id), refused (by verb, why; or null), reasons.
    Fields and kinds may be added, and are not renamed. Kinds: ended, crash_limit, performing, lost, overdue,
    waits_behind, not_due, key_missing, unfit, paused, limited, not_served, unknown_target, suspect, next; of rows
    processed, canceled, not_submitted, delayed, window_over, no_attempt.
    """
    if model is not None:
        with existing(wanted) as app:
            say_reasons(app, model, key, is_json=is_json)
        return
    attempt_id = identifier(key)
    with existing(wanted) as app:
        try:
            told = app.attempts.explain(attempt_id)
        except UnknownAttempt as error:
            raise Refusal(f"{error} (looked in {app.address}; `async-task list` prints the ids)") from None
    if is_json:
        click.echo(json.dumps(_as_data(told)))
    else:
        _print(told)


def _as_data(told: Explanation) -> dict[str, Any]:
    attempt = told.attempt
    return {
        "id": str(attempt.id), "call": attempt.call, "status": attempt.status, "read_at": attempt.read_at.isoformat(),
        "reasons": [reason_as_data(one) for one in told.reasons],
    }  # fmt: skip


def _print(told: Explanation) -> None:
    console, attempt = page(), told.attempt
    console.print(Text(f"Attempt {attempt.id}", style="bold"))
    print_sheet(console, [("call", plain(attempt.call)), ("status", plain(attempt.status.value))])
    print_reasons(console, told.reasons, attempt.read_at)
