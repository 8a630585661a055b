"""Claiming: each start is counted and committed before the call. Each function is one transaction.

1. `claim_due`: the most urgent due attempts of a queue.
2. `claim_one`: one attempt by its id, or why it cannot be claimed.
3. `claims_under`, `lost_claims`: claims whose answer, or whose worker's knowledge of them, was lost.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, Table

from async_task.database.dialects import chains, probes_laterally
from async_task.database.pipeline import at_once
from async_task.database.transactions import transaction_on
from async_task.outcomes import Busy, Expired, NotDue, NotPending, Outcome
from async_task.queue import claim_statements, predicates, settle_statements
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.claim_statements import Shape
from async_task.queue.expiry import expire_one
from async_task.queue.final_failures import FinalFailure
from async_task.queue.hooks import NO_HOOKS, Hooks
from async_task.queue.ordering import release_in, waits_behind
from async_task.schema.states import Status

Begin: TypeAlias = Callable[[Engine], AbstractContextManager[Connection]]


def claim_due(where: Engine | Connection, table: Table, request: ClaimRequest) -> list[Claim]:
    """Claim the due attempts that `request` asks for, most urgent first; each start is counted.

    Commits before it returns; on a connection that is in a transaction already, the caller commits.
    """
    shape = Shape.of(request)
    if isinstance(where, Connection):
        if where.in_transaction():
            return _claim_due(where, table, request, shape, commits=False)
        if shape.is_one_text and chains(where):
            return _claim_at_once(where, table, request, shape)
    with transaction_on(where) as connection:
        return _claim_due(connection, table, request, shape, commits=True)


def claim_one(
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, attempt_id: uuid.UUID, claim_id: uuid.UUID,
    begin: Begin = Engine.begin, hooks: Hooks = NO_HOOKS,
) -> Claim | Outcome:  # fmt: skip
    """Claim this attempt, or say why not. One that is past its `expires_at` is expired, and reported to the `hooks`.
    `begin`: begins the transaction, in which it may have written something before."""
    given = {"a_claim": claim_id, "a_worker": worker}
    with begin(engine) as connection:
        claims = _claim_one(connection, table, lease, attempt_id, given)
        if not claims and _has_released_its_key(connection, table, attempt_id):
            claims = _claim_one(connection, table, lease, attempt_id, given)
        found = claims[0] if claims else _why_not(connection, table, attempt_id)
    if isinstance(found, FinalFailure):
        found.log()
        hooks.ended(found)
        return Expired(attempt_id, found.reason)
    return found


def claims_under(engine: Engine, table: Table, claim_id: uuid.UUID) -> list[Claim]:
    """What is claimed under this id: for a claim whose COMMIT was not answered."""
    with engine.begin() as connection:
        return _claims(connection.execute(claim_statements.under(table), {"a_claim": claim_id}).all())


def lost_claims(engine: Engine, table: Table, worker: str) -> list[Claim]:
    """Claims of this worker whose lease is past: it has lost them, unless their rows are locked.

    No other worker recovers them while this one lives: it has to find and release them itself.
    """
    with engine.begin() as connection:
        return _claims(connection.execute(claim_statements.lost_claims(table), {"a_worker": worker}).all())


def claims_of(engine: Engine, table: Table, worker: str) -> list[Claim]:
    """All claims of this worker."""
    with engine.begin() as connection:
        return _claims(connection.execute(claim_statements.claims_of(table), {"a_worker": worker}).all())


def _claim_at_once(connection: Connection, table: Table, request: ClaimRequest, shape: Shape) -> list[Claim]:
    # The statement brings its own BEGIN and COMMIT. A transaction of SQLAlchemy's around it, which has nothing left to
    # do, would cost 0.1 ms of the time from a notification to the call.
    try:
        return _claim_due(connection, table, request, shape, commits=True)
    except BaseException:
        connection.invalidate()  # SQLAlchemy does not know that its driver may be in a transaction
        raise


def _claim_due(
    connection: Connection, table: Table, request: ClaimRequest, shape: Shape, *, commits: bool
) -> list[Claim]:
    wanted = _wanted(request)
    given = {"a_claim": request.claim_id, "a_worker": request.worker}
    if not probes_laterally(connection.dialect):
        ids = _lock_due(connection, table, shape, wanted, request.limit)
        return _claim_locked(connection, table, request.lease, ids, given)
    number = claim_statements.written_number(request.limit)
    claim = claim_statements.claim(table, request.lease, shape, number)
    values = wanted | given | ({"a_number": request.limit} if number is None else {})
    if not shape.is_one_text:
        return _claims(connection.execute(claim, values).all(), request.known)
    # With its BEGIN and COMMIT: one way to the server and back instead of three, a third less for an empty claim.
    return _claims(at_once(connection, claim, values, commits=commits).rows, request.known)


def _wanted(request: ClaimRequest) -> dict[str, Any]:
    """The parameters by which the statements of this request find what is due."""
    wanted: dict[str, Any] = {"a_queue": request.queue}
    if request.began is not None:
        wanted["since"] = request.began
    if request.targets:
        wanted["some_targets"] = request.targets
    wanted |= request.left_out.parameters
    if request.marks:
        wanted["marks"] = list(request.marks)
    return wanted


def _lock_due(
    connection: Connection, table: Table, shape: Shape, wanted: dict[str, Any], limit: int
) -> list[uuid.UUID]:
    """The ids of up to `limit` due attempts, most urgent first, locked: one statement for each priority in use."""
    ids: list[uuid.UUID] = []
    flags = connection.execute(claim_statements.priorities_due(table, shape), wanted).one()
    for priority in (number for number, is_due in zip(predicates.PRIORITIES, flags, strict=True) if is_due):
        if len(ids) < limit:
            asked = wanted | {"a_priority": priority, "a_number": limit - len(ids)}
            ids += connection.scalars(claim_statements.lock_due(table, shape), asked)
    return ids


def _claim_one(
    connection: Connection, table: Table, lease: dt.timedelta, attempt_id: uuid.UUID, given: dict[str, Any]
) -> list[Claim]:
    asked = {"an_id": attempt_id}
    if probes_laterally(connection.dialect):
        return _claims(connection.execute(claim_statements.claim_one(table, lease), given | asked).all())
    ids = list(connection.scalars(claim_statements.lock_one(table), asked))
    return _claim_locked(connection, table, lease, ids, given)


def _claim_locked(
    connection: Connection, table: Table, lease: dt.timedelta, ids: list[uuid.UUID], given: dict[str, Any]
) -> list[Claim]:
    if not ids:
        return []
    connection.execute(claim_statements.claim_locked(table, lease), given | {"ids": ids})
    claimed = connection.execute(claim_statements.claimed(table), {"a_claim": given["a_claim"], "ids": ids})
    return _claims(claimed.all())


def _claims(rows: Sequence[Any], known: tuple[Any, ...] = ()) -> list[Claim]:
    """The claims of these rows, most urgent first. `known`: their last fields, which the rows do not have."""
    made = [Claim(*row, *known) for row in rows]
    made.sort(key=_urgency)
    return made


_urgency = attrgetter("priority", "due_at", "id.int")  # comparing UUIDs runs Python code


def _has_released_its_key(connection: Connection, table: Table, attempt_id: uuid.UUID) -> bool:
    """Whether an attempt of its order key was released just now: perhaps this one, if it has just arrived."""
    row = connection.execute(settle_statements.state(table, attempt_id)).first()
    if row is None or row.status != Status.PENDING or row.released:
        return False
    return bool(release_in(connection, table, [row.order_key]))


def _why_not(connection: Connection, table: Table, attempt_id: uuid.UUID) -> Outcome | FinalFailure:
    row = connection.execute(settle_statements.state(table, attempt_id)).first()
    if row is None:
        return NotPending(attempt_id, None)
    if row.status != Status.PENDING:
        return NotPending(attempt_id, row.status)
    is_claimed = row.claim_id is not None
    if row.is_overdue and not is_claimed:
        return expire_one(connection, table, attempt_id) or Busy(attempt_id, None, None)
    if is_claimed or (row.is_due and row.released):
        return Busy(attempt_id, row.claimed_by, row.attempted_at if is_claimed else None)
    behind = None if row.released else waits_behind(connection, table, row.order_key)
    return NotDue(attempt_id, row.due_at, behind)
