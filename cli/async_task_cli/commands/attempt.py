"""`async-task show ID`: one attempt, all its fields in plain words, and everything that happened to it."""

import datetime as dt
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text

from async_task import AsyncTask, AttemptInfo, EventInfo, ShownArguments, Status, UnknownAttempt
from async_task_cli.application import existing
from async_task_cli.faults import Refusal
from async_task_cli.fields import SHOWN, as_json_value
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.selection import identifier
from async_task_cli.terminal import coloured, counted, moment, page, plain, print_sheet, print_whole, since

PAGE = 1000
HIDDEN = "[hidden]"


@dataclass(frozen=True, slots=True)
class Found:
    """An attempt, what may be shown of its arguments, and everything that happened to it, in order."""

    attempt: AttemptInfo
    arguments: ShownArguments
    events: Sequence[EventInfo]


@click.command("show", context_settings=SETTINGS)
@click.argument("attempt_id", metavar="ID", callback=lambda _ctx, _param, text: identifier(text))
@click.option("--traceback", "has_traces", is_flag=True, help="Also the stored tracebacks of errors.")
@as_json
@reaching
def show(wanted: Wanted, attempt_id: uuid.UUID, has_traces: bool, is_json: bool) -> None:
    """Show one attempt: all its fields, its arguments, and everything that happened to it.

    Encrypted arguments are not decrypted, and those that the target redacts are not shown.
    """
    with existing(wanted) as app:
        try:
            found = Found(
                app.attempts.get(attempt_id), app.attempts.arguments(attempt_id), list(_events(app, attempt_id))
            )
        except UnknownAttempt:
            words = f"there is no attempt {attempt_id} in {app.address}: `async-task list` prints the ids"
            raise Refusal(words) from None
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
        **({"encrypted_length": found.arguments.length} if found.arguments.stored is None else {}),
        "events": [_event_as_data(event, has_trace=has_traces) for event in found.events],
    }


def _event_as_data(event: EventInfo, *, has_trace: bool) -> dict[str, Any]:
    names = ["created_at", "kind", "num_attempt", "actor", "message", *(["detail"] if has_trace else [])]
    return {name: as_json_value(getattr(event, name)) for name in names}


def _print(found: Found, *, has_traces: bool) -> None:
    console = page()
    console.print(Text(f"Attempt {found.attempt.id}", style="bold"))
    print_sheet(console, list(_lines(found.attempt, found.arguments)))
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


def _lines(attempt: AttemptInfo, arguments: ShownArguments) -> Iterator[tuple[str, Text]]:
    """The fields in the order in which one asks for them."""
    now = attempt.read_at
    yield "call", plain(attempt.call)
    yield "status", _status(attempt)
    yield from _arguments(arguments)
    yield "starts", plain(_starts(attempt))
    yield "last error", plain(attempt.last_error or "none")
    yield "created", plain(_at(attempt.created_at, now))
    yield "asked for", plain(_at(attempt.scheduled_at, now, never="at once"))
    yield "due", plain(_at(attempt.due_at, now))
    yield "last start", plain(_at(attempt.attempted_at, now, never="never"))
    yield "expires", plain(_at(attempt.expires_at, now, never="never"))
    yield "completed", plain(_at(attempt.completed_at, now, never="not yet"))
    yield "changed", plain(_at(attempt.updated_at, now))
    yield "queue", plain(f"{attempt.queue}, priority {attempt.priority} (0 first, 9 last)")
    yield "claimed by", plain(_claim(attempt))
    yield "token", plain(attempt.idempotence_token or "none")
    yield "order", plain(_order(attempt))
    yield "trace", plain(attempt.trace_context or "none")
    for name, value in attempt.extra.items():
        yield name, plain(repr(value))


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
    if arguments.values is None:
        yield "arguments", plain(f"encrypted by {arguments.encryptor!r}, {counted(arguments.length, 'character')}")
        return
    lines = [f"{name} = {value if value == HIDDEN else repr(value)}" for name, value in arguments.values.items()]
    if arguments.why_hidden:
        lines.append(f"({HIDDEN} {arguments.why_hidden})")
    yield "arguments", plain("\n".join(lines) or "none")
    yield "encryption", Text("none")


def _starts(attempt: AttemptInfo) -> str:
    crashes = f", {counted(attempt.num_crashes, 'start')} in a row lost with its process" if attempt.num_crashes else ""
    most = f"; at most {counted(attempt.max_attempts, 'error')}" if attempt.max_attempts is not None else ""
    return f"{attempt.num_attempts}, {counted(attempt.num_errors, 'error')}{crashes}{most}"


def _claim(attempt: AttemptInfo) -> str:
    if attempt.claim_id is None:
        return "nobody"
    return f"{attempt.claimed_by}, lease until {_at(attempt.lease_until, attempt.read_at)}, claim {attempt.claim_id}"


def _order(attempt: AttemptInfo) -> str:
    if attempt.order_key is None:
        return "none: it waits for no other attempt"
    behind = attempt.waits_behind
    turn = "released" if attempt.released else "waits for its turn" if behind is None else f"waits behind {behind}"
    return f"key {attempt.order_key}, number {attempt.seq}, {turn}"


def _at(when: dt.datetime | None, now: dt.datetime, *, never: str = "never") -> str:
    return never if when is None else f"{moment(when)} ({since(when, now)})"


def _precise(when: dt.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d} UTC"
