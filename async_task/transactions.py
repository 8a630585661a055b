"""Everything that is done to attempts outside of their calls: each function is one transaction."""

import datetime as dt
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Table, insert, select, update
from sqlalchemy.exc import DBAPIError

from async_task import notices, presence, queries, statements
from async_task.claims import Claim
from async_task.dialects import is_passing, locks_rows, probes_laterally, server_uptime
from async_task.failures import Failure
from async_task.identity import Process
from async_task.orders import release_in, waits_behind
from async_task.outcomes import Busy, Decision, Expired, NotDue, NotPending, Outcome
from async_task.status import Status
from async_task.tables import beside
from async_task.transitions import Values, claiming, ending, parking, recovering, surrendering, waiting

CRASH_LIMIT = 3
PAGE = 500


class Written(NamedTuple):
    """What is to be written of one performing."""

    claim: Claim
    decision: Decision
    failure: Failure | None


def claim_due(
    where: Engine | Connection, table: Table, worker: str, lease: dt.timedelta, queue: str, limit: int,
    *, claim_id: uuid.UUID | None = None, began: dt.datetime | None = None, suspects: bool = False,
    targets: Sequence[str] = (), besides: Sequence[tuple[str, str]] = (),
) -> list[Claim]:  # fmt: skip
    """Take up to `limit` due attempts of one queue, the most urgent first: of any target, of these `targets`, or of all
    calls `besides` some, each a target and its method. The start of each is counted and committed before any call."""
    with begun(where) as connection:
        return claim_in(
            connection, table, worker, lease, queue, limit,
            claim_id=claim_id, began=began, suspects=suspects, targets=targets, besides=besides,
        )  # fmt: skip


def claim_in(
    connection: Connection, table: Table, worker: str, lease: dt.timedelta, queue: str, limit: int,
    *, claim_id: uuid.UUID | None = None, began: dt.datetime | None = None, suspects: bool = False,
    targets: Sequence[str] = (), besides: Sequence[tuple[str, str]] = (),
) -> list[Claim]:  # fmt: skip
    """The same in the transaction of `connection`."""
    shape = statements.Shape(began is not None, suspects, bool(targets), bool(besides))
    asked = {"a_queue": queue, "since": began, "some_targets": list(targets), "other_calls": list(besides)}
    given = {"a_claim": claim_id or uuid.uuid4(), "a_worker": worker}
    if probes_laterally(connection.dialect):
        found = connection.execute(
            statements.claim(table, lease, shape), _only(shape, asked) | given | {"a_number": limit}
        )
        return _claims(found.all())
    ids: list[uuid.UUID] = []
    flags = connection.execute(statements.priorities_due(table, shape), _only(shape, asked)).one()
    for priority in (number for number, is_due in zip(queries.PRIORITIES, flags, strict=True) if is_due):
        if len(ids) < limit:
            wanted = _only(shape, asked) | {"a_priority": priority, "a_number": limit - len(ids)}
            ids += connection.scalars(statements.due_in_priority(table, shape), wanted)
    if not ids:
        return []
    connection.execute(statements.take_ids(table, lease), given | {"ids": ids})
    return _claims(connection.execute(statements.taken(table), {"a_claim": given["a_claim"], "ids": ids}).all())


def claim_one(
    engine: Engine, table: Table, worker: str, lease: dt.timedelta, attempt_id: uuid.UUID,
    *, claim_id: uuid.UUID | None = None,
) -> Claim | Outcome:  # fmt: skip
    """Take this attempt, or say why not. One that is past its `expires_at` is expired."""
    values = claiming(table, claim_id or uuid.uuid4(), worker, lease)
    with engine.begin() as connection:
        claims = _take_one(connection, table, attempt_id, values)
        if not claims and _has_lined_up(connection, table, attempt_id):
            claims = _take_one(connection, table, attempt_id, values)
        return claims[0] if claims else _why_not(connection, table, attempt_id)


def claims_under(engine: Engine, table: Table, claim_id: uuid.UUID) -> list[Claim]:
    """What is claimed under this id: for a claim whose COMMIT was not answered."""
    with engine.begin() as connection:
        return _claims(connection.execute(queries.under(table, claim_id)).all())


def settle(engine: Engine, table: Table, claim: Claim, decision: Decision, failure: Failure | None) -> bool:
    """Write the outcome, in a transaction of its own. False when somebody else was first: nothing was written."""
    with engine.begin() as connection:
        return write_outcome(connection, table, claim, decision, failure)


