"""What happened to an attempt, as `show` prints it: its events in order, and its newest notes."""

import datetime as dt
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from async_task import AsyncTask, EventInfo, JobEventInfo, NoteInfo
from async_task_cli.fields import as_json_value
from async_task_cli.terminal import moment, plain, print_sheet, print_whole, since

PAGE = 1000
NOTE = "note"
BRIEF_NOTES, BRIEF_TEXT = 3, 200
"""How many notes `show` prints, and how many characters of each."""
NAMES = {
    "due_at": "due", "expires_at": "expires", "num_errors": "errors", "num_crashes": "crashes", "num_losses": "losses",
    "claimed_by": "claimed by",
}  # fmt: skip
"""What the fields of a change are called for people."""


def events_in_order(app: AsyncTask, attempt_id: uuid.UUID) -> Iterator[EventInfo]:
    """All events of an attempt, the first one first."""
    after = None
    while some := app.attempts.events(attempt_id, limit=PAGE, after=after):
        yield from some
        after = some[-1].id


def as_data(event: EventInfo | JobEventInfo, *, has_trace: bool) -> dict[str, Any]:
    """An event as JSON has it. `before` and `after` are null where nobody has changed the attempt."""
    names = ["created_at", "kind", "num_attempt", "actor", "message", "fingerprint"]
    change = {
        side: {name: as_json_value(value) for name, value in values.items()} or None
        for side, values in (("before", event.before), ("after", event.after))
    }
    detail = {"detail": None if event.before else event.detail} if has_trace else {}
    return {**{name: as_json_value(getattr(event, name)) for name in names}, **change, **detail}


def print_events(console: Console, events: Sequence[EventInfo | JobEventInfo], *, has_traces: bool) -> None:
    """Each with its time, who did it, why, and what that changed."""
    for event in events:
        print_sheet(console, [("", plain(_headline(event)))])
        print_sheet(console, [("", plain(event.message or "(no message)"))], indent=4)
        if change := _change(event):
            print_sheet(console, [("", plain(change))], indent=4)
        if has_traces and event.detail and not event.before:
            print_whole(console, event.detail.rstrip(), indent=6)


def print_newest_notes(console: Console, notes: Sequence[NoteInfo], now: dt.datetime, job: object) -> None:
    """The newest ones, each on one line; and how to read the others. `job`: what `show` takes for it."""
    if not notes:
        return
    console.print(Text("Notes", style="bold"))
    for note in notes[:BRIEF_NOTES]:
        words = f"{moment(note.created_at)} ({since(note.created_at, now)}), by {note.author}: {_brief(note.text)}"
        print_sheet(console, [("", plain(words))])
    if len(notes) > BRIEF_NOTES or any(_brief(note.text) != note.text for note in notes):
        print_sheet(console, [("", plain(f"All of them: async-task show {job} --history"))])


def _brief(text: str) -> str:
    first = next(line for line in text.splitlines() if line.strip())
    is_whole = len(first) <= BRIEF_TEXT and first == text
    return first if is_whole else f"{first[:BRIEF_TEXT]} ..."


def _headline(event: EventInfo | JobEventInfo) -> str:
    number = "" if event.num_attempt is None else f" of try {event.num_attempt}"
    actor = "" if event.actor is None else f", by {event.actor}"
    return f"{_precise(event.created_at)}  {event.kind}{number}{actor}"


def _change(event: EventInfo | JobEventInfo) -> str:
    """`status failed -> pending, due 2026-10-25 02:30:00 UTC -> 2026-10-25 09:00:00 UTC`."""
    after = event.after
    return ", ".join(
        f"{NAMES.get(name, name)} {_value(value)} -> {_value(after.get(name))}"
        for name, value in event.before.items()
        if value != after.get(name)
    )


def _value(value: object) -> str:
    return "none" if value is None else moment(value) if isinstance(value, dt.datetime) else str(value)


def _precise(when: dt.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}.{when.microsecond // 1000:03d} UTC"
