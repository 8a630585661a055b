"""Claiming: taking attempts that are due, each start counted and committed before any call; and saying why one cannot
be taken. Each function is one transaction."""

import datetime as dt
import uuid
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Engine, Table, select, update

from async_task.database.dialects import probes_laterally
from async_task.database.pipeline import at_once
from async_task.database.transactions import transaction_on
from async_task.outcomes import Busy, Expired, NotDue, NotPending, Outcome
from async_task.queue import claim_statements, predicates
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.ordering import release_in, waits_behind
from async_task.schema.audit import record
from async_task.schema.states import Status, Values, claiming, ending, is_overdue, is_pending


def claim_due(where: Engine | Connection, table: Table, request: ClaimRequest) -> list[Claim]:
    """Claim the due attempts that `request` asks for, most urgent first; each start is counted.

    Commits before it returns; on a connection that is in a transaction already, the caller commits.
    """
    if isinstance(where, Connection) and where.in_transaction():
        return _claim(where, table, request, commits=False)
    with transaction_on(where) as connection:
        return _claim(connection, table, request, commits=True)


def claim_one(
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, attempt_id: uuid.UUID,
    claim_id: uuid.UUID,
) -> Claim | Outcome:  # fmt: skip
    """Take this attempt, or say why not. One that is past its `expires_at` is expired."""
    values = claiming(table, claim_id, worker, lease)
    with engine.begin() as connection:
        claims = _take_one(connection, table, attempt_id, values)
        if not claims and _has_lined_up(connection, table, attempt_id):
            claims = _take_one(connection, table, attempt_id, values)
        return claims[0] if claims else _why_not(connection, table, attempt_id)


def claims_under(engine: Engine, table: Table, claim_id: uuid.UUID) -> list[Claim]:
    """What is claimed under this id: for a claim whose COMMIT was not answered."""
    with engine.begin() as connection:
        return _claims(connection.execute(predicates.under(table, claim_id)).all())


def lost_claims(engine: Engine, table: Table, worker: str) -> list[Claim]:
    """Claims of this worker whose lease is past: unless their rows are locked, it has lost sight of them."""
    with engine.begin() as connection:
        return _claims(connection.execute(claim_statements.lost_claims(table), {"a_worker": worker}).all())


def _claim(connection: Connection, table: Table, request: ClaimRequest, *, commits: bool) -> list[Claim]:
    shape = claim_statements.Shape.of(request)
    wanted = _wanted(request)
    given = {"a_claim": request.claim_id, "a_worker": request.worker}
    if probes_laterally(connection.dialect):
        claim = claim_statements.claim(table, request.lease, shape)
        values = wanted | given | {"a_number": request.limit}
        if request.targets or request.besides:  # its text depends on how many of these there are
            return _claims(connection.execute(claim, values).all())
        return _claims(at_once(connection, claim, values, commits=commits).rows)
    ids = _lock_due(connection, table, shape, wanted, request.limit)
    if not ids:
        return []
    connection.execute(claim_statements.take_ids(table, request.lease), given | {"ids": ids})
    taken = connection.execute(claim_statements.taken(table), {"a_claim": request.claim_id, "ids": ids})
    return _claims(taken.all())


def _wanted(request: ClaimRequest) -> dict[str, Any]:
    """The parameters by which the statements of this request find what is due."""
    wanted: dict[str, Any] = {"a_queue": request.queue}
    if request.began is not None:
        wanted["since"] = request.began
    if request.targets:
        wanted["some_targets"] = request.targets
    if request.besides:
        wanted["other_calls"] = request.besides
    if request.marks:
        wanted["marks"] = list(request.marks)
    return wanted


def _lock_due(
    connection: Connection, table: Table, shape: claim_statements.Shape, wanted: dict[str, Any], limit: int
) -> list[uuid.UUID]:
    """The ids of up to `limit` due attempts, most urgent first, locked: one statement for each priority in use."""
    ids: list[uuid.UUID] = []
    flags = connection.execute(claim_statements.priorities_due(table, shape), wanted).one()
    for priority in (number for number, is_due in zip(predicates.PRIORITIES, flags, strict=True) if is_due):
        if len(ids) < limit:
            asked = wanted | {"a_priority": priority, "a_number": limit - len(ids)}
            ids += connection.scalars(claim_statements.due_in_priority(table, shape), asked)
    return ids


def _claims(rows: Sequence[Any]) -> list[Claim]:
    return sorted(map(Claim._make, rows), key=_urgency)


_urgency = attrgetter("priority", "due_at", "id")


def _take(connection: Connection, table: Table, found: Any, values: Values) -> list[Claim]:
    return _claims(connection.execute(predicates.take(table, found, values)).all())


def _take_ids(connection: Connection, table: Table, ids: list[uuid.UUID], values: Values) -> list[Claim]:
    if not ids:
        return []
    connection.execute(predicates.take_ids(table, ids, values))
    return _claims(connection.execute(predicates.taken(table, values["claim_id"], ids)).all())


def _take_one(connection: Connection, table: Table, attempt_id: uuid.UUID, values: Values) -> list[Claim]:
    found = predicates.by_id(table, attempt_id)
    if probes_laterally(connection.dialect):
        return _take(connection, table, found, values)
    return _take_ids(connection, table, list(connection.scalars(found)), values)


def _has_lined_up(connection: Connection, table: Table, attempt_id: uuid.UUID) -> bool:
    """Whether anything was released of the key of an attempt that nobody had looked at yet."""
    row = connection.execute(predicates.standing(table, attempt_id)).first()
    if row is None or row.status != Status.PENDING or row.released:
        return False
    return release_in(connection, table, [row.order_key]) > 0


def _why_not(connection: Connection, table: Table, attempt_id: uuid.UUID) -> Outcome:
    row = connection.execute(predicates.standing(table, attempt_id)).first()
    if row is None:
        return NotPending(attempt_id, None)
    if row.status != Status.PENDING:
        return NotPending(attempt_id, row.status)
    is_held = row.claim_id is not None
    if row.is_overdue and not is_held:
        return _expire_one(connection, table, attempt_id)
    if is_held or (row.is_due and row.released):
        return Busy(attempt_id, row.claimed_by, row.attempted_at if is_held else None)
    behind = None if row.released else waits_behind(connection, table, row.order_key)
    return NotDue(attempt_id, row.due_at, behind)


def _expire_one(connection: Connection, table: Table, attempt_id: uuid.UUID) -> Outcome:
    unheld = (table.c.id == attempt_id, is_pending(table), table.c.claim_id.is_(None))
    free = select(table.c.id).where(*unheld, is_overdue(table))
    if connection.scalar(free.with_for_update(skip_locked=True, key_share=True)) is None:
        return Busy(attempt_id, None, None)
    values = ending(table, Status.EXPIRED, last_error=table.c.last_error, crashed=True)
    connection.execute(update(table).where(*unheld).values(values))
    record(connection, table, attempt_id, "expired", "past its expires_at")
    release_in(connection, table, connection.scalars(predicates.keys_of(table, [attempt_id])))
    return Expired(attempt_id, "past its expires_at")
