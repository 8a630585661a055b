"""What is stuck outside of queues: claims whose leases are past, attempts that are too late, and those behind others of
their order key. Each question is along an index, and bounded."""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Table, func, literal, select, union_all
from sqlalchemy.orm import Session

from async_task.queue.backlog import MOST_COUNTED
from async_task.queue.predicates import can_expire, has_beaten, is_claimed
from async_task.queue.serving import SILENT_AFTER
from async_task.reading.explanation import command
from async_task.reading.stuck_groups import StuckGroup, counted, jobs_of
from async_task.reading.waiting_sample import UNSERVED_AFTER, WaitingRow, shown_error
from async_task.schema.states import PENDING, is_pending
from async_task.schema.tables import companion_tables

MOST_CLAIMS = 1_000
"""How many claims with a past lease are read at most."""
LONG_PAST = dt.timedelta(minutes=5)
"""For how long the lease of a living worker is past before that counts: a call under the lock of its row needs none."""
LATE_AFTER = dt.timedelta(minutes=1)
"""For how long an attempt is too late before that counts: a sweep ends it sooner."""
MOST_KEYS, MOST_BEHIND = 100, 1_000
"""Behind how many attempts it is looked, and how many are counted behind each."""


def stuck_claims(session: Session, table: Table, now: dt.datetime, limit: int) -> Iterator[StuckGroup]:
    """By worker: orphans, and claims of living workers whose leases have been past for long."""
    c, workers = table.c, companion_tables(table).workers
    silence = dt.timedelta(seconds=SILENT_AFTER)
    beats = select(workers.c.name).where(workers.c.name == c.claimed_by, has_beaten(table, silence)).exists()
    facts = (c.id, c.target, c.method_name, c.claimed_by, c.lease_until, shown_error(table), beats.label("beats"))
    asked: Any = select(*facts).where(*is_claimed(table), c.lease_until <= now).order_by(c.lease_until, c.id)
    rows: Any = session.execute(asked.limit(MOST_CLAIMS)).all()
    found: dict[tuple[str, bool], list[Any]] = defaultdict(list)
    for row in rows:
        if not row.beats or now - row.lease_until >= LONG_PAST:
            found[row.claimed_by, bool(row.beats)].append(row)
    for (worker, beats_still), some in found.items():
        number, is_counted = len(some), len(rows) < MOST_CLAIMS
        jobs, how_many = jobs_of(table.name, some, "lease_until", limit), counted(number, is_counted=is_counted)
        if beats_still:
            words = f"{how_many} claimed by {worker}, which lives, with a lease that has been past for long"
            effect = "Shows whether that worker gets on. If it hangs, end its process: a sweep recovers its claims."
            yield StuckGroup("lease_past", worker, words, number, is_counted, jobs, command("workers"), effect)
        else:
            words = f"{how_many} claimed by {worker}, which has no heartbeat any more"
            effect = "Makes them due again where they stood, and counts a loss for each whose call may have run."
            yield StuckGroup("orphan", worker, words, number, is_counted, jobs, command("sweep"), effect)


def stuck_late(session: Session, table: Table, now: dt.datetime, limit: int) -> Iterator[StuckGroup]:
    """What is past its `expires_at`, and was not ended by a sweep."""
    c = table.c
    late = (*can_expire(table), c.expires_at <= now - LATE_AFTER)
    facts = (c.id, c.target, c.method_name, c.expires_at, shown_error(table))
    rows: Any = session.execute(select(*facts).where(*late).order_by(c.status, c.expires_at).limit(limit)).all()
    if rows:
        some = select(c.id).where(*late).limit(MOST_COUNTED).subquery()
        number = session.scalar(select(func.count()).select_from(some)) or 0
        is_counted = number < MOST_COUNTED
        words = f"{counted(number, is_counted=is_counted)} past their expires_at, which no sweep has ended"
        jobs, effect = jobs_of(table.name, rows, "expires_at", limit), "Ends them as expired. They are not performed."
        yield StuckGroup("overdue", "", words, number, is_counted, jobs, command("sweep"), effect)


def stuck_undecided(session: Session, table: Table, now: dt.datetime, limit: int) -> Iterator[StuckGroup]:
    """By queue, attempts with an order key of which no poll of a worker has decided for long whether they are next."""
    c = table.c
    long_due = (c.status == PENDING, c.arrived, c.due_at <= now - UNSERVED_AFTER)
    facts = (c.id, c.queue, c.target, c.method_name, c.due_at, shown_error(table))
    rows: Any = session.execute(select(*facts).where(*long_due).limit(MOST_CLAIMS)).all()
    by_queue: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        by_queue[row.queue].append(row)
    is_counted = len(rows) < MOST_CLAIMS
    for queue, some in by_queue.items():
        words = (
            f"{counted(len(some), is_counted=is_counted)} in the queue {queue}, of whose order keys nobody has decided"
        )
        effect = "Decides which is next in each order key, and performs here, once, what is due in the queue."
        jobs, batch = jobs_of(table.name, some, "due_at", limit), command("run-batch", "--queue", queue)
        yield StuckGroup("not_served", queue, words, len(some), is_counted, jobs, batch, effect)


def stuck_behind(
    session: Session, table: Table, heads: Iterable[WaitingRow], now: dt.datetime, limit: int
) -> Iterator[StuckGroup]:
    """What waits behind `heads`, the oldest of these: two statements for all."""
    first = {row.order_key: row for row in sorted(heads, key=lambda row: row.due_at) if row.order_key is not None}
    keys = list(first)[:MOST_KEYS]
    if not keys:
        return
    found: Any = session.execute(union_all(*(_num_behind(table, key, now) for key in keys)))
    numbers: dict[str, int] = dict(found.all())
    blocked = [key for key in keys if numbers.get(key)]
    if not blocked:
        return
    behind: dict[str, list[Any]] = defaultdict(list)
    for row in session.execute(union_all(*(_first_behind(table, key, now, limit) for key in blocked))):
        behind[row.order_key].append(row)
    for key in blocked:
        yield _blocked(table, first[key], numbers[key], behind[key], limit)


def _blocked(table: Table, head: WaitingRow, number: int, rows: Sequence[Any], limit: int) -> StuckGroup:
    is_counted = number < MOST_BEHIND
    errors = "" if not head.num_errors else f", after {head.num_errors} error{'' if head.num_errors == 1 else 's'}"
    words = f"{counted(number, is_counted=is_counted)} behind {head.id} in the order key {head.order_key}"
    words += f", which is due {head.due_at:%Y-%m-%d %H:%M:%S} UTC{errors}"
    effect = "Says what keeps the first one. When it has ended, the next one is performed."
    jobs = jobs_of(table.name, rows, "due_at", limit)
    explain = command("explain", str(head.id))
    return StuckGroup("blocked", str(head.order_key), words, number, is_counted, jobs, explain, effect)


def _behind(table: Table, key: str, now: dt.datetime) -> tuple[Any, ...]:
    return is_pending(table), table.c.order_key == key, ~table.c.released, table.c.due_at <= now


def _num_behind(table: Table, key: str, now: dt.datetime) -> Any:
    some = select(table.c.id).where(*_behind(table, key, now)).limit(MOST_BEHIND).subquery()
    return select(literal(key).label("key"), func.count()).select_from(some)


def _first_behind(table: Table, key: str, now: dt.datetime, limit: int) -> Any:
    c = table.c
    facts = (c.order_key, c.id, c.target, c.method_name, c.due_at, shown_error(table))
    found: Any = select(*facts).where(*_behind(table, key, now)).order_by(c.seq).limit(limit)
    return select(found.subquery())
