"""`/jobs/TYPE/ID`: one job. Of an attempt: what keeps it from running, its arguments, and everything that happened."""

import datetime as dt
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from async_task.attempts.info import AttemptInfo
from async_task.attempts.messages import user_of
from async_task.errors import AsyncTaskError, ReadTimeout
from async_task.reading.events import EventInfo
from async_task.reading.pages import AttemptPage
from async_task.reading.shown_arguments import ShownArguments
from async_task.web.pages import row
from async_task.web.rendering.arguments import masked
from async_task.web.rendering.charts import time_line
from async_task.web.rendering.excerpts import tracebacks
from async_task.web.requests.query import Query
from async_task.web.security.access import Right
from async_task.web.security.refusal import NO_RIGHT
from async_task.web.view import Asked, Page, View

ATTEMPTS = "attempts"
"""The type of an attempt in the path of its page."""
MOST_EVENTS, MOST_RELATED, MOST_ARGUMENTS = 500, 20, 50
LONGEST_CALL = 10_000
"""Characters of a call in Python."""
MOST_KEPT = 200_000
"""Characters of a page that is kept for when the database is away."""
TRIES = ("error", "crash", "loss")
VERBS = {
    Right.RETRY: "retry_now", Right.RESCHEDULE: "reschedule", Right.EXPIRE: "expire", Right.FAIL: "fail",
    Right.CANCEL: "cancel",
}  # fmt: skip
"""The verb of an attempt that each right allows."""
LABELS = {
    Right.RETRY: "Retry now", Right.RESCHEDULE: "Reschedule", Right.EXPIRE: "Expire", Right.FAIL: "Fail for good",
    Right.CANCEL: "Cancel the job",
}  # fmt: skip


def read(asked: Asked) -> View:
    try:
        return _attempt(asked) if asked.parts["kind"] == ATTEMPTS else row.read(asked)
    except AsyncTaskError as error:
        if asked.access.user is None or isinstance(error, ReadTimeout):
            raise
        raise row.not_theirs() from error  # whether there is one is not theirs to know


def _attempt(asked: Asked) -> View:
    outbox, key = asked.outbox, asked.parts["key"]
    told = outbox.attempts.explain(key)
    attempt = told.attempt
    if asked.access.user is not None:
        row.refuse_other_users(
            asked.access, outbox.read(lambda session: user_of(session.get(outbox.model, attempt.id)))
        )
    events, is_cut = _events(asked, attempt)
    arguments = outbox.attempts.arguments(attempt.id)
    notes = outbox.attempts.notes(attempt.id, limit=row.MOST_NOTES)
    sees = asked.access.may(Right.SEE_ARGS)
    extra = masked(dict(attempt.extra), "") if sees else {}
    tries = [one for one in events if one.kind in TRIES]
    traces = tracebacks(tries)
    reasons = row.reasons_for(asked.access, told.reasons)
    values = {
        "attempt": attempt, "reasons": reasons, "arguments": arguments, "now": attempt.read_at, "notes": notes,
        "sees_arguments": sees, "extra": extra, "tries": tries, "traces": traces,
        "has_longer_traces": any(one.detail and one.detail != traces.get(one.id) for one in tries),
        "audit": [one for one in events if one.kind not in (*TRIES, "note")], "line": time_line(attempt, events),
        "verbs": _verbs(attempt, asked), "related": _related(asked, attempt), "revealed": None, "kind": ATTEMPTS,
        "python": as_python(attempt, arguments), "is_cut": is_cut, "hides": _hides(arguments),
        "most_arguments": MOST_ARGUMENTS,
    }  # fmt: skip
    data = {
        "attempt": replace(attempt, extra=extra), "reasons": reasons, "notes": notes, "events": events,
        "arguments": masked(arguments.stored, "") if sees else None,
    }  # fmt: skip
    columns, rows = ("at", "kind", "try", "actor", "message"), [_row(one) for one in events]
    command = row.command_for(asked.access, "show", str(attempt.id), "--history")
    texts = (*(one.detail or "" for one in events), *(one.text for one in notes))
    is_large = arguments.length + sum(map(len, texts)) > MOST_KEPT
    return View(values, data, columns, rows, command, title=attempt.call, is_large=is_large)


def _events(asked: Asked, attempt: AttemptInfo) -> tuple[Sequence[EventInfo], bool]:
    """The newest MOST_EVENTS, in order; and whether there are older ones."""
    found: deque[EventInfo] = deque(maxlen=MOST_EVENTS)
    after, number = None, 0
    while some := asked.outbox.attempts.events(attempt.id, limit=2 * MOST_EVENTS, after=after):
        found.extend(some)
        after, number = some[-1].id, number + len(some)
        if len(some) < 2 * MOST_EVENTS:
            break
    return list(found), number > len(found)


def _hides(arguments: ShownArguments) -> bool:
    """Whether there is anything to reveal."""
    values = arguments.values
    return arguments.problem is None and (values is None or masked(dict(values), "") != dict(values))


def _row(one: EventInfo) -> tuple[Any, ...]:
    return one.created_at, one.kind, one.num_attempt, one.actor, one.message


def _verbs(attempt: AttemptInfo, asked: Asked) -> list[dict[str, Any]]:
    """Every verb, and why it is not allowed now; None where it is. No verbs for a person who may see only their
    own jobs."""
    if asked.access.user is not None:
        return []
    return [
        {"right": right, "label": LABELS[right], "why_not": _why_not(attempt, right, verb, asked)}
        for right, verb in VERBS.items()
    ]  # fmt: skip


def _why_not(attempt: AttemptInfo, right: Right, verb: str, asked: Asked) -> str | None:
    if not asked.access.may(right):
        return NO_RIGHT
    found = attempt.why_not(verb)
    return None if found is None else found.partition(": ")[2].replace(f"attempt {attempt.id}", "it")


def _related(asked: Asked, attempt: AttemptInfo) -> dict[str, Sequence[AttemptInfo]]:
    """Others with the same token, and with the same order key, by what they share; they may be of other users."""
    if asked.access.user is not None:
        return {}
    shared: dict[str, tuple[str, Any]] = {
        "Same token": ("token", attempt.idempotence_token),
        "Same order key": ("order_key", attempt.order_key),
    }
    found: dict[str, Sequence[AttemptInfo]] = {}
    for title, (name, value) in shared.items():
        page = None if value is None else _list(asked, {name: value})
        found[title] = [] if page is None else [one for one in page.attempts if one.id != attempt.id]
    return {title: some for title, some in found.items() if some}


def _list(asked: Asked, filters: dict[str, Any]) -> AttemptPage:
    return asked.outbox.attempts.list(**filters, limit=MOST_RELATED)


def as_python(attempt: AttemptInfo, arguments: ShownArguments) -> str | None:
    """The call as one writes it in Python; None where the arguments are not to be read, and empty where it is long: a
    part of it would be another call."""
    if arguments.values is None:
        return None
    given = ", ".join(f"{name}={_literal(masked(value, name))}" for name, value in arguments.values.items())
    return f"{attempt.call}({given})" if len(given) <= LONGEST_CALL else ""


def _literal(value: Any) -> str:
    return f"datetime.fromisoformat({value.isoformat()!r})" if isinstance(value, dt.datetime) else repr(value)


NO_QUERY = Query(())
PAGE = Page("", "/jobs/{kind}/{key:path}", "job.html", read)
