"""What must hold when all is at rest: read from the tables, and from what the calls noted."""

import collections
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, Select, and_, case, exists, func, literal, or_, select

from async_task import Attempt, JobEvent
from faults.application import effect, orders

A: Any = Attempt.__table__
E: Any = JobEvent.__table__
WRITING = [
    f"faults.{name}"
    for name in (
        "writing", "leased", "writing_coroutine", "flaky", "keyed", "batched", "isolated", "parent",
    )
]  # fmt: skip
FAILING = ("faults.poison", "faults.doomed")


def of_the_tables() -> dict[str, Select[Any]]:
    """Of each of these there must be no row."""
    has_effect = exists().where(effect.c.attempt_id == A.c.id)
    wanted = case((A.c.target.in_(FAILING), literal("failed")), else_=literal("succeeded"))
    earlier = orders.alias("earlier")
    earlier_effect = effect.alias("earlier_effect")
    return {
        "an order has no attempt": select(orders.c.attempt_id, orders.c.kind).where(
            ~exists().where(A.c.id == orders.c.attempt_id)
        ),
        "an attempt has no order": select(A.c.id, A.c.target).where(~exists().where(orders.c.attempt_id == A.c.id)),
        "two orders share an attempt": select(orders.c.attempt_id)
        .where(orders.c.kind != "token")
        .group_by(orders.c.attempt_id)
        .having(func.count() > 1),
        "an attempt is not at rest": select(A.c.id, A.c.target, A.c.due_at, A.c.claimed_by, A.c.last_error).where(
            A.c.status == "pending"
        ),
        "a claim is left": select(A.c.id, A.c.status, A.c.claimed_by).where(
            or_(A.c.claim_id.is_not(None), A.c.lease_until.is_not(None))
        ),
        "an attempt ended wrongly": select(A.c.id, A.c.target, A.c.status, A.c.last_error).where(
            A.c.status != "pending", A.c.status != wanted
        ),
        "an effect is there twice": select(effect.c.attempt_id).group_by(effect.c.attempt_id).having(func.count() > 1),
        "an attempt succeeded without its effect": select(A.c.id, A.c.target).where(
            A.c.status == "succeeded", A.c.target.in_(WRITING), ~has_effect
        ),
        "an effect is there without success": select(effect.c.attempt_id, effect.c.number).where(
            ~exists().where(A.c.id == effect.c.attempt_id, A.c.status == "succeeded")
        ),
        "an effect is not of the last start": select(A.c.id, A.c.target, effect.c.number, A.c.num_attempts).where(
            effect.c.attempt_id == A.c.id, effect.c.number != A.c.num_attempts
        ),
        "a key is out of order": select(orders.c.order_key, orders.c.seq, earlier.c.seq.label("before")).where(
            and_(
                orders.c.order_key.is_not(None),
                orders.c.attempt_id == effect.c.attempt_id,
                earlier.c.order_key == orders.c.order_key,
                earlier.c.attempt_id == earlier_effect.c.attempt_id,
                earlier_effect.c.no < effect.c.no,
                earlier.c.seq > orders.c.seq,
            )
        ),
        "more is charged than was started": select(A.c.id, A.c.target).where(
            A.c.num_errors + A.c.num_crashes > A.c.num_attempts
        ),
        "a token is there twice": select(A.c.idempotence_token)
        .where(A.c.idempotence_token.is_not(None))
        .group_by(A.c.idempotence_token)
        .having(func.count() > 1),
        "a poisonous call did not end at its limit": select(A.c.id, A.c.num_attempts, A.c.num_crashes).where(
            A.c.target == "faults.poison", A.c.num_crashes != 3
        ),
        "an error is charged that no call raised": select(E.c.job_id, E.c.message).where(
            E.c.kind == "error", ~E.c.message.like("ValueError: %"), ~E.c.message.like("TimeoutError%")
        ),
    }


def violations(engine: Engine, marks: pathlib.Path) -> list[str]:
    """Each a sentence."""
    with engine.connect() as connection:
        return [*_of_tables(connection), *_of_marks(connection, marks)]


def _of_tables(connection: Connection) -> Iterator[str]:
    for what, query in of_the_tables().items():
        if rows := connection.execute(query).all():
            yield f"{what}: {len(rows)}, the first {tuple(map(str, rows[0]))}"


def _of_marks(connection: Connection, path: pathlib.Path) -> Iterator[str]:
    noted, void = marks_in(path), set(path.with_name(f"{path.name}.void").read_text().split())
    rows = {
        str(row.id): row for row in connection.execute(select(A.c.id, A.c.target, A.c.num_attempts, A.c.num_errors))
    }
    starts = collections.Counter((one["id"], one["number"]) for one in noted if one["what"] == "start")
    calls = collections.Counter(attempt_id for attempt_id, _ in starts)
    raised = collections.Counter(one["id"] for one in noted if one["what"] == "raise")
    shares = {str(row.id) for row in rows.values() if row.target == "faults.batched"}
    found: dict[str, list[Any]] = {
        "a call was made although it was rolled back": [one for one in calls if one in void],
        "a call was made from nowhere": [one for one in calls if one not in rows and one not in void],
        "one start was called twice": [one for one, times in starts.items() if times > 1 and one[0] not in shares],
        "a call has more starts than its row counts": [
            (one, times) for one, times in calls.items() if one in rows and times > rows[one].num_attempts
        ],
        "a row counts more errors than were raised": [
            one for one, row in rows.items() if row.target in ("faults.flaky", "faults.doomed")
            and row.num_errors > raised[one]
        ],
    }  # fmt: skip
    return _sentences(found.items())


def _sentences(found: Iterable[tuple[str, list[Any]]]) -> Iterator[str]:
    return (f"{what}: {len(bad)}, the first {bad[0]}" for what, bad in found if bad)


def marks_in(path: pathlib.Path) -> list[dict[str, Any]]:
    """What the calls noted, in the order of time."""
    noted = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(noted, key=lambda one: float(one["at"]))


def crashes(engine: Engine) -> list[str]:
    """The crashes that were charged so far, except to the calls that kill their process."""
    charged = select(E.c.job_id, E.c.message).where(E.c.kind.in_(("crash", "loss"))).order_by(E.c.id)
    with engine.connect() as connection:
        poison = {str(one) for one in connection.scalars(select(A.c.id).where(A.c.target == "faults.poison"))}
        found = connection.execute(charged).all()
    return [f"{row.job_id}: {row.message}" for row in found if row.job_id not in poison]


def is_at_rest(engine: Engine) -> bool:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(A).where(A.c.status == "pending")) == 0
