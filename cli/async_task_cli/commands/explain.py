"""`async-task explain ID`: everything that keeps an attempt from running, when that changes, and what helps."""

import datetime as dt
import json
from typing import Any

import click
from rich.text import Text

from async_task import Explanation, Reason, UnknownAttempt
from async_task_cli.application import existing
from async_task_cli.faults import Refusal
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.selection import identifier
from async_task_cli.terminal import moment, page, plain, print_sheet, since


@click.command("explain", context_settings=SETTINGS)
@click.argument("attempt_id", metavar="ID", callback=lambda _ctx, _param, text: identifier(text))
@as_json
@reaching
def explain(wanted: Wanted, attempt_id: str, is_json: bool) -> None:
    """Name everything that keeps one attempt from running, when that changes next, and the command that helps.

    ID is the whole id, or at least 4 digits of its end or its begin. What is to be looked at first stands first. Keys,
    targets and arguments are judged by what this process knows, so run it with the workers' application. Ends with 0
    whatever it finds, and with 1 where there is no such attempt.

    \b
    --json writes one object:
      id, call, status, read_at
      reasons  each: kind, words, remedy (a command, or empty),
               until (when it changes by itself; null: not known)
    Fields and kinds may be added, and are not renamed. Kinds: ended, crash_limit, performing, lost, overdue,
    waits_behind, not_due, key_missing, unfit, paused, limited, not_served, unknown_target, suspect, next.
    """
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


def reason_as_data(one: Reason) -> dict[str, Any]:
    """For programs."""
    until = None if one.until is None else one.until.isoformat()
    return {"kind": one.kind, "words": one.words, "remedy": one.remedy, "until": until}


def _print(told: Explanation) -> None:
    console, attempt = page(), told.attempt
    console.print(Text(f"Attempt {attempt.id}", style="bold"))
    print_sheet(console, [("call", plain(attempt.call)), ("status", plain(attempt.status.value))])
    for one in told.reasons:
        console.print()
        print_sheet(console, _lines(one, attempt.read_at))


def _lines(one: Reason, now: dt.datetime) -> list[tuple[str, Text]]:
    until = [] if one.until is None else [("until", plain(f"{moment(one.until)} ({since(one.until, now)})"))]
    remedy = [("do", plain(one.remedy))] if one.remedy else []
    return [("why", plain(one.words)), *until, *remedy]
