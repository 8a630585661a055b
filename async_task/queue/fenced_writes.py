"""What is done to attempts that are claimed, outside of their calls. Each function is one transaction, or part of its
caller's."""

import datetime as dt
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Table

from async_task.database.pipeline import COMMIT_AND_BEGIN, Step, at_once, in_turn
from async_task.database.transactions import transaction_on
from async_task.error_text import Failure
from async_task.outcomes import Decision
from async_task.queue import claim_statements, predicates
from async_task.queue.claim import Claim
from async_task.schema.audit import record
from async_task.schema.states import Status, Values, ending, parking, releasing_started, releasing_unstarted, retrying


class OutcomeWrite(NamedTuple):
    """What is to be written of one performing."""

    claim: Claim
    decision: Decision
    failure: Failure | None


def settle(engine: Engine, table: Table, claim: Claim, decision: Decision, failure: Failure | None) -> bool:
    """Write the outcome, in a transaction of its own. False when somebody else was first: nothing was written."""
    with engine.begin() as connection:
        return write_outcome(connection, table, claim, decision, failure)


def write_outcome(
    connection: Connection, table: Table, claim: Claim, decision: Decision, failure: Failure | None
) -> bool:
    """The same in the transaction of `connection`, and the event of what was raised."""
    if decision.status is Status.SUCCEEDED:
        succeed = claim_statements.succeed(table, connection.dialect.name)
        return bool(connection.execute(succeed, _of_all(connection, [claim])).rowcount == 1)
    if not _hits(connection, predicates.settle(table, claim.id, claim.claim_id, _values_of(table, decision, failure))):
        return False
    if failure is not None:
        message = f"{failure.summary} ({decision.reason})" if decision.reason else failure.summary
        record(connection, table, claim.id, "error", message, number=claim.number, detail=failure.trace)
    elif decision.status in (Status.FAILED, Status.EXPIRED):
        record(connection, table, claim.id, decision.status.value, decision.reason, number=claim.number)
    return True


def lock_all(
    connection: Connection, table: Table, claims: Sequence[Claim], limit: dt.timedelta, *, savepoint: str | None = None
) -> set[uuid.UUID]:
    """Lock the rows of these claims, which were taken together; then set a savepoint, if there is to be one. PostgreSQL
    ends the transaction when it idles, or one of its statements runs, longer than `limit`. Answers the ids of those
    that no longer stand: mostly none."""
    name, given = connection.dialect.name, _of_all(connection, claims)
    is_counted = name == "postgresql"
    if is_counted:
        given["a_limit"] = _milliseconds(limit)
    then = None if savepoint is None else f"SAVEPOINT {savepoint}"
    rows = at_once(connection, claim_statements.lock(table, name), given, then=then).rows
    if is_counted:
        return _lost(connection, table, claims, rows[0][0])
    return {claim.id for claim in claims} - {row[0] for row in rows}


def succeed_and_lock(
    connection: Connection, table: Table, succeeded: Sequence[Claim], claims: Sequence[Claim], limit: dt.timedelta
) -> tuple[int, set[uuid.UUID]]:
    """Write that the first have succeeded, commit, and in the transaction that follows lock the others, as `lock_all`:
    all of them were taken together. Only where `connection` `chains`. Answers how many of the first were still ours,
    and the ids of the others that no longer stand."""
    name = connection.dialect.name
    locked = _of_all(connection, claims) | {"a_limit": _milliseconds(limit)}
    done, _, found = in_turn(
        connection,
        Step(claim_statements.succeed(table, name), _of_all(connection, succeeded)),
        COMMIT_AND_BEGIN,
        Step(claim_statements.lock(table, name), locked),
    )
    return done.number, _lost(connection, table, claims, found.rows[0][0])


def _milliseconds(limit: dt.timedelta) -> str:
    return str(max(1, int(limit.total_seconds() * 1000)))


def _lost(connection: Connection, table: Table, claims: Sequence[Claim], number: int) -> set[uuid.UUID]:
    """The ids of those that were not locked; asked for only when so many were not all of them."""
    if number == len(claims):
        return set()
    standing = connection.scalars(claim_statements.ours(table, connection.dialect.name), _of_all(connection, claims))
    return {claim.id for claim in claims}.difference(standing)


