"""Why an attempt is not performed now: everything that blocks it, from the tables as they are, when that changes next,
and the command that helps."""

import datetime as dt
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, func, select
from sqlalchemy.orm import Session

from async_task.attempts.info import AttemptInfo
from async_task.encryption.ciphers import STORED_HEAD
from async_task.queue.backlog import MOST_COUNTED
from async_task.queue.fenced_writes import PARKED
from async_task.queue.limits import allowance
from async_task.queue.recovery import CRASHED
from async_task.queue.serving import Serving
from async_task.reading.row_problems import UNFIT, KeyProblems, argument_problem
from async_task.schema.states import Status, is_pending, is_waiting
from async_task.schema.tables import companion_tables
from async_task.targets.policies import Limit
from async_task.targets.registry import own_queue, problem_with


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason why an attempt is not performed now. `words`: a sentence. `kind`:

    `ended`, `crash_limit` (failed, since it has killed its process too often), `performing` (a worker has claimed it),
    `lost` (that worker's lease is past), `overdue` (past its `expires_at`), `waits_behind` (an earlier attempt of its
    order key), `not_due`, `key_missing` (this process cannot decrypt it), `unfit` (its arguments no longer fit the
    signature), `paused`, `limited`, `not_served` (no running worker serves its queue), `unknown_target` (no running
    worker knows its target), `suspect` (its last start was lost with its process, which delays it only); or `next`:
    nothing blocks it.

    `remedy`: the command that helps, to be typed as it is; empty where nothing is to be done. `until`: when that next
    changes by itself, by the database's clock; None where that is not known.
    """

    kind: str
    words: str
    remedy: str = ""
    until: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """An attempt, and why it is not performed now; the first reason is the one to look at first."""

    attempt: AttemptInfo
    reasons: tuple[Reason, ...]


def explained(session: Session, table: Table, attempt: AttemptInfo) -> Explanation:
    """What blocks this attempt, by the database's clock; each question is bounded."""
    return Explanation(attempt, tuple(_reasons(session, table, attempt)))


def command(*words: str) -> str:
    """A command of `async-task`, as one types it in a shell."""
    return shlex.join(("async-task", *words))


def _reasons(session: Session, table: Table, attempt: AttemptInfo) -> Iterator[Reason]:
    if attempt.status is not Status.PENDING:
        yield _how_it_ended(attempt)
        return
    own = list(_of_the_row(attempt))
    yield from own
    if any(one.kind in ("performing", "overdue") for one in own):
        return
    blocks = [*_of_the_call(session, table, attempt), *_of_the_queue(session, table, attempt)]
    yield from blocks
    if not own and not blocks:
        yield _next(session, table, attempt)


def _how_it_ended(attempt: AttemptInfo) -> Reason:
    status = attempt.status.value
    if attempt.status is Status.SUCCEEDED:
        return Reason("ended", "it has succeeded")
    if attempt.is_pruned:
        return Reason("ended", f"it has ended as {status} and was pruned: only its token is kept")
    retry = command("retry", str(attempt.id))
    if attempt.status is Status.FAILED and (attempt.last_error or "").startswith(CRASHED):
        return Reason("crash_limit", f"it has ended as failed at the crash limit: {attempt.last_error}", retry)
    return Reason("ended", f"it has ended as {status}: `async-task retry` makes it due again", retry)


def _of_the_row(attempt: AttemptInfo) -> Iterator[Reason]:
    """What the row says by itself."""
    now = attempt.read_at
    if attempt.claim_id is not None:
        yield _claimed(attempt)
        return
    if attempt.expires_at is not None and attempt.expires_at <= now:
        said = "it is past its expires_at: the next sweep expires it"
        yield Reason("overdue", said, command("sweep"))
        return
    if attempt.waits_behind is not None:
        said = f"it waits behind {attempt.waits_behind}, an earlier attempt of its order key {attempt.order_key}"
        yield Reason("waits_behind", said, command("explain", str(attempt.waits_behind)))
    elif not attempt.released:
        said = f"it waits for its turn in the order key {attempt.order_key}: the next poll of a worker decides"
        yield Reason("waits_behind", said, command("run-batch", "--queue", attempt.queue))
    if attempt.due_at > now:
        yield Reason("not_due", _why_later(attempt), command("retry", str(attempt.id)), attempt.due_at)


def _claimed(attempt: AttemptInfo) -> Reason:
    since = "" if attempt.attempted_at is None else f" since {_at(attempt.attempted_at)}"
    if attempt.lease_until is not None and attempt.lease_until > attempt.read_at:
        return Reason("performing", f"{attempt.claimed_by} performs it{since}", command("workers"))
    said = f"{attempt.claimed_by} has claimed it{since}, and its lease is past"
    return Reason("lost", f"{said}: unless it still has the row locked, a sweep releases it", command("sweep"))


