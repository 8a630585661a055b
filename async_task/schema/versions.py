"""The tables that a model needs: making them, checking them, and their version in a database."""

from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, inspect, select
from sqlalchemy.schema import CreateSchema

from async_task.database.dialects import has_schemas
from async_task.errors import SchemaMismatch
from async_task.schema.tables import SCHEMA_VERSION, companion_tables, table_of


def tables_of(model: type[Any]) -> list[Table]:
    """The tables of this model and of its inheritance, and their companion tables."""
    root: Any = inspect(model).base_mapper
    mapped = {table for mapper in root.self_and_descendants for table in mapper.tables}
    others = companion_tables(table_of(model))
    named = sorted(mapped, key=lambda table: str(table.name))
    return [*named, others.events, others.workers, others.queues, others.version]


def create(engine: Engine, model: type[Any]) -> None:
    """Create the tables that are missing, and their schema if the database has schemas.

    Raises SchemaMismatch for tables of another version.
    """
    found = version_in(engine, model)
    if found is not None:
        _refuse_other(found)
    if has_schemas(engine.dialect) and (name := table_of(model).schema) is not None:
        with engine.begin() as connection:
            connection.execute(CreateSchema(name, if_not_exists=True))
    by_metadata: dict[MetaData, list[Table]] = {}
    for table in tables_of(model):
        by_metadata.setdefault(table.metadata, []).append(table)
    for metadata, tables in by_metadata.items():
        metadata.create_all(engine, tables=tables)


def check(engine: Engine, model: type[Any]) -> None:
    """Raises SchemaMismatch unless all tables exist, in the version that this library needs."""
    with engine.begin() as connection:
        version = _version_in(connection, model)
        if version is not None:
            _refuse_other(version)
        found = inspect(connection)
        missing = [table.fullname for table in tables_of(model) if not found.has_table(table.name, schema=table.schema)]
    if missing:
        raise SchemaMismatch(
            f"the database has no table {sorted(missing)[0]!r}: make it with `async-task install`, "
            "or at once with `async-task install --apply`"
        )


def version_in(engine: Engine, model: type[Any]) -> int | None:
    """The version of the tables in this database; None if they do not exist, or have no version."""
    with engine.begin() as connection:
        return _version_in(connection, model)


def _version_in(connection: Connection, model: type[Any]) -> int | None:
    table = companion_tables(table_of(model)).version
    exists = inspect(connection).has_table(table.name, schema=table.schema)
    return connection.scalar(select(table.c.version)) if exists else None


def _refuse_other(version: int) -> None:
    if version > SCHEMA_VERSION:
        words = "upgrade the library"
    elif version < SCHEMA_VERSION:
        words = "`async-task upgrade` writes the revision, and `alembic upgrade head` carries it out"
    else:
        return
    raise SchemaMismatch(f"the tables are of version {version}, and this library needs {SCHEMA_VERSION}: {words}")
