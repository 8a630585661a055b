"""The indexes and checks of an attempts table, wherever it is mapped: the same on every database. Few, and partial
where the database can: finished rows cost nothing."""

import weakref
from typing import Any

from sqlalchemy import DDL, CheckConstraint, ColumnElement, Index, String, Table, and_, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import conv

from async_task.database.clock import MYSQL
from async_task.database.dialects import sequence_of
from async_task.schema.states import Status

STORAGE = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "0",
}
"""Of the table, on PostgreSQL. Each call leaves dead versions of its row: they are swept early, and at full speed, else
the claim walks over them."""

_furnished: "weakref.WeakSet[Table]" = weakref.WeakSet()


class OrderSlot(ColumnElement[str]):
    """The key of an attempt whose turn it is: unique, so that one runs at a time."""

    # Spelled as each database tells it again, else Alembic warns at every comparison that it has changed.
    type = String()
    inherit_cache = True


@compiles(OrderSlot)
def _order_slot(*_: Any, **__: Any) -> str:
    return "CASE WHEN status = 'pending' AND released THEN order_key END"


@compiles(OrderSlot, "postgresql")
def _order_slot_of_postgresql(*_: Any, **__: Any) -> str:
    return "CASE WHEN (((status)::text = 'pending'::text) AND released) THEN order_key ELSE NULL::character varying END"


@compiles(OrderSlot, *MYSQL)
def _order_slot_of_mysql(*_: Any, **__: Any) -> str:
    return "CASE WHEN status = 'pending' AND released <> 0 THEN order_key END"


def furnish(table: Table) -> None:
    """Give an attempts table its indexes, checks and storage parameters, once."""
    if table not in _furnished:
        _furnished.add(table)
        _add_indexes(table)
        _add_checks(table)
        store = DDL(storage_of("%(fullname)s"))  # type: ignore[no-untyped-call]
        event.listen(table, "after_create", store.execute_if(dialect="postgresql"))
        count = DDL(sequence_made(table).replace("%", "%%"))  # type: ignore[no-untyped-call]
        event.listen(table, "after_create", count.execute_if(dialect="postgresql"))


def storage_of(name: str, *, is_set: bool = True) -> str:
    """The statement that gives PostgreSQL's table of that (quoted) name its storage parameters, or takes them back."""
    if not is_set:
        return f"ALTER TABLE {name} RESET ({', '.join(STORAGE)})"
    return f"ALTER TABLE {name} SET ({', '.join(f'{key} = {value}' for key, value in STORAGE.items())})"


def sequence_made(table: Table) -> str:
    """The statement that makes PostgreSQL's sequence of `seq`, which ends with its table."""
    preparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]
    name, owner = preparer.format_sequence(sequence_of(table)), preparer.format_table(table)
    return f"CREATE SEQUENCE IF NOT EXISTS {name} OWNED BY {owner}.{preparer.quote(table.c.seq.name)}"


def sequence_dropped(table: Table) -> str:
    """The statement that drops it."""
    preparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]
    return f"DROP SEQUENCE {preparer.format_sequence(sequence_of(table))}"


def _add_indexes(table: Table) -> None:
    c = table.c
    pending = c.status == Status.PENDING
    live = c.completed_at.is_(None)
    # MySQL has no partial index: there the state comes first. PostgreSQL searches by no column that a condition of the
    # index has settled, and would walk all of it: so these conditions speak of `completed_at`, not of the state.
    waiting = and_(live, c.claim_id.is_(None))
    _partial("waiting", table, [c.status, c.released, c.queue, c.priority, c.due_at, c.id], waiting)
    _partial("lease", table, [c.lease_until], and_(pending, c.claim_id.is_not(None)))
    _partial("expiry", table, [c.status, c.expires_at], and_(live, c.expires_at.is_not(None)))
    token = [c.target, c.method_name, c.idempotence_token]
    _partial("token", table, token, c.idempotence_token.is_not(None), unique=True)
    _partial("order", table, [c.order_slot], c.order_slot.is_not(None), unique=True)
    _partial("keyed", table, [c.status, c.order_key, c.seq], and_(live, c.order_key.is_not(None)))
    _partial("arrived", table, [c.status, c.arrived], and_(pending, c.arrived))
    _partial("suspect", table, [c.status, c.num_crashes], and_(pending, c.num_crashes > 0))


def _partial(name: str, table: Table, columns: list[Any], where: Any, *, unique: bool = False) -> None:
    # conv: these names are whole. No naming convention is put around them, and too long ones are cut.
    label = conv(f"{'uq' if unique else 'ix'}_{table.name}_{name}")
    Index(label, *columns, unique=unique, postgresql_where=where, sqlite_where=where)


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