def write_outcome(
    connection: Connection, table: Table, claim: Claim, decision: Decision, failure: Failure | None
) -> bool:
    """The same in the transaction of `connection`, and the event of what was raised."""
    if decision.status is Status.SUCCEEDED:
        succeed = statements.succeed(table, connection.dialect.name)
        return connection.execute(succeed, _of_all(connection, [claim])).rowcount == 1
    if not _hits(connection, queries.settle(table, claim.id, claim.claim_id, _values_of(table, decision, failure))):
        return False
    if failure is not None:
        message = f"{failure.summary} ({decision.reason})" if decision.reason else failure.summary
        _record(connection, table, claim.id, "error", message, number=claim.number, detail=failure.trace)
    elif decision.status in (Status.FAILED, Status.EXPIRED):
        _record(connection, table, claim.id, decision.status.value, decision.reason, number=claim.number)
    return True


def lock_all(connection: Connection, table: Table, claims: Sequence[Claim], limit: dt.timedelta) -> set[uuid.UUID]:
    """Lock the rows of these claims, which were taken together. PostgreSQL ends the transaction when it idles, or
    one of its statements runs, longer than `limit`. Answers the ids of those that still stand."""
    name, given = connection.dialect.name, _of_all(connection, claims)
    if name != "postgresql":
        return set(connection.scalars(statements.lock(table, name), given))
    milliseconds = str(max(1, int(limit.total_seconds() * 1000)))
    number = connection.scalar(statements.lock(table, name), given | {"a_limit": milliseconds})
    if number == len(claims):
        return {claim.id for claim in claims}
    return set(connection.scalars(statements.ours(table, name), given))


def write_all(
    connection: Connection, table: Table, succeeded: Sequence[Claim], others: Sequence[Written] = (),
    unstarted: Sequence[Claim] = (),
) -> bool:  # fmt: skip
    """Write that these claims, which were taken together, have `succeeded`, what became of `others`, and give back
    those that were not started. False when somebody else was first with one: then nothing of this may be committed."""
    name = connection.dialect.name
    if succeeded:
        found = connection.execute(statements.succeed(table, name), _of_all(connection, succeeded)).rowcount
        if found != len(succeeded):
            return False
    if unstarted:
        connection.execute(statements.give_back(table, name), _of_all(connection, unstarted))
    return all(write_outcome(connection, table, *one) for one in others)


def give_back(where: Engine | Connection, table: Table, claims: Sequence[Claim]) -> None:
    """Give claims that were taken together, and not started, back where they stood, uncharged."""
    with begun(where) as connection:
        connection.execute(statements.give_back(table, connection.dialect.name), _of_all(connection, claims))


def strays(engine: Engine, table: Table, worker: str) -> list[Claim]:
    """Claims of this worker whose lease is past: unless their rows are locked, it has lost sight of them."""
    with engine.begin() as connection:
        return _claims(connection.execute(statements.strays(table), {"a_worker": worker}).all())


def surrender(engine: Engine, table: Table, claims: Sequence[Claim]) -> set[uuid.UUID]:
    """Give started claims back where they stood, although their calls may still go on. Rows that somebody has locked
    are skipped. Answers the ids of those that need no more."""
    reason = "its worker gave it up in the middle of the call"
    done: set[uuid.UUID] = set()
    for claim in claims:
        with engine.begin() as connection:
            row = connection.execute(queries.lock(table, claim.id, claim.claim_id, waits=False)).first()
            if row is not None:
                values = surrendering(reason)
                connection.execute(queries.settle(table, claim.id, claim.claim_id, values))
                _record(connection, table, claim.id, "parked", reason, number=claim.number)
            standing = connection.execute(queries.standing(table, claim.id)).first()
            if standing is None or standing.claim_id != claim.claim_id:
                done.add(claim.id)
    return done


def extend(connection: Connection, table: Table, claim: Claim, lease: dt.timedelta) -> None:
    """Let a claim be believed without a lock for another lease."""
    connection.execute(statements.extend(table, connection.dialect.name, lease), _of_all(connection, [claim]))


def park(engine: Engine, table: Table, claim: Claim, after: dt.timedelta, reason: str, *, started: bool) -> bool:
    """Give an attempt back uncharged. The event is written when the reason is a new one, not each time."""
    text = f"parked: {reason}"
    with engine.begin() as connection:
        hit = _hits(
            connection,
            queries.settle(table, claim.id, claim.claim_id, parking(table, after, reason=text, started=started)),
        )
        if hit and claim.last_error != text:
            _record(connection, table, claim.id, "parked", reason, number=claim.number)
        return hit


