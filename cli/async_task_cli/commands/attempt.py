"""`async-task show ID`: one attempt, all its fields in plain words, and everything that happened to it."""

import datetime as dt
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text

from async_task import AsyncTask, AttemptInfo, EventInfo, Reason, ShownArguments, Status, UnknownAttempt
from async_task_cli.application import existing
from async_task_cli.faults import Refusal
from async_task_cli.fields import SHOWN, as_json_value
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.selection import identifier
from async_task_cli.terminal import coloured, counted, moment, page, plain, print_sheet, print_whole, since

PAGE = 1000
HIDDEN = "[hidden]"
SAID_BY_STATUS = ("ended", "performing")
"""Reasons that the line of the status tells already."""


@dataclass(frozen=True, slots=True)
class Found:
    """An attempt, why it is not performed now, what may be shown of its arguments, and everything that happened to it,
    in order."""

    attempt: AttemptInfo
    reasons: Sequence[Reason]
    arguments: ShownArguments
    events: Sequence[EventInfo]


@click.command("show", context_settings=SETTINGS)
@click.argument("attempt_id", metavar="ID", callback=lambda _ctx, _param, text: identifier(text))
@click.option("--traceback", "has_traces", is_flag=True, help="Also the stored tracebacks of errors.")
@as_json
@reaching
def show(wanted: Wanted, attempt_id: str, has_traces: bool, is_json: bool) -> None:
    """Show one attempt: what it is, what blocks it, its arguments, and everything that happened to it.

    ID is the whole id, or at least 4 digits of its end or its begin. What is empty is left out; --json has all fields.
    What blocks an attempt: that it is claimed or not due, an earlier attempt of its order key, a pause, a limit, or
    that no running worker serves its queue.

    Encrypted arguments are not decrypted, and those that the target redacts are not shown.
    """
    with existing(wanted) as app:
        try:
            told = app.attempts.explain(attempt_id)
        except UnknownAttempt as error:
            raise Refusal(f"{error} (looked in {app.address}; `async-task list` prints the ids)") from None
        attempt = told.attempt
        found = Found(attempt, told.reasons, app.attempts.arguments(attempt.id), list(_events(app, attempt.id)))
    if is_json:
        click.echo(json.dumps(_as_data(found, has_traces=has_traces)))
    else:
        _print(found, has_traces=has_traces)


def _events(app: AsyncTask, attempt_id: uuid.UUID) -> Iterator[EventInfo]:
    after = None
    while some := app.attempts.events(attempt_id, limit=PAGE, after=after):
        yield from some
        after = some[-1].id


def _as_data(found: Found, *, has_traces: bool) -> dict[str, Any]:
    fields = {name: getattr(found.attempt, name) for name in SHOWN} | dict(found.attempt.extra)
    return {
        **{name: as_json_value(value) for name, value in fields.items()},
        "method_args": found.arguments.stored,
        "waits_behind": as_json_value(found.attempt.waits_behind),
        **_about(found.arguments),
        "reasons": [{"kind": one.kind, "words": one.words} for one in found.reasons],
        "events": [_event_as_data(event, has_trace=has_traces) for event in found.events],
    }


def _about(arguments: ShownArguments) -> dict[str, Any]:
    """Why there are no arguments to show; empty if there are."""
    if arguments.problem is not None:
        return {"method_args_problem": arguments.problem, "stored_length": arguments.length}
    return {"encrypted_length": arguments.length} if arguments.stored is None else {}


def _event_as_data(event: EventInfo, *, has_trace: bool) -> dict[str, Any]:
    names = ["created_at", "kind", "num_attempt", "actor", "message", *(["detail"] if has_trace else [])]
    return {name: as_json_value(getattr(event, name)) for name in names}


def _print(found: Found, *, has_traces: bool) -> None:
    console = page()
    console.print(Text(f"Attempt {found.attempt.id}", style="bold"))
    print_sheet(console, list(_lines(found)))
    console.print(Text("Events" if found.events else "Events: none", style="bold"))
    for event in found.events:
        print_sheet(console, [("", plain(_headline(event)))])
        print_sheet(console, [("", plain(event.message or "(no message)"))], indent=4)
        if has_traces and event.detail:
            print_whole(console, event.detail.rstrip(), indent=6)


def _headline(event: EventInfo) -> str:
    number = "" if event.num_attempt is None else f" of try {event.num_attempt}"
    actor = "" if event.actor is None else f", by {event.actor}"
    return f"{_precise(event.created_at)}  {event.kind}{number}{actor}"


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


def _precise(when: dt.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d} UTC"
