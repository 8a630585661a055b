"""What a revision does, as the Python text of its two functions.

The file in an Alembic tree, the printed SQL and `--apply` all execute this text, so that they cannot differ. It imports
nothing of this library, so that a later release cannot change what an older revision does.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from sqlalchemy import Column, Index, Table
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.sql.ddl import sort_tables

from async_task.schema.indexes import sequence_dropped, sequence_made, storage_of
from async_task_cli.migrations.rendering import adding, creating, dropping, quoted, removing, schema_of
from async_task_cli.migrations.schema import SCHEMA_VERSION, companion_tables, sequence_of

FIRST_VERSION = 1
"""What the first `install --apply` made. Each later version has its steps in `versions/`. The tests execute them, up
and down, on every database: an upgrade that was never executed is only a promise."""
IMPORTS = "from sqlalchemy.dialects import mysql"
KINDS = """\
# What async-task's columns are made of, alike on every database. On MySQL texts are compared exactly, which MySQL
# and MariaDB spell differently.
dialect = op.get_context().dialect
exact = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"

def name(length: int) -> sa.String:
    text = mysql.VARCHAR(length, charset="utf8mb4", collation=exact)
    return sa.String(length).with_variant(text, "mysql", "mariadb")

identifier = sa.Uuid().with_variant(sa.Uuid(native_uuid=False), "mysql", "mariadb")
long_text = mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin")
text = sa.Text().with_variant(long_text, "mysql", "mariadb")
instant = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
"""


@dataclass(frozen=True, slots=True)
class Body:
    """A revision that leaves the tables in `version`. `upgrade` and `downgrade` are the bodies of two functions,
    without indent. They use `op` and `sa` of Alembic and SQLAlchemy, and what the lines of `imports` import."""

    version: int
    tables: tuple[str, ...]
    message: str
    upgrade: str
    downgrade: str
    imports: str = IMPORTS


def installing(tables: Sequence[Table], attempts: Table) -> Body:
    """Create `tables` in the version that this library needs. `attempts` is the one of the attempts."""
    ordered = sort_tables(tables)
    found = [creating(table) for table in ordered]
    stamped = _stamped(attempts) if companion_tables(attempts).version in tables else ""
    made = "\n".join(
        [_schema_made(attempts), *(text for text, _ in found), _stored(attempts), _counted(attempts), stamped]
    )
    imports = "\n".join([IMPORTS, *sorted({one for _, needed in found for one in needed})])
    dropped = "\n".join(dropping(table) for table in reversed(ordered))
    names = tuple(table.fullname for table in ordered)
    return Body(SCHEMA_VERSION, names, "async-task tables", f"{KINDS}\n{made.strip()}\n", f"{dropped}\n", imports)


def adopting(attempts: Table, *, has_version: bool) -> Body:
    """Take over tables that something else has made: what autogenerate does not see, and their version."""
    version = companion_tables(attempts).version
    made = "" if has_version else creating(version)[0]
    text = "\n".join([_stored(attempts), _counted(attempts), _counted_on(attempts), made, _stamped(attempts)])
    return Body(SCHEMA_VERSION, (attempts.fullname,), "async-task tables adopted", f"{KINDS}\n{text}\n", "pass\n")


def completing(table: Table, columns: Sequence[Column[Any]], indexes: Sequence[Index]) -> Body:
    """Add what the table of a model that is its own job lacks."""
    made, needed = adding(table, columns, indexes)
    imports = "\n".join([IMPORTS, *sorted(needed)])
    message = f"async-task columns of {table.name}"
    dropped = removing(table, columns, indexes)
    return Body(SCHEMA_VERSION, (table.fullname,), message, f"{KINDS}\n{made}\n", f"{dropped}\n", imports)


def upgrading(attempts: Table, since: int) -> Body:
    """Upgrade tables from the version `since` to the one that this library needs."""
    steps = range(since + 1, SCHEMA_VERSION + 1)
    up = "\n".join(_step(attempts, version, "up") for version in steps)
    down = "\n".join(_step(attempts, version, "down") for version in reversed(steps))
    message = f"async-task tables version {SCHEMA_VERSION}"
    return Body(SCHEMA_VERSION, (attempts.fullname,), message, f"{KINDS}\n{up}", f"{KINDS}\n{down}")


def _step(attempts: Table, version: int, way: str) -> str:
    text = resources.files(__package__).joinpath("versions", f"{version}_{way}.py.txt").read_text(encoding="utf-8")
    others = companion_tables(attempts)
    return string.Template(text).substitute(
        table=quoted(attempts.name), prefix=attempts.name, schema=quoted(attempts.schema),
        events=quoted(others.events.name), events_name=others.events.name, workers=quoted(others.workers.name),
        version=quoted(others.version.name),
        queues=quoted(others.queues.name), schedules=quoted(others.schedules.name),
        occurrences=quoted(others.occurrences.name), stored=_stored(attempts), unstored=_stored(attempts, is_set=False),
        counted=_counted(attempts), uncounted=_counted(attempts, is_made=False), unchecked=_unchecked(attempts),
    )  # fmt: skip


def _schema_made(attempts: Table) -> str:
    if attempts.schema is None:
        return ""
    create = f"op.execute(sa.schema.CreateSchema({quoted(attempts.schema)}, if_not_exists=True))"
    return f'if dialect.name == "postgresql":\n    {create}'


def _stored(attempts: Table, *, is_set: bool = True) -> str:
    name = postgresql.dialect().identifier_preparer.format_table(attempts)  # type: ignore[no-untyped-call]
    return f'if dialect.name == "postgresql":\n    op.execute({quoted(storage_of(name, is_set=is_set))})'


def _counted(attempts: Table, *, is_made: bool = True) -> str:
    statement = sequence_made(attempts) if is_made else sequence_dropped(attempts)
    return f'if dialect.name == "postgresql":\n    op.execute({quoted(statement)})'


def _unchecked(attempts: Table) -> str:
    """MariaDB's statement that drops the check of losses if it is there, which Alembic cannot say."""
    name = mysql.dialect().identifier_preparer.format_table(attempts)
    return quoted(f"ALTER TABLE {name} DROP CONSTRAINT IF EXISTS `ck_{attempts.name}_losses`")


def _counted_on(attempts: Table) -> str:
    """Behind the numbers that rows have already: they may come from a copy."""
    preparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]
    sequence, table = preparer.format_sequence(sequence_of(attempts)), preparer.format_table(attempts)
    last = f"greatest((SELECT last_value FROM {sequence}), (SELECT coalesce(max(seq), 1) FROM {table}))"  # noqa: S608
    return f'if dialect.name == "postgresql":\n    op.execute({quoted(f"SELECT setval({_text(sequence)}, {last})")})'


def _text(value: str) -> str:
    """An SQL text."""
    return "'" + value.replace("'", "''") + "'"


def _stamped(attempts: Table) -> str:
    version = companion_tables(attempts).version
    table = f'sa.table({quoted(version.name)}, sa.column("version", sa.Integer()){schema_of(version)})'
    return f'op.bulk_insert({table}, [{{"version": {SCHEMA_VERSION}}}])'
