"""How the tables in a database differ from those that the library needs."""

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, Table, inspect

from async_task_cli.migrations.schema import sequence_of


def differences(connection: Connection, tables: Sequence[Table]) -> list[str]:
    """One sentence for each of these tables, columns and indexes that is missing or differs."""
    bare = _without_default_schema(connection, tables)
    found = [words for metadata in _metadata_of(bare) for words in _differences(connection, metadata, bare)]
    return [*found, *(f"the sequence {sequence.name} is missing" for sequence in missing_sequences(connection, tables))]


def missing_sequences(connection: Connection, tables: Sequence[Table]) -> list[sa.Sequence]:
    """The sequences of attempts tables that PostgreSQL lacks. Autogenerate does not see them."""
    if connection.dialect.name != "postgresql":
        return []
    found = inspect(connection)
    wanted = [
        sequence_of(table) for table in tables if "order_slot" in table.c and found.has_table(table.name, table.schema)
    ]
    return [one for one in wanted if not found.has_sequence(_as_stored(one.name), schema=one.schema)]


def _as_stored(name: str) -> str:
    """A name as PostgreSQL stores it, which cuts what is too long."""
    return name.encode()[:63].decode(errors="ignore")


def _differences(connection: Connection, metadata: MetaData, tables: Sequence[Table]) -> Iterator[str]:
    ours = {(table.schema, table.name) for table in tables}
    schemas = {table.schema for table in tables}

    def is_ours(item: Any, name: str | None, kind: str, _reflected: bool, _other: Any) -> bool:
        return kind != "table" or (item.schema, name) in ours

    def is_looked_at(name: str | None, kind: str, _parents: Any) -> bool:
        return kind != "schema" or name in schemas

    options = {"include_object": is_ours, "include_name": is_looked_at, "include_schemas": schemas != {None}}
    context = MigrationContext.configure(connection, opts=options)
    found = produce_migrations(context, metadata).upgrade_ops
    missing: set[str] = set()
    for operation in found.ops if found else ():
        if isinstance(operation, ops.CreateTableOp):
            missing.add(operation.table_name)
            yield f"the table {operation.table_name} is missing"
        elif getattr(operation, "table_name", None) not in missing:
            yield from _told(operation)


def _told(operation: Any) -> Iterator[str]:
    match operation:
        case ops.ModifyTableOps():
            for one in operation.ops:
                yield from _told(one)
        case ops.AddColumnOp():
            yield f"{operation.table_name} lacks the column {operation.column.name}"
        case ops.CreateIndexOp():
            yield f"{operation.table_name} lacks the index {operation.index_name}"
        case ops.AlterColumnOp():
            yield f"{operation.table_name}.{operation.column_name} is of another type, default or nullability"
        case ops.DropIndexOp() | ops.DropColumnOp():
            return  # the project may have columns and indexes of its own
        case _:
            yield f"{getattr(operation, 'table_name', 'a table')} differs: {type(operation).__name__}"


def _without_default_schema(connection: Connection, tables: Sequence[Table]) -> list[Table]:
    """Copies of the tables whose schema is the default one: Alembic does not find that if it is named."""
    default = inspect(connection).default_schema_name
    copied = {
        id(one.metadata): MetaData(naming_convention=one.metadata.naming_convention)
        for one in tables if one.schema == default
    }  # fmt: skip
    return [_copied(one, copied[id(one.metadata)]) if one.schema == default else one for one in tables]


def _copied(table: Table, metadata: MetaData) -> Table:
    return table.to_metadata(metadata, schema=None)  # type: ignore[arg-type] # it takes the schema of `metadata`


def _metadata_of(tables: Sequence[Table]) -> list[MetaData]:
    return list({id(table.metadata): table.metadata for table in tables}.values())
