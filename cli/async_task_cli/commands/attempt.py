"""`async-task show ID`: one job, all its fields in plain words, and everything that happened to it."""

import datetime as dt
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text

from async_task import (
    AsyncTask,
    AttemptInfo,
    EventInfo,
    NoteInfo,
    Reason,
    ShownArguments,
    Status,
    UnknownAttempt,
)
from async_task_cli.application import existing
from async_task_cli.commands.job import say_job, say_job_history
from async_task_cli.faults import Refusal
from async_task_cli.fields import SHOWN, as_json_value
from async_task_cli.history import BRIEF_NOTES, NOTE, as_data, events_in_order, print_events, print_newest_notes
from async_task_cli.options import SETTINGS, Wanted, as_json, of_model, reaching
from async_task_cli.reason_lines import reason_as_data
from async_task_cli.selection import id_of, identifier
from async_task_cli.terminal import coloured, counted, moment, page, plain, print_sheet, since

HIDDEN = "[hidden]"
SAID_BY_STATUS = ("ended", "performing")
"""Reasons that the line of the status tells already."""


@dataclass(frozen=True, slots=True)
class Found:
    """An attempt, why it is not performed now, what may be shown of its arguments, everything that happened to it, in
    order, and its newest notes."""

    attempt: AttemptInfo
    reasons: Sequence[Reason]
    arguments: ShownArguments
    events: Sequence[EventInfo]
    notes: Sequence[NoteInfo]


@click.command("show", context_settings=SETTINGS)
@click.argument("key", metavar="ID")
@of_model
@click.option("--history", "is_history", is_flag=True, help="Only what happened to it, with all notes in full.")
@click.option("--traceback", "has_traces", is_flag=True, help="Also the stored tracebacks of errors.")
@as_json
@reaching
def show(
    wanted: Wanted, key: str, model: str | None, is_history: bool, has_traces: bool, is_json: bool
) -> None:  # fmt: skip
    """Show one job: what it is, what blocks it, its arguments, its newest notes, and what happened to it.

    ID is the whole id, or at least 4 digits of its end or its begin. What is empty is left out; --json has all fields.
    The line "blocked" says what keeps it from running, in the words of `async-task explain`, which also says when that
    changes, and what helps.

    Encrypted arguments are not decrypted, and those that the target redacts are not shown.

    --history prints all events, the first one first: tries with their errors, who did what, why, and what that changed,
    and notes in full. With the whole id it also finds the notes on an attempt that was pruned. With --json it prints an
    object a line: created_at, kind, num_attempt, actor, message, before and after.

    With --model, ID is the primary key of a row of that model, with a comma between the values of several columns. It
    shows the row with its state, its reasons, its last attempt, and which of its verbs are refused; --history prints
    the events of the row and then those of its last attempt. In JSON, an event of the attempt has its id as attempt.
    """
    if model is not None:
        say = say_job_history if is_history else say_job
        with existing(wanted) as app:
            say(app, model, key, has_traces=has_traces, is_json=is_json)
        return
    attempt_id = identifier(key)
    with existing(wanted) as app:
        try:
            found = _history(app, attempt_id) if is_history else _found(app, attempt_id)
        except UnknownAttempt as error:
            raise Refusal(f"{error} (looked in {app.address}; `async-task list` prints the ids)") from None
    if isinstance(found, Found):
        _say(found, has_traces=has_traces, is_json=is_json)
    else:
        _say_history(*found, has_traces=has_traces, is_json=is_json)


def _found(app: AsyncTask, attempt_id: str) -> Found:
    told = app.attempts.explain(attempt_id)
    attempt = told.attempt
    arguments, notes = app.attempts.arguments(attempt.id), app.attempts.notes(attempt.id, limit=BRIEF_NOTES + 1)
    return Found(attempt, told.reasons, arguments, list(events_in_order(app, attempt.id)), notes)


def _history(app: AsyncTask, attempt_id: str) -> tuple[uuid.UUID, Sequence[EventInfo]]:
    """The events of an attempt. Raises UnknownAttempt if there is none, and no note of it."""
    whole = id_of(app, attempt_id)
    events = list(events_in_order(app, whole))
    return whole if events else app.attempts.get(whole).id, events


def _say(found: Found, *, has_traces: bool, is_json: bool) -> None:
    if is_json:
        click.echo(json.dumps(_as_data(found, has_traces=has_traces)))
    else:
        _print(found, has_traces=has_traces)


def _say_history(attempt_id: uuid.UUID, events: Sequence[EventInfo], *, has_traces: bool, is_json: bool) -> None:
    if is_json:
        for event in events:
            click.echo(json.dumps(as_data(event, has_trace=has_traces)))
        return
    console = page()
    console.print(Text(f"History of attempt {attempt_id}{'' if events else ': none'}", style="bold"))
    print_events(console, events, has_traces=has_traces)


def _as_data(found: Found, *, has_traces: bool) -> dict[str, Any]:
    fields = {name: getattr(found.attempt, name) for name in SHOWN} | dict(found.attempt.extra)
    return {
        **{name: as_json_value(value) for name, value in fields.items()},
        "method_args": found.arguments.stored,
        "waits_behind": as_json_value(found.attempt.waits_behind),
        **_about(found.arguments),
        "reasons": [reason_as_data(one) for one in found.reasons],
        "events": [as_data(event, has_trace=has_traces) for event in found.events],
    }