def _why_later(attempt: AttemptInfo) -> str:
    if (attempt.last_error or "").startswith(PARKED):
        return "it is parked, uncharged, until it is due: its last error says what is missing"
    if attempt.num_errors:
        return "it is retried when it is due, after its last error"
    # A poll clears the last error; a person who retries or reschedules leaves it.
    if attempt.num_attempts and attempt.last_error is None:
        return "it has asked to be called again when it is due"
    return "it is not due yet"


def _of_the_call(session: Session, table: Table, attempt: AttemptInfo) -> Iterator[Reason]:
    """What this process knows of the key and the arguments."""
    c = table.c
    text: str = session.scalar(select(c.method_args).where(c.id == attempt.id)) or ""
    if (missing := KeyProblems().of(attempt.encryptor, text[:STORED_HEAD])) is not None:
        yield Reason("key_missing", f"its arguments cannot be decrypted here: {missing}", command("keys", "list"))
    unfit = argument_problem(attempt.target, attempt.method_name, attempt.encryptor, text)
    if unfit is None and (attempt.error or "").startswith(UNFIT):
        unfit = attempt.error
    if unfit is not None:
        said = f"its arguments no longer fit the signature: {unfit}"
        yield Reason("unfit", said, command("show", str(attempt.id)))


def _of_the_queue(session: Session, table: Table, attempt: AttemptInfo) -> Iterator[Reason]:
    queues, own = companion_tables(table).queues, own_queue(attempt.target)
    rows: Any = session.execute(select(queues).where(queues.c.name.in_((attempt.queue, own))))
    for row in rows:
        if row.paused_at is not None:
            yield _paused(row, attempt, is_target=row.name == own)
        elif row.name == attempt.queue and (limit := _limited(session, table, row, attempt.read_at)) is not None:
            yield limit
    serving = Serving.read(session, table)
    batch = command("run-batch", "--queue", attempt.queue)
    if not serving.serves(attempt.queue):
        missing = f"no running worker serves its queue {attempt.queue}: {serving.said}"
        yield Reason("not_served", missing if serving.workers else NO_WORKER, batch)
    elif serving.is_unknown(attempt.queue, attempt.target):
        is_known = problem_with(attempt.target, attempt.method_name) is None
        said = f"no running worker that serves its queue {attempt.queue} knows its target {attempt.target}"
        yield Reason("unknown_target", said, batch if is_known else command("check"))
    if attempt.num_crashes or attempt.num_losses:
        said = "its last start was lost with its process: it is performed in a process of its own"
        yield Reason("suspect", said, command("show", str(attempt.id)))


NO_WORKER = "no worker is running: `async-task worker` or the next `async-task run-batch` performs it"


def _paused(row: Any, attempt: AttemptInfo, *, is_target: bool) -> Reason:
    what = f"its target {attempt.target}" if is_target else f"its queue {row.name}"
    by = f" by {row.paused_by}" if row.paused_by else ""
    why = f": {row.pause_reason}" if row.pause_reason else ""
    named = ("--target", attempt.target) if is_target else ("--queue", row.name)
    return Reason("paused", f"{what} is paused{by} since {_at(row.paused_at)}{why}", command("resume", *named))


def _limited(session: Session, table: Table, row: Any, now: dt.datetime) -> Reason | None:
    limit = Limit(row.max_running, row.rate)
    running = 0
    if row.max_running is not None:
        claimed: Any = (is_pending(table), table.c.claim_id.is_not(None), table.c.queue == row.name)
        some = select(table.c.id).where(*claimed, table.c.lease_until.is_not(None)).limit(row.max_running).subquery()
        running = session.scalar(select(func.count()).select_from(some)) or 0
        if running >= row.max_running:
            said = f"its queue {row.name} may have {row.max_running:,} running calls, and has as many"
            return Reason("limited", said, command("list", "--status", "performing", "--queue", row.name))
    allowed = allowance(limit, running=running, tokens=row.tokens, since=now - (row.refilled_at or now))
    if limit.rate is not None and allowed.number == 0:
        said = f"its queue {row.name} starts {limit.rate:g} calls a second, and has started them"
        return Reason("limited", said, command("queues"), now + allowed.after)
    return None


def _next(session: Session, table: Table, attempt: AttemptInfo) -> Reason:
    c, now = table.c, command("run-now", str(attempt.id))
    first: Any = (*is_waiting(table), c.queue == attempt.queue, c.priority == attempt.priority)
    some = select(c.id).where(*first, c.due_at < attempt.due_at).limit(MOST_COUNTED).subquery()
    number = session.scalar(select(func.count()).select_from(some)) or 0
    if not number:
        return Reason("next", "nothing blocks it: a worker takes it next", now)
    more = " or more" if number >= MOST_COUNTED else ""
    return Reason("next", f"nothing blocks it: {number:,}{more} of its queue and priority are due before it", now)


def _at(when: dt.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
