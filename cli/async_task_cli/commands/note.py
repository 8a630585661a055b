"""`async-task note ID TEXT`: a note on a job, for whoever looks at it next."""

import json
import sys
import uuid
from typing import Any

import click

from async_task import AsyncTask, InvalidArguments, NoteInfo, UnknownAttempt, acting, add_note
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.faults import USAGE, Refusal
from async_task_cli.fields import as_json_value
from async_task_cli.options import SETTINGS, Wanted, as_json, of_model, reaching
from async_task_cli.selection import identifier


@click.command("note", context_settings=SETTINGS)
@click.argument("key", metavar="ID")
@click.argument("text", metavar="TEXT")
@of_model
@click.option("--dry-run", "is_dry", is_flag=True, help="Find the job, and add nothing.")
@as_actor
@as_json
@reaching
def note(
    wanted: Wanted, key: str, text: str, model: str | None, is_dry: bool, actor: str | None, is_json: bool
) -> None:
    """Add a note to an attempt or a row, in any state: TEXT in Markdown, up to 64 KB; - reads it from standard input.

    With --model, ID is the primary key of a row of that model, with a comma between the values of several columns.

    `show` prints the newest notes of an attempt. They stay when it is retried, and when it is pruned. The user of the
    job gets a message, if the application sends messages.

    --json writes an object: id, note, author, text, created_at; note and created_at are null with --dry-run.
    """
    words = sys.stdin.read() if text == "-" else text
    if not words.strip():
        raise click.UsageError("the note is empty: give a TEXT, or - to read it from standard input")
    meant = identifier(key) if model is None else key
    with existing(wanted) as app, acting(actor := actor_of(actor)):
        try:
            found = str(app.attempts.get(meant).id) if model is None else key
            made = app.write(lambda session: _noted(session, app, model, found, words, is_dry=is_dry))
        except UnknownAttempt as error:
            hint = "; `async-task list` prints the ids" if model is None else ""
            raise Refusal(f"{error} (looked in {app.address}{hint})") from None
        except InvalidArguments as error:
            raise Refusal(str(error), USAGE) from None
    if is_json:
        number, written = (None, None) if made is None else (made.id, as_json_value(made.created_at))
        stored = words if made is None else made.text
        values = {"id": found, "note": number, "author": actor, "text": stored, "created_at": written}
        click.echo(json.dumps(values))
    else:
        click.echo(f"{found}  {'would be noted' if is_dry else 'noted'}")


def _noted(session: Any, app: AsyncTask, model: str | None, key: str, text: str, *, is_dry: bool) -> NoteInfo | None:
    job = session.get(app.model, uuid.UUID(key)) if model is None else app.row(session, model, key)
    if job is None:
        raise UnknownAttempt(f"there is no {'attempt' if model is None else model} {key}")
    return None if is_dry else add_note(session, job, text)
