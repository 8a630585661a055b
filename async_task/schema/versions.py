"""The tables that a model needs: making them, checking them, and their version in a database."""

from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, exists, false, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from async_task.database.dialects import has_schemas
from async_task.database.server_versions import refuse_old_server
from async_task.errors import SchemaMismatch
from async_task.schema.tables import SCHEMA_VERSION, companion_tables, table_of


def tables_of(model: type[Any]) -> list[Table]:
    """The tables of this model and of its inheritance, and their companion tables."""
    root: Any = inspect(model).base_mapper
    mapped = {table for mapper in root.self_and_descendants for table in mapper.tables}
    others = companion_tables(table_of(model))
    named = sorted(mapped, key=lambda table: str(table.name))
    return [*named, *(getattr(others, field.name) for field in fields(others))]


def create(engine: Engine, model: type[Any]) -> None:
    """Create the tables that are missing, and their schema if the database has schemas.

    Raises SchemaMismatch for tables of another version.
    """
    with engine.begin() as connection:
        found = version_on(connection, model)
        if found is not None:
            _refuse_other(found)
        elif _has(connection, table_of(model)):
            raise SchemaMismatch(_UNVERSIONED)
    if has_schemas(engine.dialect):
        with engine.begin() as connection:
            if (name := connection.schema_for_object(table_of(model))) is not None:
                connection.execute(CreateSchema(name, if_not_exists=True))
    by_metadata: dict[MetaData, list[Table]] = {}
    for table in tables_of(model):
        by_metadata.setdefault(table.metadata, []).append(table)
    for metadata, tables in by_metadata.items():
        metadata.create_all(engine, tables=tables)


def check(engine: Engine, model: type[Any]) -> None:
    """Raises SchemaMismatch unless all tables exist, in the version that this library needs, and ConfigurationError for
    a server that is too old."""
    if _is_complete(engine, model):
        return
    with engine.begin() as connection:
        version = version_on(connection, model)
        if version is not None:
            _refuse_other(version)
        if version is None and _has(connection, table_of(model)):
            raise SchemaMismatch(_UNVERSIONED)
        missing = [table.fullname for table in tables_of(model) if not _has(connection, table)]
    if missing:
        raise SchemaMismatch(
            f"the database has no table {sorted(missing)[0]!r}: `async-task install` writes the revision, and `alembic "
            "upgrade head` carries it out; `async-task install --apply` makes the tables at once"
        )


def _is_complete(engine: Engine, model: type[Any]) -> bool:
    """Whether all tables exist, in the version that this library needs: one statement, where a look at each table takes
    seven. After an error of the database: False."""
    c = companion_tables(table_of(model)).version.c
    no_row = [~exists().select_from(table).where(false()) for table in tables_of(model)]
    try:
        with engine.begin() as connection:
            refuse_old_server(connection)
            return connection.scalar(select(c.version).where(*no_row)) == SCHEMA_VERSION
    except DBAPIError:  # a table is missing, or may not be read
        return False


def version_in(engine: Engine, model: type[Any]) -> int | None:
    """The version of the tables in this database; None if they do not exist, or have no version."""
    with engine.begin() as connection:
        return version_on(connection, model)


_UNVERSIONED = (
    "the tables of async-task are there without a version, as autogenerate or a copy makes them: `async-task adopt` "
    "takes them over"
)


def version_on(connection: Connection, model: type[Any]) -> int | None:
    """The same in the transaction of `connection`."""
    refuse_old_server(connection)
    table = companion_tables(table_of(model)).version
    return connection.scalar(select(table.c.version)) if _has(connection, table) else None


def _has(connection: Connection, table: Table) -> bool:
    return inspect(connection).has_table(table.name, schema=connection.schema_for_object(table))


def _refuse_other(version: int) -> None:
    if version > SCHEMA_VERSION:
        words = "upgrade the library"
    elif version < SCHEMA_VERSION:
        words = (
            "`async-task upgrade` writes the revision, and `alembic upgrade head` carries it out; `async-task upgrade "
            "--apply` changes the tables at once"
        )
    else:
        return
    raise SchemaMismatch(f"the tables are of version {version}, and this library needs {SCHEMA_VERSION}: {words}")
