"""A person's verb on attempts, one by one: each in a transaction of its own, each with a line about it."""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from async_task import AsyncTask, AsyncTaskError, InvalidState, Status, UnknownAttempt
from async_task_cli.faults import UNEXPECTED, one_line
from async_task_cli.standard_output import tell
from async_task_cli.terminal import say


@dataclass(frozen=True, slots=True)
class Verb:
    """`word` on the command line, `method` of the model and its `arguments`; the `status` that follows, and that in
    `words` for people."""

    word: str
    method: str
    status: Status
    words: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """The result for one attempt. `status`: afterwards; of a refused one its status now, None where there is none.

    `words`: for people, its new state, or why it was refused. `outcome`: of a call that was made here.
    """

    attempt_id: uuid.UUID
    is_done: bool
    status: Status | None
    words: str
    outcome: str | None = None


def changed(app: AsyncTask, verb: Verb, attempt_id: uuid.UUID) -> Change:
    """Apply `verb` to this attempt by its own method, so that a user's override runs."""
    try:
        status: Status = app.write(lambda session: applied(session, app, verb, attempt_id))
    except AsyncTaskError as error:
        return Change(attempt_id, False, status_of(app, attempt_id), str(error))
    return Change(attempt_id, True, status, verb.words)


def foreseen(app: AsyncTask, verb: Verb, attempt_id: uuid.UUID) -> Change:
    """What `changed` would do, judged by the row as it is now. Writes nothing."""
    try:
        row = app.attempts.get(attempt_id)
    except UnknownAttempt:
        return Change(attempt_id, False, None, _missing(verb, attempt_id))
    if (why_not := row.why_not(verb.method)) is not None:
        return Change(attempt_id, False, row.status, why_not)
    return Change(attempt_id, True, verb.status, f"is {row.status}, would be {verb.words}")


def status_of(app: AsyncTask, attempt_id: uuid.UUID) -> Status | None:
    try:
        return app.attempts.get(attempt_id).status
    except UnknownAttempt:
        return None


def each(app: AsyncTask, verb: Verb, ids: Iterable[uuid.UUID], *, is_dry: bool) -> Iterator[Change]:
    for attempt_id in ids:
        yield foreseen(app, verb, attempt_id) if is_dry else changed(app, verb, attempt_id)


def report(verb: str, changes: Iterable[Change], *, is_dry: bool, is_json: bool) -> int:
    """Print each as it comes, and return the exit code: 1 when any was refused."""
    done = refused = 0
    for change in changes:
        done, refused = done + change.is_done, refused + (not change.is_done)
        if is_json:
            tell(json.dumps(change_as_data(verb, change, is_dry=is_dry)))
        elif change.is_done:
            tell(f"{change.attempt_id}  {one_line(change.words)}")
        if not change.is_done:
            say(f"async-task: {one_line(change.words)}")
    if done + refused > 1 and not is_json:
        would_be = "would be " if is_dry else ""
        say(f"{verb}: {done:,} {would_be}done" + (f", {refused:,} {would_be}refused." if refused else "."))
    return UNEXPECTED if refused else 0


def applied(session: Any, app: AsyncTask, verb: Verb, attempt_id: uuid.UUID) -> Status:
    """The status after `verb` in this transaction. Raises InvalidState, and what a user's override raises."""
    attempt = session.get(app.model, attempt_id)
    if attempt is None:
        raise InvalidState(_missing(verb, attempt_id))
    getattr(attempt, verb.method)(**verb.arguments)
    status: Status = attempt.status
    return status


def _missing(verb: Verb, attempt_id: uuid.UUID) -> str:
    return f"{verb.method}: there is no attempt {attempt_id}"


def change_as_data(verb: str, change: Change, *, is_dry: bool) -> dict[str, Any]:
    """For programs."""
    return {
        "id": str(change.attempt_id),
        "verb": verb,
        "ok": change.is_done,
        "status": change.status,
        "why": None if change.is_done else one_line(change.words),
        "outcome": change.outcome,
        "dry_run": is_dry,
    }