def lose(engine: Engine, table: Table, claim: Claim, how: str) -> Status | None:
    """Count the crash of a claim whose process is known to have died. Answers the state it led to, None when somebody
    else was first."""
    with engine.begin() as connection:
        reason = crashed_reason(claim.num_crashes + 1, how)
        values = recovering(table, CRASH_LIMIT, reason)
        if not _hits(connection, queries.settle(table, claim.id, claim.claim_id, values)):
            return None
        _record(connection, table, claim.id, "crash", how, number=claim.number)
        release_in(connection, table, [claim.order_key])
        return connection.scalar(select(table.c.status).where(table.c.id == claim.id))


def standing(engine: Engine, table: Table, attempt_id: uuid.UUID) -> Any:
    """The row of `queries.standing`, None when it is gone."""
    with engine.begin() as connection:
        return connection.execute(queries.standing(table, attempt_id)).first()


def recover(
    engine: Engine, table: Table, lease: dt.timedelta, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()
) -> tuple[int, int]:
    """Give one page of orphans back, and count their crashes. Answers how many were found, and how many of them were
    not given back but failed, at the crash limit. Raises Refused."""
    with engine.begin() as connection:
        uptime = server_uptime(connection)
        if uptime is not None and uptime < lease.total_seconds():
            return 0, 0  # nobody could beat while the server was down
        alive = presence.alive_here(connection, table)
        found = connection.execute(queries.orphans(table, lease, limit, besides=besides, alive=alive)).all()
        return _count_as_lost(connection, table, found, "was lost")


def bury(
    engine: Engine, table: Table, process: Process, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()
) -> tuple[int, int]:
    """The same for one page of what a process holds that is known to have died, also before its leases are past; who
    sleeps is told. Rows whose locks the server has not taken back yet are left out. Raises Refused."""
    with engine.begin() as connection:
        names = presence.names_of(connection, table, process)
        found = connection.execute(queries.claims_of(table, names, limit, besides=besides)).all() if names else []
        counted = _count_as_lost(connection, table, found, "has died")
        notices.tell(connection, table, Counter(row.queue for row in found))
        return counted


def _count_as_lost(connection: Connection, table: Table, found: Sequence[Any], happened: str) -> tuple[int, int]:
    """Give these back, which are locked, and count their crashes. Answers as `recover` does."""
    with _refusing([row.id for row in found]):
        for row in found:
            how = f"the process {row.claimed_by} {happened}"
            values = recovering(table, CRASH_LIMIT, crashed_reason(row.num_crashes + 1, how))
            connection.execute(queries.changed(table, values).where(table.c.id == row.id, queries.is_pending(table)))
            _record(connection, table, row.id, "crash", how, number=row.num_attempts)
    release_in(connection, table, [row.order_key for row in found])
    return len(found), sum(row.num_crashes + 1 >= CRASH_LIMIT for row in found)


def unproven_orphans(engine: Engine, table: Table, lease: dt.timedelta) -> bool:
    """Whether there are orphans, and this connection is too young to tell them from claims of workers that could not
    reach the database lately either."""
    if not locks_rows(engine.dialect):
        return False
    with engine.begin() as connection:
        since = connection.info.setdefault("async_task.connected", time.monotonic())
        if time.monotonic() - since >= lease.total_seconds():
            return False
        return connection.execute(queries.orphans(table, lease, 1)).first() is not None


def expire(engine: Engine, table: Table, *, limit: int = PAGE, besides: Sequence[uuid.UUID] = ()) -> int:
    """Expire one page of what is past its `expires_at` and held by nobody. Answers how many. Raises Refused."""
    with engine.begin() as connection:
        ids = list(connection.scalars(queries.overdue(table, limit, besides=besides)))
        values = ending(table, Status.EXPIRED, last_error=table.c.last_error, crashed=True)
        with _refusing(ids):
            if ids:
                connection.execute(update(table).where(table.c.id.in_(ids), queries.is_pending(table)).values(values))
                events = [_event(table, one, "expired", "past its expires_at") for one in ids]
                connection.execute(insert(beside(table).events), events)
        release_in(connection, table, connection.scalars(queries.keys_of(table, ids)) if ids else ())
        return len(ids)


class Refused(Exception):
    """The database refused the change of a page for the sake of one of its rows, at least: those with `ids`."""

    def __init__(self, ids: list[uuid.UUID], error: DBAPIError) -> None:
        super().__init__(f"{type(error.orig).__name__} for one of {len(ids)} rows")
        self.ids = ids


