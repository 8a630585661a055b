"""What is written about claims outside of their calls; each write is fenced by the claim id.

1. Lock: `lock_claims`, `succeed_and_lock`.
2. Write outcomes: `write_outcome`, `write_outcomes`, `release_and_succeed`, `release_succeed_and_lock`.
3. Release or park what is not performed: `release_claims`, `release_to_others`, `release_abandoned`,
   `release_to_queue`, `park`.
4. `extend_lease`, and `read_state` for an outcome whose COMMIT was not answered.

A function that is given a connection writes in its transaction, which the caller commits.
"""

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Table

from async_task.database.dialects import bounds_transactions, counts_locked_rows
from async_task.database.driver_errors import sqlstate_of
from async_task.database.pipeline import (
    COMMIT,
    COMMIT_AND_BEGIN,
    Answer,
    Step,
    StepFailed,
    at_once,
    in_turn,
    try_in_turn,
)
from async_task.database.transactions import transaction_on
from async_task.error_text import Failure
from async_task.errors import ClaimLost
from async_task.outcomes import Decision
from async_task.queue import settle_statements
from async_task.queue.claim import Claim
from async_task.queue.fingerprints import fingerprint_of
from async_task.queue.settle_statements import Ids
from async_task.schema.audit import record
from async_task.schema.states import (
    Status,
    Values,
    ending,
    is_pending,
    parking,
    releasing_started,
    releasing_to_queue,
    releasing_unstarted,
    retrying,
)
from async_task.wakeup.notify import notify_sleepers

PARKED = "parked: "
"""How the `last_error` of an attempt begins that is parked."""


class OutcomeWrite(NamedTuple):
    """An outcome to be written."""

    claim: Claim
    decision: Decision
    failure: Failure | None


def lock_claims(
    connection: Connection, table: Table, claims: Sequence[Claim], limit: dt.timedelta | None, *,
    savepoint: str | None = None,
) -> set[uuid.UUID]:  # fmt: skip
    """Lock the rows of these claims, all of one claim id; then set a savepoint, if one is named. PostgreSQL ends the
    transaction when it idles, or a statement of it runs, for longer than `limit`; None: its limits stay as they are.
    Returns the ids of lost claims."""
    given, form = _parameters(connection, claims), Ids.of(connection.dialect, len(claims))
    then = None if savepoint is None else f"SAVEPOINT {savepoint}"
    if limit is None or not counts_locked_rows(connection.dialect):
        rows = at_once(connection, settle_statements.lock(table, form), given, then=then).rows
        return {claim.id for claim in claims}.difference(row[0] for row in rows)
    given |= _limits(limit)
    lock = settle_statements.lock_and_count(table, form, is_bounded=bounds_transactions(connection.dialect))
    (row,) = at_once(connection, lock, given, then=then).rows
    return _lost(connection, table, claims, row[0])


def succeed_and_lock(
    connection: Connection, table: Table, succeeded: Sequence[Claim], claims: Sequence[Claim], limit: dt.timedelta
) -> tuple[int, set[uuid.UUID]]:
    """Write that the first have succeeded, commit, and lock the others in the transaction that follows, as
    `lock_claims` does; all of one claim id. Only where `connection` `chains`.

    One way to the server and back instead of four. If any of the three steps fails, nothing is known of the first.
    Returns how many of the first were still ours, and the ids of lost claims among the others.
    """
    form, done_form = (Ids.of(connection.dialect, len(some)) for some in (claims, succeeded))
    lock = settle_statements.lock_and_count(table, form, is_bounded=bounds_transactions(connection.dialect))
    locked = _parameters(connection, claims) | _limits(limit)
    done, _, found = in_turn(
        connection,
        Step(settle_statements.succeed(table, done_form), _parameters(connection, succeeded)),
        COMMIT_AND_BEGIN,
        Step(lock, locked),
    )
    return done.number, _lost(connection, table, claims, found.rows[0][0])


def write_outcome(
    where: Engine | Connection, table: Table, claim: Claim, decision: Decision, failure: Failure | None
) -> bool:
    """Write an outcome, and the event of what was raised. On an engine: in a transaction of its own. False when
    somebody else was first: nothing was written."""
    if isinstance(where, Engine):
        with where.begin() as connection:
            return write_outcome(connection, table, claim, decision, failure)
    if decision.status is Status.SUCCEEDED:
        succeed = settle_statements.succeed(table, Ids.ONE)
        return where.execute(succeed, _parameters(where, [claim])).rowcount == 1
    if not _is_changed(where, table, claim, _values(table, decision, failure)):
        return False
    if failure is not None:
        message = f"{failure.summary} ({decision.reason})" if decision.reason else failure.summary
        told = {"detail": failure.trace, "fingerprint": fingerprint_of(claim.target, failure)}
        record(where, table, claim.id, "error", message, number=claim.number, **told)
    elif decision.status in (Status.FAILED, Status.EXPIRED):
        record(where, table, claim.id, decision.status.value, decision.reason, number=claim.number)
    return True