def _about(arguments: ShownArguments) -> dict[str, Any]:
    """Why there are no arguments to show; empty if there are."""
    if arguments.problem is not None:
        return {"method_args_problem": arguments.problem, "stored_length": arguments.length}
    return {"encrypted_length": arguments.length} if arguments.stored is None else {}


def _print(found: Found, *, has_traces: bool) -> None:
    console = page()
    console.print(Text(f"Attempt {found.attempt.id}", style="bold"))
    print_sheet(console, list(_lines(found)))
    print_newest_notes(console, found.notes, found.attempt.read_at, found.attempt.id)
    events = [event for event in found.events if event.kind != NOTE]
    console.print(Text("Events" if events else "Events: none", style="bold"))
    print_events(console, events, has_traces=has_traces)


def _lines(found: Found) -> Iterator[tuple[str, Text]]:
    """The fields in the order in which one asks for them, without empty ones."""
    attempt = found.attempt
    now = attempt.read_at
    yield "call", plain(attempt.call)
    yield "status", _status(attempt)
    if blocks := [one.words for one in found.reasons if one.kind not in SAID_BY_STATUS]:
        yield "blocked" if found.reasons[-1].kind != "next" else "next", plain("\n".join(blocks))
    yield from _arguments(found.arguments)
    yield "time", plain(_time(attempt))
    if attempt.last_error:
        yield "last error", plain(attempt.last_error)
    if attempt.status is Status.PENDING:
        if attempt.scheduled_at is not None:
            yield "asked for", plain(_at(attempt.scheduled_at, now))
        if attempt.claim_id is None:
            yield "due", plain(_at(attempt.due_at, now))
    if attempt.expires_at is not None:
        yield "expires", plain(_at(attempt.expires_at, now))
    yield "queue", plain(f"{attempt.queue}, priority {attempt.priority} (0 first, 9 last)")
    if attempt.claim_id is not None:
        yield "claimed by", plain(_claim(attempt))
    yield from _given(attempt)


def _given(attempt: AttemptInfo) -> Iterator[tuple[str, Text]]:
    """What its caller gave beside the call."""
    for name, words in attempt.own_rules.items():
        yield name, plain(f"{words} (its own)")
    if attempt.idempotence_token is not None:
        yield "token", plain(attempt.idempotence_token)
    if attempt.order_key is not None:
        yield "order", plain(_order(attempt))
    if attempt.trace_context is not None:
        yield "trace", plain(attempt.trace_context)
    for name, value in attempt.extra.items():
        if value is not None:
            yield name, plain(repr(value))


def _time(attempt: AttemptInfo) -> str:
    """`created 2026-10-25 02:30:00 UTC (2 h ago), 2 tries, 1 error, the last 5 min ago, succeeded ... (5 min ago)`."""
    now, parts = attempt.read_at, [f"created {_at(attempt.created_at, attempt.read_at)}", _tries(attempt)]
    if attempt.attempted_at is not None and (attempt.completed_at is None or attempt.status is not Status.SUCCEEDED):
        parts.append(f"the last began {since(attempt.attempted_at, now)}")
    if attempt.completed_at is not None:
        parts.append(f"{attempt.status.value} {_at(attempt.completed_at, now)}")
    return ", ".join(parts)


def _status(attempt: AttemptInfo) -> Text:
    if attempt.status is not Status.PENDING:
        return coloured(attempt.status.value)
    if attempt.is_performing:
        return coloured("pending") + Text(", being performed")
    if attempt.waits_behind is not None:
        return coloured("pending") + Text(f", waits behind {attempt.waits_behind}")
    due = "due" if attempt.due_at <= attempt.read_at else f"due {since(attempt.due_at, attempt.read_at)}"
    return coloured("pending") + Text(f", {due}")


def _arguments(arguments: ShownArguments) -> Iterator[tuple[str, Text]]:
    if arguments.problem is not None:
        yield "arguments", plain(f"{arguments.problem} ({counted(arguments.length, 'character')})")
        return
    if arguments.values is None:
        yield "arguments", plain(f"encrypted by {arguments.encryptor!r}, {counted(arguments.length, 'character')}")
        return
    lines = [f"{name} = {value if value == HIDDEN else repr(value)}" for name, value in arguments.values.items()]
    if arguments.why_hidden:
        lines.append(f"({HIDDEN} {arguments.why_hidden})")
    yield "arguments", plain("\n".join(lines) or "none")


def _tries(attempt: AttemptInfo) -> str:
    errors = f", {counted(attempt.num_errors, 'error')}" if attempt.num_errors else ""
    crashes = f", {counted(attempt.num_crashes, 'start')} that killed its process" if attempt.num_crashes else ""
    losses = f", {counted(attempt.num_losses, 'start')} lost with a worker" if attempt.num_losses else ""
    most = f" of at most {attempt.max_attempts:,}" if attempt.max_attempts is not None and errors else ""
    return f"{counted(attempt.num_attempts, 'try', 'tries')}{errors}{most}{crashes}{losses}"


def _claim(attempt: AttemptInfo) -> str:
    assert attempt.lease_until is not None
    return f"{attempt.claimed_by}, lease until {_at(attempt.lease_until, attempt.read_at)}, claim {attempt.claim_id}"


def _order(attempt: AttemptInfo) -> str:
    behind = attempt.waits_behind
    turn = "released" if attempt.released else "waits for its turn" if behind is None else f"waits behind {behind}"
    return f"key {attempt.order_key}, number {attempt.seq}, {turn}"


def _at(when: dt.datetime, now: dt.datetime) -> str:
    return f"{moment(when)} ({since(when, now)})"