@contextmanager
def _refusing(ids: list[uuid.UUID]) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated or is_passing(error.orig):
            raise
        raise Refused(ids, error) from error


def crashed_reason(crashes: int, how: str) -> str:
    """What `last_error` says of an attempt that has crashed too often."""
    return f"crashed: {crashes} starts in a row were lost with their process; at the last, {how}"


@contextmanager
def begun(where: Engine | Connection) -> Iterator[Connection]:
    """A transaction on a connection of its own, or on this one."""
    if isinstance(where, Engine):
        with where.begin() as connection:
            yield connection
    else:
        with where.begin():
            yield where


def _only(shape: statements.Shape, asked: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a statement of this shape has."""
    said = {"since": shape.began, "some_targets": shape.targets, "other_calls": shape.besides}
    return {name: value for name, value in asked.items() if said.get(name, True)}


def _claims(rows: Sequence[Any]) -> list[Claim]:
    return sorted(map(Claim._make, rows), key=_urgency)


_urgency = attrgetter("priority", "due_at", "id")


def _of_all(connection: Connection, claims: Sequence[Claim]) -> dict[str, Any]:
    """The parameters of a statement about claims that were taken together."""
    ids: Any = [one.id for one in claims]
    if connection.dialect.name == "postgresql":  # an array as a text: written by us, it takes a quarter of the time
        ids = f"{{{','.join([one.hex for one in ids])}}}"
    return {"ids": ids, "a_claim": claims[0].claim_id}


def _take(connection: Connection, table: Table, found: Any, values: Values) -> list[Claim]:
    return _claims(connection.execute(queries.take(table, found, values)).all())


def _take_ids(connection: Connection, table: Table, ids: list[uuid.UUID], values: Values) -> list[Claim]:
    if not ids:
        return []
    connection.execute(queries.take_ids(table, ids, values))
    return _claims(connection.execute(queries.taken(table, values["claim_id"], ids)).all())


def _take_one(connection: Connection, table: Table, attempt_id: uuid.UUID, values: Values) -> list[Claim]:
    found = queries.by_id(table, attempt_id)
    if probes_laterally(connection.dialect):
        return _take(connection, table, found, values)
    return _take_ids(connection, table, list(connection.scalars(found)), values)


def _has_lined_up(connection: Connection, table: Table, attempt_id: uuid.UUID) -> bool:
    """Whether anything was released of the key of an attempt that nobody had looked at yet."""
    row = connection.execute(queries.standing(table, attempt_id)).first()
    if row is None or row.status != Status.PENDING or row.released:
        return False
    return release_in(connection, table, [row.order_key]) > 0


def _why_not(connection: Connection, table: Table, attempt_id: uuid.UUID) -> Outcome:
    row = connection.execute(queries.standing(table, attempt_id)).first()
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
    unheld = (table.c.id == attempt_id, queries.is_pending(table), table.c.claim_id.is_(None))
    free = select(table.c.id).where(*unheld, queries.is_overdue(table))
    if connection.scalar(free.with_for_update(skip_locked=True, key_share=True)) is None:
        return Busy(attempt_id, None, None)
    values = ending(table, Status.EXPIRED, last_error=table.c.last_error, crashed=True)
    connection.execute(update(table).where(*unheld).values(values))
    _record(connection, table, attempt_id, "expired", "past its expires_at")
    release_in(connection, table, connection.scalars(queries.keys_of(table, [attempt_id])))
    return Expired(attempt_id, "past its expires_at")


def _values_of(table: Table, decision: Decision, failure: Failure | None) -> Values:
    said = failure.summary if failure else None
    if decision.after is not None:
        return waiting(table, decision.after, last_error=said, charged=decision.charged)
    text = ": ".join(part for part in (decision.reason, said) if part) or None
    return ending(table, decision.status, last_error=text, charged=decision.charged)


def _hits(connection: Connection, statement: Any) -> bool:
    return connection.execute(statement).rowcount == 1


def _record(
    connection: Connection, table: Table, job_id: uuid.UUID, kind: str, message: str | None,
    *, number: int | None = None, detail: str | None = None,
) -> None:  # fmt: skip
    connection.execute(
        insert(beside(table).events).values(
            _event(table, job_id, kind, message) | {"num_attempt": number, "detail": detail}
        )
    )


def _event(table: Table, job_id: uuid.UUID, kind: str, message: str | None) -> dict[str, Any]:
    return {"job_type": table.name, "job_id": str(job_id), "kind": kind, "message": message}
