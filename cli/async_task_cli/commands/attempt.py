"""`async-task show ID`: one attempt, all its fields in plain words, and everything that happened to it."""

import datetime as dt
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text
from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task import BaseAttempt, Status
from async_task.database.clock import statement_now
from async_task.queue.ordering import ahead
from async_task.schema.tables import companion_tables, table_of
from async_task_cli.application import existing
from async_task_cli.faults import Refusal
from async_task_cli.fields import HIDDEN, Arguments, arguments_of, as_json_value, call_of, fields_of
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.selection import identifier
from async_task_cli.terminal import coloured, counted, moment, page, plain, print_sheet, print_whole, since

TOLD = frozenset(BaseAttempt.__annotations__)


@dataclass(frozen=True, slots=True)
class Found:
    """An attempt, everything that happened to it in order, the database's clock, and the attempt for which it waits."""

    attempt: BaseAttempt
    events: Sequence[Any]
    now: dt.datetime
    ahead: uuid.UUID | None


@click.command("show", context_settings=SETTINGS)
@click.argument("attempt_id", metavar="ID", callback=lambda _ctx, _param, text: identifier(text))
@click.option("--traceback", "has_traces", is_flag=True, help="Also the stored traces of errors.")
@as_json
@reaching
def show(wanted: Wanted, attempt_id: uuid.UUID, has_traces: bool, is_json: bool) -> None:
    """Show one attempt: all its fields, its arguments, and everything that happened to it.

    Encrypted arguments are not decrypted, and those that the target redacts are not shown.
    """
    with existing(wanted) as app:
        found = app.read(lambda session: _find(session, app.model, attempt_id))
    if found is None:
        raise Refusal(f"there is no attempt {attempt_id} in {app.address}: `async-task list` prints those that are")
    if is_json:
        click.echo(json.dumps(_as_data(found, has_traces=has_traces)))
    else:
        _print(found, has_traces=has_traces)


def _find(session: Session, model: type[BaseAttempt], attempt_id: uuid.UUID) -> Found | None:
    attempt = session.get(model, attempt_id)
    if attempt is None:
        return None
    table = table_of(attempt)
    events = companion_tables(table).events
    mine = (events.c.job_type == table.name, events.c.job_id == str(attempt_id))
    now = session.scalar(select(statement_now()))
    assert now is not None
    happened = session.execute(select(events).where(*mine).order_by(events.c.id)).all()
    return Found(attempt, happened, now, session.scalar(select(ahead(table)).where(table.c.id == attempt_id)))


def _as_data(found: Found, *, has_traces: bool) -> dict[str, Any]:
    fields = {name: as_json_value(value) for name, value in fields_of(found.attempt).items()}
    arguments = arguments_of(found.attempt)
    length = len(found.attempt.encoded_args)
    return {
        **fields,
        "method_args": arguments.stored,
        "waits_behind": as_json_value(found.ahead),
        **({"encrypted_length": length} if arguments.stored is None else {}),
        "events": [_event_as_data(event, has_trace=has_traces) for event in found.events],
    }


def _event_as_data(event: Any, *, has_trace: bool) -> dict[str, Any]:
    names = ["created_at", "kind", "num_attempt", "actor", "message", *(["detail"] if has_trace else [])]
    return {name: as_json_value(getattr(event, name)) for name in names}


def _print(found: Found, *, has_traces: bool) -> None:
    console = page()
    console.print(Text(f"Attempt {found.attempt.id}", style="bold"))
    print_sheet(console, list(_lines(found.attempt, found.now, found.ahead)))
    console.print(Text("Events" if found.events else "Events: none", style="bold"))
    for event in found.events:
        print_sheet(console, [("", plain(_headline(event)))])
        print_sheet(console, [("", plain(event.message or "(no message)"))], indent=4)
        if has_traces and event.detail:
            print_whole(console, event.detail.rstrip(), indent=6)


def _headline(event: Any) -> str:
    number = "" if event.num_attempt is None else f" of try {event.num_attempt}"
    actor = "" if event.actor is None else f", by {event.actor}"
    return f"{_precise(event.created_at)}  {event.kind}{number}{actor}"


def _lines(attempt: Any, now: dt.datetime, behind: uuid.UUID | None) -> Iterator[tuple[str, Text]]:
    """The fields in the order in which one would ask for them."""
    yield "call", plain(call_of(attempt))
    yield "status", _status(attempt, now, behind)
    yield from _arguments(attempt, arguments_of(attempt))
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
    yield "held by", plain(_holder(attempt, now))
    yield "token", plain(attempt.idempotence_token or "none")
    yield "order", plain(_order(attempt, behind))
    yield "trace", plain(attempt.trace_context or "none")
    for name, value in fields_of(attempt).items():
        if name not in TOLD:
            yield name, plain(repr(value))


def _status(attempt: Any, now: dt.datetime, behind: uuid.UUID | None) -> Text:
    if attempt.status is not Status.PENDING:
        return coloured(attempt.status.value)
    if attempt.claim_id is not None:
        return coloured("pending") + Text(", being performed")
    if behind is not None:
        return coloured("pending") + Text(f", waits behind {behind}")
    return coloured("pending") + Text(", due" if attempt.due_at <= now else f", due {since(attempt.due_at, now)}")


def _arguments(attempt: Any, arguments: Arguments) -> Iterator[tuple[str, Text]]:
    if arguments.values is None:
        yield (
            "arguments",
            plain(f"encrypted by {attempt.encryptor!r}, {counted(len(attempt.encoded_args), 'character')}"),
        )
        return
    lines = [f"{name} = {value if value == HIDDEN else repr(value)}" for name, value in arguments.values.items()]
    if arguments.why_hidden:
        lines.append(f"({HIDDEN} {arguments.why_hidden})")
    yield "arguments", plain("\n".join(lines) or "none")
    yield "encryption", Text("none")


def _starts(attempt: Any) -> str:
    crashes = f", {counted(attempt.num_crashes, 'start')} in a row lost with its process" if attempt.num_crashes else ""
    most = f"; at most {counted(attempt.max_attempts, 'error')}" if attempt.max_attempts is not None else ""
    return f"{attempt.num_attempts}, {counted(attempt.num_errors, 'error')}{crashes}{most}"


def _holder(attempt: Any, now: dt.datetime) -> str:
    if attempt.claim_id is None:
        return "nobody"
    return f"{attempt.claimed_by}, lease until {_at(attempt.lease_until, now)}, claim {attempt.claim_id}"


def _order(attempt: Any, behind: uuid.UUID | None) -> str:
    if attempt.order_key is None:
        return "none: it waits for no other attempt"
    turn = "released" if attempt.released else "waits for its turn" if behind is None else f"waits behind {behind}"
    return f"key {attempt.order_key}, number {attempt.seq}, {turn}"


def _at(when: dt.datetime | None, now: dt.datetime, *, never: str = "never") -> str:
    return never if when is None else f"{moment(when)} ({since(when, now)})"


def _precise(when: dt.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d} UTC"