def write_all(
    connection: Connection, table: Table, succeeded: Sequence[Claim], others: Sequence[OutcomeWrite] = (),
    unstarted: Sequence[Claim] = (),
) -> bool:  # fmt: skip
    """Write that these claims, which were taken together, have `succeeded`, what became of `others`, and give back
    those that were not started; only the COMMIT follows. False when somebody else was first with one: whoever began the
    transaction then commits no more, and looks at each by itself."""
    name = connection.dialect.name
    if succeeded:
        is_all = not (others or unstarted)
        done = at_once(
            connection, claim_statements.succeed(table, name), _of_all(connection, succeeded), commits=is_all
        )
        if done.number != len(succeeded):
            return False
    if unstarted:
        connection.execute(claim_statements.give_back(table, name), _of_all(connection, unstarted))
    return all(write_outcome(connection, table, *one) for one in others)


def release_claims(where: Engine | Connection, table: Table, claims: Sequence[Claim]) -> None:
    """Give claims that were taken together, and not started, back where they stood, uncharged."""
    with transaction_on(where) as connection:
        connection.execute(claim_statements.give_back(table, connection.dialect.name), _of_all(connection, claims))


def release_abandoned(engine: Engine, table: Table, claims: Sequence[Claim], *, started: bool = True) -> set[uuid.UUID]:
    """Give claims back where they stood, although their calls may still go on; uncharged where they were not `started`.
    Rows that somebody has locked are skipped. Answers the ids of those that need no more."""
    reason = "its worker gave it up in the middle of the call"
    done: set[uuid.UUID] = set()
    for claim in claims:
        with engine.begin() as connection:
            row = connection.execute(predicates.lock(table, claim.id, claim.claim_id, waits=False)).first()
            if row is not None:
                values = releasing_started(reason) if started else releasing_unstarted(table)
                connection.execute(predicates.settle(table, claim.id, claim.claim_id, values))
            if row is not None and started:
                record(connection, table, claim.id, "parked", reason, number=claim.number)
            standing = connection.execute(predicates.standing(table, claim.id)).first()
            if standing is None or standing.claim_id != claim.claim_id:
                done.add(claim.id)
    return done


def extend(connection: Connection, table: Table, claim: Claim, lease: dt.timedelta) -> None:
    """Let a claim be believed without a lock for another lease."""
    connection.execute(claim_statements.extend(table, connection.dialect.name, lease), _of_all(connection, [claim]))


def park(engine: Engine, table: Table, claim: Claim, after: dt.timedelta, reason: str, *, started: bool) -> bool:
    """Give an attempt back uncharged. The event is written when the reason is a new one, not each time."""
    text = f"parked: {reason}"
    with engine.begin() as connection:
        hit = _hits(
            connection,
            predicates.settle(table, claim.id, claim.claim_id, parking(table, after, reason=text, started=started)),
        )
        if hit and claim.last_error != text:
            record(connection, table, claim.id, "parked", reason, number=claim.number)
        return hit


def standing(engine: Engine, table: Table, attempt_id: uuid.UUID) -> Any:
    """The row of `queries.standing`, None when it is gone."""
    with engine.begin() as connection:
        return connection.execute(predicates.standing(table, attempt_id)).first()


def _of_all(connection: Connection, claims: Sequence[Claim]) -> dict[str, Any]:
    """The parameters of a statement about claims that were taken together."""
    ids: Any = [one.id for one in claims]
    if connection.dialect.name == "postgresql":  # an array as a text: written by us, it takes a quarter of the time
        ids = f"{{{','.join([one.hex for one in ids])}}}"
    return {"ids": ids, "a_claim": claims[0].claim_id}


def _values_of(table: Table, decision: Decision, failure: Failure | None) -> Values:
    said = failure.summary if failure else None
    if decision.after is not None:
        return retrying(table, decision.after, last_error=said, charged=decision.charged)
    text = ": ".join(part for part in (decision.reason, said) if part) or None
    return ending(table, decision.status, last_error=text, charged=decision.charged)


def _hits(connection: Connection, statement: Any) -> bool:
    return connection.execute(statement).rowcount == 1
