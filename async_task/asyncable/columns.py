"""The six columns of a model that is its own job: made, or found under the names that its table has already."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Index, Table, false, inspect
from sqlalchemy.orm import (
    ColumnProperty,
    InstrumentedAttribute,
    Mapped,
    MappedColumn,
    Mapper,
    column_property,
    declared_attr,
    mapped_column,
    synonym,
)
from sqlalchemy.schema import conv

from async_task.errors import ConfigurationError, near
from async_task.schema.columns import Instant, LongText

INSTANTS = ("submitted_at", "last_submitted_at", "attempted_at", "processed_at", "canceled_at")
NAMES = (*INSTANTS, "error")
RENAMED = "__asyncable_columns__"
LONGEST_NAME = 63


def names_of(model: type[Any]) -> dict[str, str]:
    """The name in the database of each of the six columns. Raises ConfigurationError."""
    given = getattr(model, RENAMED, {})
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{model.__name__}.{RENAMED} is a mapping of columns to their names, not {given!r}")
    for key, name in given.items():
        if key not in NAMES:
            raise ConfigurationError(
                f"{model.__name__}.{RENAMED} names a column {key!r}{near(str(key), NAMES)}: an Asyncable has "
                f"{', '.join(NAMES)}"
            )
        if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()):
            raise ConfigurationError(
                f"{model.__name__}.{RENAMED}: the name of {key} is a printable text of 1 to {LONGEST_NAME} characters, "
                f"not {name!r}"
            )
    names = {key: given.get(key, key) for key in NAMES}
    for key, name in names.items():
        other = next(one for one in NAMES if names[one] == name)
        if other != key:
            raise ConfigurationError(f"{model.__name__}.{RENAMED}: {other} and {key} are both the column {name!r}")
    return names


def made(model: Any, attribute: str) -> Mapped[Any]:
    """What the attribute of this class is mapped to: a column of its own, or one that is there. Raises
    ConfigurationError."""
    name = names_of(model)[attribute]
    table = vars(model).get("__table__")
    if table is not None:
        return _in_table(model, table, attribute, name)
    there = _attribute_of(model, name)
    if there is not None and there != attribute:
        return synonym(there)
    return mapped_column(name, _type_of(attribute), nullable=True)


def _in_table(model: type[Any], table: Table, attribute: str, name: str) -> Mapped[Any]:
    column = _named(table, name)
    if column is None:
        raise _missing(model, attribute, name, [table])
    mapped = next((key for key, value in vars(model).items() if value is column), column.key)
    return column_property(column) if mapped == attribute else synonym(mapped)


def _attribute_of(model: type[Any], name: str) -> str | None:
    """The attribute of the class, or of a base, that is the column of this name."""
    for base in model.__mro__:
        for key, value in _declared(base):
            if _column_name(key, value) == name:
                return key
    return None


def _declared(base: type[Any]) -> Iterator[tuple[str, Any]]:
    yield from list(vars(base).items())
    for key, hint in vars(base).get("__annotations__", {}).items():
        if key not in vars(base) and "Mapped" in str(hint):
            yield key, None


def _column_name(key: str, value: Any) -> str | None:
    """The name of the column that a class declares as `key`; None if that is no column."""
    if value is None or (isinstance(value, declared_attr) and not value.fget.__module__.startswith("async_task.")):
        return key
    if isinstance(value, InstrumentedAttribute):
        is_column = isinstance(getattr(value, "property", None), ColumnProperty)
        return value.property.columns[0].name if is_column else None
    column = value.column if isinstance(value, MappedColumn) else value
    return (column.name or key) if isinstance(column, Column) else None


def _type_of(attribute: str) -> Any:
    return LongText() if attribute == "error" else Instant()


def complete(mapper: Mapper[Any], model: type[Any]) -> None:
    """See that the columns are there, and add the index of the sweep to their table. Raises ConfigurationError."""
    names, tables = names_of(model), list(_tables(mapper))
    for attribute, name in names.items():
        if not any(_named(table, name) is not None for table in tables):
            raise _missing(model, attribute, name, tables)
    table = next((one for one in tables if all(_named(one, name) is not None for name in names.values())), None)
    if table is None:
        raise ConfigurationError(f"{model.__name__}: its columns {', '.join(names.values())} are in several tables")
    if isinstance(table, Table):
        _add_index(table, names)


def _tables(mapper: Mapper[Any]) -> Iterator[Any]:
    one: Mapper[Any] | None = mapper
    while one is not None:
        yield one.local_table
        one = one.inherits


def _missing(model: type[Any], attribute: str, name: str, tables: list[Any]) -> ConfigurationError:
    table = tables[0]
    return ConfigurationError(
        f"{model.__name__}: {attribute} is the column {name!r}, which {table.name} does not have"
        f"{near(name, [column.name for column in table.columns])}"
    )


def index_name(table: Table) -> str:
    return f"ix_{table.name}_asyncable"


def _add_index(table: Table, names: Mapping[str, str]) -> None:
    """The index along which the sweep reads, oldest first. Partial where the database can: finished rows cost nothing.

    MySQL has no partial index, so that the columns begin with those that are null."""
    label = index_name(table)
    if any(index.name == label for index in table.indexes):
        return
    columns = [_named(table, names[one]) for one in ("processed_at", "canceled_at", "last_submitted_at")]
    processed, canceled, _ = columns
    is_open = processed.is_(None) & canceled.is_(None)
    Index(conv(label), *columns, postgresql_where=is_open, sqlite_where=is_open)


def _named(table: Any, name: str) -> Any:
    return next((column for column in table.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class AsyncableSchema:
    """What an `Asyncable` needs in its table."""

    table: Table
    columns: tuple[Column[Any], ...]
    index: Index


def asyncable_schema(model: type[Any]) -> AsyncableSchema:
    """The six columns of a class and the index of its sweep, for those who write migrations."""
    columns = tuple(columns_of(model).values())
    table = columns[0].table
    return AsyncableSchema(table, columns, next(one for one in table.indexes if one.name == index_name(table)))


def columns_of(model: type[Any]) -> dict[str, Any]:
    """The column of each of the six, of a mapped class."""
    columns = inspect(model).columns
    return {key: next(c for c in columns if c.name == name) for key, name in names_of(model).items()}


def values_of(row: Any) -> dict[str, Any]:
    """The value of each of the six in a row, as its attributes have them."""
    mapper = inspect(type(row))
    return {key: getattr(row, mapper.get_property_by_column(c).key) for key, c in columns_of(type(row)).items()}


def attributes_of(model: type[Any]) -> dict[str, str]:
    """The attribute of the class under which each of the six is mapped."""
    mapper = inspect(model)
    return {key: mapper.get_property_by_column(c).key for key, c in columns_of(model).items()}


def own_rows(model: type[Any], statement: Any) -> Any:
    """The statement without the rows of subclasses, which have a job of their own."""
    mapper: Any = inspect(model)
    if mapper.polymorphic_on is None:
        return statement
    if mapper.polymorphic_identity is None:  # no row can be loaded as one of the base itself
        return statement.where(false())
    return statement.where(mapper.polymorphic_on == mapper.polymorphic_identity)
