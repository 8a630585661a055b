"""A verb of a person, done to attempts one by one: each in a transaction of its own, each with a word about it."""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task import AsyncTask, AsyncTaskError, BaseAttempt, InvalidState, Status
from async_task.attempts.actions import LEGAL, PENDING, not_performing
from async_task.schema.tables import table_of
from async_task_cli.faults import UNEXPECTED, one_line
from async_task_cli.terminal import say


@dataclass(frozen=True, slots=True)
class Verb:
    """`word` on the command line, `method` of the model and its `arguments`; `status` that it leads to, and that in
    `words` for people."""

    word: str
    method: str
    status: Status
    words: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one attempt. `status` is the one after; of a refused one as it is, None where there is none.

    `words`: for people what it is now, or why it was refused. `outcome`: of a call that was made here.
    """

    attempt_id: uuid.UUID
    is_done: bool
    status: Status | None
    words: str
    outcome: str | None = None


def changed(app: AsyncTask, verb: Verb, attempt_id: uuid.UUID) -> Change:
    """`verb` done to this attempt, by its own method, so that what a user has overridden runs."""
    try:
        status = app.write(lambda session: _do(session, app.model, verb, attempt_id))
    except AsyncTaskError as error:
        return Change(attempt_id, False, status_of(app, attempt_id), str(error))
    return Change(attempt_id, True, status, verb.words)


def foreseen(app: AsyncTask, verb: Verb, attempt_id: uuid.UUID) -> Change:
    """What `changed` would do, judged by the row as it is now. Writes nothing."""
    table = table_of(app.model)
    look = select(table.c.status, table.c.claimed_by, not_performing(table).label("is_free")).where(
        table.c.id == attempt_id
    )
    row = app.read(lambda session: session.execute(look).first())
    if row is None:
        return Change(attempt_id, False, None, _missing(verb, attempt_id))
    legal = LEGAL.get(verb.method, PENDING)
    if row.status not in legal:
        words = f"{verb.method}: attempt {attempt_id} is {row.status}, and must be {' or '.join(sorted(legal))}"
        return Change(attempt_id, False, row.status, words)
    if not row.is_free:
        words = f"{verb.method}: attempt {attempt_id} is being performed by {row.claimed_by}"
        return Change(attempt_id, False, row.status, words)
    return Change(attempt_id, True, verb.status, f"is {row.status}, would be {verb.words}")


def status_of(app: AsyncTask, attempt_id: uuid.UUID) -> Status | None:
    found: Status | None = app.read(lambda session: session.scalar(_status(app.model, attempt_id)))
    return found


def report(verb: str, changes: Iterable[Change], *, is_dry: bool, is_json: bool) -> int:
    """Print each as it comes, and answer the exit code: 1 when any was refused."""
    done = refused = 0
    for change in changes:
        done, refused = done + change.is_done, refused + (not change.is_done)
        if is_json:
            click.echo(json.dumps(_as_data(verb, change, is_dry=is_dry)))
        elif change.is_done:
            click.echo(f"{change.attempt_id}  {one_line(change.words)}")
        if not change.is_done:
            say(f"async-task: {one_line(change.words)}")
    if done + refused > 1 and not is_json:
        would_be = "would be " if is_dry else ""
        say(f"{verb}: {done:,} {would_be}done" + (f", {refused:,} {would_be}refused." if refused else "."))
    return UNEXPECTED if refused else 0


def each(app: AsyncTask, verb: Verb, ids: Iterable[uuid.UUID], *, is_dry: bool) -> Iterator[Change]:
    for attempt_id in ids:
        yield foreseen(app, verb, attempt_id) if is_dry else changed(app, verb, attempt_id)


def _do(session: Session, model: type[BaseAttempt], verb: Verb, attempt_id: uuid.UUID) -> Status:
    attempt = session.get(model, attempt_id)
    if attempt is None:
        raise InvalidState(_missing(verb, attempt_id))
    getattr(attempt, verb.method)(**verb.arguments)
    return attempt.status


def _missing(verb: Verb, attempt_id: uuid.UUID) -> str:
    return f"{verb.method}: there is no attempt {attempt_id}"


def _status(model: type[BaseAttempt], attempt_id: uuid.UUID) -> Any:
    return select(model.status).where(model.id == attempt_id)


def _as_data(verb: str, change: Change, *, is_dry: bool) -> dict[str, Any]:
    return {
        "id": str(change.attempt_id),
        "verb": verb,
        "ok": change.is_done,
        "status": change.status,
        "why": None if change.is_done else one_line(change.words),
        "outcome": change.outcome,
        "dry_run": is_dry,
    }
