"""The indexes and checks of an attempts table, wherever it is mapped. Few and partial: finished rows cost nothing."""

from typing import Any

from sqlalchemy import CheckConstraint, Dialect, Index, Table, and_
from sqlalchemy.schema import conv

from async_task.dialects import MYSQL
from async_task.status import Status

ORDER_SLOT = "CASE WHEN status = 'pending' AND released THEN order_key END"
_FURNISHED = "async_task.furnished"


def furnish(table: Table) -> None:
    """Give an attempts table its indexes and checks, once."""
    if not table.info.get(_FURNISHED):
        table.info[_FURNISHED] = True
        _add_indexes(table)
        _add_checks(table)


def _add_indexes(table: Table) -> None:
    c = table.c
    pending = c.status == Status.PENDING
    waiting = and_(pending, c.claim_id.is_(None), c.released)
    _partial("waiting", table, [c.queue, c.priority, c.due_at, c.id], waiting, mysql=[c.status, c.released, c.claim_id])
    _partial("lease", table, [c.lease_until], and_(pending, c.claim_id.is_not(None)))
    _partial("expiry", table, [c.expires_at], and_(pending, c.expires_at.is_not(None)), mysql=[c.status])
    token = [c.target, c.method_name, c.idempotence_token]
    _partial("token", table, token, c.idempotence_token.is_not(None), unique=True)
    _partial("order", table, [c.order_slot], c.order_slot.is_not(None), unique=True)


def _partial(
    name: str, table: Table, columns: list[Any], where: Any, *, mysql: list[Any] | None = None, unique: bool = False
) -> None:
    """An index on the rows `where`; MySQL has no such index, there the columns of `mysql` lead a whole one."""
    # conv: these names are whole. No naming convention is put around them, and too long ones are cut.
    label = f"{'uq' if unique else 'ix'}_{table.name}_{name}"
    options = {"postgresql_where": where, "sqlite_where": where}
    if mysql is None:
        Index(conv(label), *columns, unique=unique, **options)
    else:
        Index(conv(label), *columns, unique=unique, **options).ddl_if(callable_=_has_partial_indexes)
        Index(conv(f"{label}_all"), *mysql, *columns, unique=unique).ddl_if(callable_=_has_no_partial_indexes)


def _has_partial_indexes(*_: Any, dialect: Dialect, **__: Any) -> bool:
    return dialect.name not in MYSQL


def _has_no_partial_indexes(*_: Any, dialect: Dialect, **__: Any) -> bool:
    return dialect.name in MYSQL


CHECKS = {
    "status": "status IN ('pending', 'succeeded', 'failed', 'expired', 'canceled')",
    "completed": "(completed_at IS NULL) = (status = 'pending')",
    "claim": "(claim_id IS NULL) = (lease_until IS NULL) AND (claim_id IS NULL) = (claimed_by IS NULL)",
    "claimed": "claim_id IS NULL OR status = 'pending'",
    "priority": "priority BETWEEN 0 AND 9",
    "counters": "num_attempts >= 0 AND num_errors >= 0 AND num_crashes >= 0",
    "starts": "num_errors + num_crashes <= num_attempts",
}


def _add_checks(table: Table) -> None:
    for name, condition in CHECKS.items():
        table.append_constraint(CheckConstraint(condition, name=conv(f"ck_{table.name}_{name}")))
