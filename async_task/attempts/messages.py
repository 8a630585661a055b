"""Messages to the user of a job: `AsyncTask(on_message=...)` is told of them after the commit of what causes them.

1. A note was added, or a job was canceled: the event of that is the record of the message.
2. A job fails for a day, or has succeeded after such a message: an event of kind `message` is the record. It is written
   in a transaction that nobody else has for this job, so that each is sent once.

No message holds an error, a reason or the text of a note: it goes to people who must look those up.
"""

import datetime as dt
import enum
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import Table, insert, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import DetachedInstanceError

from async_task.database.clock import clock_now
from async_task.database.sessions import routed_as_writes
from async_task.error_text import describe, storable
from async_task.errors import UnknownTarget
from async_task.queue.hooks import is_interrupt
from async_task.schema.audit import current_actor
from async_task.schema.jobs import Job, attempts_of, job_of
from async_task.schema.tables import table_of
from async_task.targets.registry import target_named
from async_task.targets.row_target import RowTarget
from async_task.targets.target import call_name
from async_task.wakeup.after_commit import call_after_commit

logger = logging.getLogger("async_task")
FAILING_AFTER = dt.timedelta(hours=24)
"""How long after its submission a job is said to be failing."""
MESSAGE = "message"
"""The kind of an event that records a message; its `message` is the kind of that."""
LONGEST_LABEL = 255


class MessageKind(enum.StrEnum):
    """What a message to the user of a job is about."""

    NOTE_ADDED = "note_added"
    FAILING = "failing"
    RECOVERED = "recovered"
    CANCELED = "canceled"


OnMessage: TypeAlias = Callable[[Any, MessageKind, str], object]
_TEXTS = {
    MessageKind.NOTE_ADDED: "{actor} added a note to {label}.",
    MessageKind.FAILING: "{label} has not succeeded for 24 hours, and is failing.",
    MessageKind.RECOVERED: "{label} was failing, and has succeeded now.",
    MessageKind.CANCELED: "{label} was canceled by {actor}.",
}
_hooks: dict[Table, OnMessage] = {}


def set_message_hook(attempts: Table, hook: OnMessage | None) -> None:
    """From now on this process tells `hook` of the messages about jobs of these attempts; None: nobody."""
    if hook is None:
        _hooks.pop(attempts, None)
    else:
        _hooks[attempts] = hook


def has_message_hook(attempts: Table) -> bool:
    return attempts in _hooks


def row_target_named(name: str) -> RowTarget | None:
    """The target of this name, if people are told of its rows and not of its attempts."""
    try:
        thing = target_named(name).thing
    except UnknownTarget:
        return None
    return thing if isinstance(thing, RowTarget) else None


def send_message(session: Session, row: Any, kind: MessageKind) -> bool:
    """Tell the user of the job `row` after the commit of this transaction. False if the job has no user, or if this
    process has no hook."""
    job = job_of(row)
    hook = _hooks.get(job.attempts)
    user = None if hook is None else user_of(row)
    if hook is None or user is None:
        return False
    label = label_of(row)
    text = _TEXTS[kind].format(label=label, actor=current_actor() or "somebody")
    call_after_commit(session, job.mapper, partial(_send, hook, user, kind, text, label))
    return True


def message_about_outcome(session: Session, row: Any, age: dt.timedelta, *, has_failed: bool) -> MessageKind | None:
    """Call this in the transaction that writes how a try of the job `row` has ended; only one such transaction of a job
    may be open at a time. `age`: since the job was last submitted. Returns what is sent after the commit.

    Executes a statement only if the job is older than FAILING_AFTER and this process has a hook.
    """
    if age < FAILING_AFTER or not has_message_hook(attempts_of(type(row))):
        return None
    job = job_of(row)
    with routed_as_writes(session, job.mapper) as connection:
        kind = due_message(age, _last_sent(connection, job, age), has_failed=has_failed)
        if kind is None or not send_message(session, row, kind):
            return None
        values = {"job_type": job.type, "job_id": job.id, "kind": MESSAGE, "message": kind.value}
        connection.execute(insert(job.events).values(values))
    return kind


def due_message(age: dt.timedelta, last: MessageKind | None, *, has_failed: bool) -> MessageKind | None:
    """What is to be sent after a try. `last`: the last message about this submission."""
    if has_failed and last is None and age >= FAILING_AFTER:
        return MessageKind.FAILING
    if not has_failed and last is MessageKind.FAILING:
        return MessageKind.RECOVERED
    return None


def label_of(row: Any) -> str:
    """What a message calls this job: the call of an attempt with its id; the `label` of another row, or else its class
    and its key."""
    job = job_of(row)
    if table_of(row) is job.attempts:
        try:
            return f"{call_name(row.target, row.method_name)} ({job.id})"
        except DetachedInstanceError:  # its columns are expired
            return f"attempt {job.id}"
    label = _asked(row, "label")
    if not (isinstance(label, str) and label.strip()):
        label = f"{type(row).__name__} {job.id}"
    return storable(" ".join(label.split()))[:LONGEST_LABEL]


def _last_sent(connection: Any, job: Job, age: dt.timedelta) -> MessageKind | None:
    c = job.events.c
    mine = (c.job_type == job.type, c.job_id == job.id, c.kind == MESSAGE)
    recent = c.created_at >= clock_now(-age.total_seconds())
    last = connection.scalar(select(c.message).where(*mine, recent).order_by(c.id.desc()).limit(1))
    return None if last is None else MessageKind(last)


def user_of(row: Any) -> Any:
    """Whose job it is, as the user's class says; None: nobody's."""
    return next((user for name in ("asyncable_user", "message_user") if (user := _asked(row, name)) is not None), None)


def _asked(row: Any, name: str) -> Any:
    """An attribute or a method of the user's; None if there is none, or if it raises."""
    try:
        found = getattr(row, name, None)
        return found() if callable(found) else found
    except Exception as error:
        logger.error("%s of a %s raised %s", name, type(row).__name__, describe(error).summary)
        return None


def _send(hook: OnMessage, user: Any, kind: MessageKind, text: str, label: str) -> None:
    try:
        hook(user, kind, text)
    except BaseException as raised:
        if is_interrupt(raised):
            raise
        logger.error("on_message raised %s for %s (%s)", describe(raised).summary, label, kind.value)
