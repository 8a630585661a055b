"""`async-task note ID TEXT`: a note on an attempt, for whoever looks at it next."""

import json
import sys
from typing import Any

import click

from async_task import InvalidArguments, UnknownAttempt, acting
from async_task_cli.actor import actor_of, as_actor
from async_task_cli.application import existing
from async_task_cli.faults import USAGE, Refusal
from async_task_cli.fields import as_json_value
from async_task_cli.options import SETTINGS, Wanted, as_json, reaching
from async_task_cli.selection import identifier


@click.command("note", context_settings=SETTINGS)
@click.argument("attempt_id", metavar="ID", callback=lambda _ctx, _param, text: identifier(text))
@click.argument("text", metavar="TEXT")
@click.option("--dry-run", "is_dry", is_flag=True, help="Find the attempt, and add nothing.")
@as_actor
@as_json
@reaching
def note(wanted: Wanted, attempt_id: str, text: str, is_dry: bool, actor: str | None, is_json: bool) -> None:
    """Add a note to an attempt, in any state: TEXT in Markdown, up to 64 KB; - reads it from standard input.

    `show` prints the newest notes. They stay when the attempt is retried, and when it is pruned. The user of the
    attempt gets a message, if the application sends messages.

    --json writes an object: id, note, author, text, created_at; note and created_at are null with --dry-run.
    """
    words = sys.stdin.read() if text == "-" else text
    if not words.strip():
        raise click.UsageError("the note is empty: give a TEXT, or - to read it from standard input")
    with existing(wanted) as app, acting(actor := actor_of(actor)):
        try:
            found = app.attempts.get(attempt_id).id
            made = None if is_dry else app.write(lambda session: _add(session, app.model, found, words))
        except UnknownAttempt as error:
            raise Refusal(f"{error} (looked in {app.address}; `async-task list` prints the ids)") from None
        except InvalidArguments as error:
            raise Refusal(str(error), USAGE) from None
    if is_json:
        number, written = (None, None) if made is None else (made.id, as_json_value(made.created_at))
        stored = words if made is None else made.text
        values = {"id": str(found), "note": number, "author": actor, "text": stored, "created_at": written}
        click.echo(json.dumps(values))
    else:
        click.echo(f"{found}  {'would be noted' if is_dry else 'noted'}")


def _add(session: Any, model: Any, attempt_id: Any, text: str) -> Any:
    attempt = session.get(model, attempt_id)
    if attempt is None:
        raise UnknownAttempt(f"there is no attempt {attempt_id}")
    return attempt.add_note(text=text)