def write_outcomes(
    connection: Connection, table: Table, succeeded: Sequence[Claim], others: Sequence[OutcomeWrite] = (),
    unstarted: Sequence[Claim] = (),
) -> bool:  # fmt: skip
    """Write that these claims have `succeeded`, all of one claim id, and the outcomes of `others`; release those that
    are `unstarted`, likewise. Only the COMMIT may follow.

    False when somebody else was first with one of them. The caller then commits no more, and settles each by itself:
    on PostgreSQL the others may be committed already, as the COMMIT goes to the server with the UPDATE.
    """
    is_all = not (others or unstarted)
    if succeeded:
        succeed = settle_statements.succeed(table, Ids.of(connection.dialect, len(succeeded)))
        if at_once(connection, succeed, _parameters(connection, succeeded), commits=is_all).number != len(succeeded):
            return False
    if unstarted:
        connection.execute(_release(connection, table, unstarted), _parameters(connection, unstarted))
    return all(write_outcome(connection, table, *one) for one in others)


class NotReleased(Exception):
    """A savepoint is not there, or its transaction has failed or is lost: nothing is committed. `error`: what the
    database raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__("the savepoint was not released")
        self.error = error


def release_and_succeed(connection: Connection, table: Table, claim: Claim, savepoint: str, *, commits: bool) -> None:
    """Release the savepoint, write that this claim has succeeded and, if it `commits`, commit, in one round trip. Only
    where `pipelines(connection)`.

    Raises NotReleased; ClaimLost, if somebody else was first: then the transaction has failed, and nothing is
    committed; and what the database raises: after that nobody knows whether it was committed.
    """
    _release_and_succeed(connection, table, claim, savepoint, [COMMIT] if commits else [])


def release_succeed_and_lock(
    connection: Connection, table: Table, claim: Claim, following: Claim, limit: dt.timedelta, savepoint: str
) -> bool:
    """As `release_and_succeed` with the commit; then lock the row of `following` and set the savepoint in the next
    transaction, as `lock_claims` does, in the same round trip. Only where `connection` `chains`.

    Returns whether that row is locked; not if it is no longer ours, or if somebody else has locked it.
    """
    # A lock that waits would keep the answer to the COMMIT waiting.
    is_bounded = bounds_transactions(connection.dialect)
    lock = settle_statements.lock_and_count(table, Ids.ONE, is_bounded=is_bounded, waits=False)
    locked = Step(lock, _parameters(connection, [following]) | _limits(limit))
    ends = (COMMIT_AND_BEGIN, locked, Step(f"SAVEPOINT {savepoint}"))
    *_, found, _ = _release_and_succeed(connection, table, claim, savepoint, ends)
    return bool(found.rows[0][0])


def _release_and_succeed(
    connection: Connection, table: Table, claim: Claim, savepoint: str, ends: Sequence[Step]
) -> list[Answer]:
    """`ends`: what follows in the same round trip, first a COMMIT. Raises as `release_and_succeed`."""
    succeed = Step(settle_statements.succeed_or_fail(table), _parameters(connection, [claim]))
    try:
        return try_in_turn(connection, Step(f"RELEASE SAVEPOINT {savepoint}"), succeed, *ends)
    except StepFailed as failed:
        error: Any = failed.error
        if failed.number == 0 and not (ends and error.connection_invalidated):
            raise NotReleased(error) from error
        if failed.number == 1 and sqlstate_of(error.orig) == settle_statements.NO_ROW:
            raise ClaimLost("the claim was lost, or the target changed the row of its own attempt") from None
        raise error from failed.__cause__


def release_claims(where: Engine | Connection, table: Table, claims: Sequence[Claim]) -> None:
    """Release claims of one claim id that were not started, uncharged, where they stood."""
    with transaction_on(where) as connection:
        connection.execute(_release(connection, table, claims), _parameters(connection, claims))


def release_to_others(engine: Engine, table: Table, claims: Sequence[Claim]) -> None:
    """The same, of calls that only other processes can make: sleeping workers are notified."""
    with engine.begin() as connection:
        connection.execute(_release(connection, table, claims), _parameters(connection, claims))
        notify_sleepers(connection, table, Counter(one.queue for one in claims))


def release_abandoned(engine: Engine, table: Table, claims: Sequence[Claim], *, started: bool = True) -> set[uuid.UUID]:
    """Release claims where they stood, although their calls may still run; uncharged where they were not `started`.
    Locked rows are skipped. Returns the ids of claims that are ours no longer."""
    reason = "its worker was stopped in the middle of the call"
    done: set[uuid.UUID] = set()
    for claim in claims:
        with engine.begin() as connection:
            if connection.execute(settle_statements.lock_one(table, claim)).first() is not None:
                values = releasing_started(reason) if started else releasing_unstarted(table)
                connection.execute(settle_statements.change_one(table, claim, values))
                if started:
                    record(connection, table, claim.id, "parked", reason, number=claim.number)
            row = connection.execute(settle_statements.state(table, claim.id)).first()
            if row is None or row.claim_id != claim.claim_id:
                done.add(claim.id)
    return done


def release_to_queue(engine: Engine, table: Table, claims: Sequence[Claim], queue: str) -> int:
    """Release claims that were not started, uncharged, into another queue. Returns how many were still ours."""
    mine = (table.c.id.in_([one.id for one in claims]), table.c.claim_id.in_({one.claim_id for one in claims}))
    with engine.begin() as connection:
        change = settle_statements.change(table, releasing_to_queue(table, queue)).where(*mine, is_pending(table))
        return connection.execute(change).rowcount


def park(engine: Engine, table: Table, claim: Claim, after: dt.timedelta, reason: str, *, started: bool) -> bool:
    """Release an attempt uncharged, due again `after` from now. A start is uncounted only if the call had not begun:
    else the world outside may have seen it. The event is written when the reason is new, not each time."""
    text = f"{PARKED}{reason}"
    with engine.begin() as connection:
        is_ours = _is_changed(connection, table, claim, parking(table, after, reason=text, started=started))
        if is_ours and claim.last_error != text:
            record(connection, table, claim.id, "parked", reason, number=claim.number)
        return is_ours


def extend_lease(connection: Connection, table: Table, claim: Claim, lease: dt.timedelta) -> None:
    """Let the claim hold without a lock for another lease."""
    extend = settle_statements.extend(table, Ids.ONE, lease)
    connection.execute(extend, _parameters(connection, [claim]))


def read_state(engine: Engine, table: Table, attempt_id: uuid.UUID) -> Any:
    """The row of `settle_statements.state`; None if there is no such attempt."""
    with engine.begin() as connection:
        return connection.execute(settle_statements.state(table, attempt_id)).first()


def _release(connection: Connection, table: Table, claims: Sequence[Claim]) -> Any:
    return settle_statements.release(table, Ids.of(connection.dialect, len(claims)))


def _parameters(connection: Connection, claims: Sequence[Claim]) -> dict[str, Any]:
    """Of a statement about claims of one claim id."""
    ids: Any = [one.id for one in claims]
    match Ids.of(connection.dialect, len(claims)):
        case Ids.ONE:
            ids = ids[0]
        case Ids.ARRAY:  # the array's text, written by us: a quarter of the time
            ids = f"{{{','.join([one.hex for one in ids])}}}"
        case Ids.LIST:
            pass
    return {"ids": ids, "a_claim": claims[0].claim_id}


def _limits(limit: dt.timedelta) -> dict[str, str]:
    """Of a transaction in which a call may take as long as `limit`. As a whole it may take twice that, and 10 s: other
    calls of its group, and the commit, follow."""
    return {"a_limit": _milliseconds(limit), "a_longest": _milliseconds(2 * limit + dt.timedelta(seconds=10))}


LONGEST_LIMIT = 2**31 - 1
"""The longest that PostgreSQL takes, in milliseconds: 24 days."""


def _milliseconds(limit: dt.timedelta) -> str:
    return str(min(LONGEST_LIMIT, max(1, int(limit.total_seconds() * 1000))))


def _lost(connection: Connection, table: Table, claims: Sequence[Claim], number: int) -> set[uuid.UUID]:
    """The ids of those that were not locked; asked for only when fewer than all were."""
    if number == len(claims):
        return set()
    ours = settle_statements.ours(table, Ids.of(connection.dialect, len(claims)))
    return {claim.id for claim in claims}.difference(connection.scalars(ours, _parameters(connection, claims)))


def _values(table: Table, decision: Decision, failure: Failure | None) -> Values:
    summary = failure.summary if failure else None
    if decision.after is not None:
        said = f"{summary} ({decision.reason})" if summary and decision.reason else summary
        return retrying(table, decision.after, said, charged=decision.charged, expires_at=decision.expires_at)
    text = ": ".join(part for part in (decision.reason, summary) if part) or None
    return ending(table, decision.status, last_error=text, charged=decision.charged)


def _is_changed(connection: Connection, table: Table, claim: Claim, values: Values) -> bool:
    """False when somebody else was first."""
    return connection.execute(settle_statements.change_one(table, claim, values)).rowcount == 1
