"""The indexes, checks and storage parameters of an attempts table, whatever model it is of.

There are few indexes, and they are partial where the database can: finished rows cost nothing.
"""

import weakref
from collections.abc import Callable
from typing import Any

from sqlalchemy import CheckConstraint, ColumnElement, Index, String, Table, and_, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement, conv
from sqlalchemy.sql.compiler import DDLCompiler, IdentifierPreparer

from async_task.database.dialects import MYSQL
from async_task.database.numbering import sequence_of
from async_task.schema.states import Status, is_suspect

STORAGE = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "0",
}
"""Storage parameters of the table on PostgreSQL. Each call leaves dead versions of its row. Autovacuum removes them
early and at full speed; otherwise the claim has to walk over them."""

_complete: "weakref.WeakSet[Table]" = weakref.WeakSet()


class OrderSlot(ColumnElement[str]):
    """The generated column `order_slot`: the order key of a pending, released attempt, else NULL.

    A unique index on it keeps one released attempt for each key, also on MySQL, which has no partial index.
    """

    # Written as each database reports it back: otherwise Alembic warns at every comparison that the column has changed.
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


def complete_table(table: Table) -> None:
    """Add the indexes, checks, storage parameters and sequence of an attempts table to `table`, once."""
    if table not in _complete:
        _complete.add(table)
        _add_indexes(table)
        _add_checks(table)
        for text_of in (_storage_of, _sequence_of):
            event.listen(table, "after_create", _OfTable(table, text_of).execute_if(dialect="postgresql"))


class _OfTable(ExecutableDDLElement):
    """A statement about a table, under the name to which the engine translates it."""

    def __init__(self, table: Table, text_of: Callable[[Table, IdentifierPreparer], str]) -> None:
        self.table = table
        self.text_of = text_of


@compiles(_OfTable)
def _text_of(statement: _OfTable, compiler: DDLCompiler, **_: Any) -> str:
    return statement.text_of(statement.table, compiler.preparer)


def _storage_of(table: Table, preparer: IdentifierPreparer) -> str:
    return storage_of(preparer.format_table(table))


def storage_of(name: str, *, is_set: bool = True) -> str:
    """PostgreSQL's statement that sets the storage parameters of the table with this (quoted) name, or resets them."""
    if not is_set:
        return f"ALTER TABLE {name} RESET ({', '.join(STORAGE)})"
    return f"ALTER TABLE {name} SET ({', '.join(f'{key} = {value}' for key, value in STORAGE.items())})"


def sequence_made(table: Table) -> str:
    """PostgreSQL's statement that creates the sequence of `seq`; it is dropped with its table."""
    return _sequence_of(table, postgresql.dialect().identifier_preparer)  # type: ignore[no-untyped-call]


def _sequence_of(table: Table, preparer: IdentifierPreparer) -> str:
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
    # MySQL has no partial indexes, so the columns begin with the status. With conditions on `status` and `released`
    # PostgreSQL does not search by these columns, and walks the whole index for each priority (9,000 calls/s instead of
    # 16,000). So the conditions are on `completed_at`. Alembic compares no `ddl_if`: one index serves all databases.
    waiting = and_(live, c.claim_id.is_(None))
    _partial("waiting", table, [c.status, c.released, c.queue, c.priority, c.due_at, c.id], waiting)
    _partial("lease", table, [c.lease_until], and_(pending, c.claim_id.is_not(None)))
    _partial("expiry", table, [c.status, c.expires_at], and_(live, c.expires_at.is_not(None)))
    token = [c.target, c.method_name, c.idempotence_token]
    _partial("token", table, token, c.idempotence_token.is_not(None), unique=True)
    _partial("order", table, [c.order_slot], c.order_slot.is_not(None), unique=True)
    _partial("keyed", table, [c.status, c.order_key, c.seq], and_(live, c.order_key.is_not(None)))
    _partial("arrived", table, [c.status, c.arrived], and_(pending, c.arrived))
    _partial("suspect", table, [c.status, c.num_crashes, c.num_losses], and_(pending, is_suspect(table)))


def _partial(name: str, table: Table, columns: list[Any], where: Any, *, unique: bool = False) -> None:
    # conv: a naming convention of the user must not change these names; too long ones are cut.
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
    # Beside the one above, and not in its place: SQLite adds a check together with a column, and drops none.
    "losses": "num_losses >= 0 AND num_errors + num_crashes + num_losses <= num_attempts",
}


def _add_checks(table: Table) -> None:
    for name, condition in CHECKS.items():
        table.append_constraint(CheckConstraint(condition, name=conv(f"ck_{table.name}_{name}")))
