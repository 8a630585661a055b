"""What the tables of models that are their own jobs lack in the database."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Index, Inspector, Table, inspect


def lacking(connection: Connection, model: type[Any], indexes: Sequence[Index]) -> Iterator[str]:
    """A sentence for each table and mapped column of the class, and for each of these `indexes`, that is missing. An
    index of another name on the same columns serves as well."""
    found: Inspector = inspect(connection)
    for table in inspect(model).tables:
        if not found.has_table(table.name, table.schema):
            yield f"{model.__name__}: the table {table.fullname} is missing"
        else:
            yield from _lacking_in(found, model, table, [one for one in indexes if one.table is table])


def _lacking_in(found: Inspector, model: type[Any], table: Table, indexes: Sequence[Index]) -> Iterator[str]:
    there = {column["name"] for column in found.get_columns(table.name, schema=table.schema)}
    for column in _mapped(model):
        if column.table is table and column.name not in there:
            yield f"{model.__name__}: {table.fullname} lacks the column {column.name}"
    beginnings = [tuple(one["column_names"]) for one in found.get_indexes(table.name, schema=table.schema)]
    for index in indexes:
        names = tuple(column.name for column in index.columns)
        if not any(names == one[: len(names)] for one in beginnings) and there.issuperset(names):
            yield f"{model.__name__}: {table.fullname} lacks the index {index.name}, on {', '.join(names)}"


def _mapped(model: type[Any]) -> Iterator[Column[Any]]:
    for one in inspect(model).column_attrs:
        yield from (column for column in one.columns if isinstance(column, Column))
