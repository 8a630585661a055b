"""The columns that the user has added to the model: their values, as `create(columns=...)` is given them."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table
from sqlalchemy.orm import Mapper

from async_task.errors import InvalidArguments, near


def own_values(mapper: Mapper[Any], given: object) -> dict[str, Any]:
    """The values by the names of the attributes. Raises InvalidArguments for a name that is no column of the user's."""
    if not isinstance(given, Mapping):
        raise InvalidArguments(f"columns: takes a mapping of names to values, not {type(given).__name__}")
    for name in given:
        if not (isinstance(name, str) and name in mapper.column_attrs and not _is_ours(mapper, name)):
            raise _refused(mapper, name)
    return dict(given)


def own_values_by_column(mapper: Mapper[Any], table: Table, given: object) -> dict[str, Any]:
    """The same by the keys of the table's columns, for an INSERT of Core; with the value that tells the class of a row,
    and the first version of it, which the unit of work would write."""
    written: dict[str, Any] = {}
    if mapper.polymorphic_on is not None and mapper.polymorphic_identity is not None:
        written[str(mapper.polymorphic_on.key)] = mapper.polymorphic_identity
    if mapper.version_id_col is not None and callable(mapper.version_id_generator):
        written[str(mapper.version_id_col.key)] = mapper.version_id_generator(None)
    values = own_values(mapper, given)
    return written | {mapper.column_attrs[name].columns[0].key: value for name, value in values.items()}


def _refused(mapper: Mapper[Any], name: object) -> InvalidArguments:
    if isinstance(name, str) and _is_ours(mapper, name):
        return InvalidArguments(f"columns: {name} is not a column of your own: give it as {name}=, if that is taken")
    known = [one for one in mapper.column_attrs.keys() if not _is_ours(mapper, one)]  # noqa: SIM118
    added = f"the columns that it adds are {', '.join(known)}" if known else "it adds none"
    return InvalidArguments(
        f"columns: {mapper.class_.__name__} adds no column {name!r}{near(str(name), known)}: {added}"
    )


def _is_ours(mapper: Mapper[Any], name: str) -> bool:
    """Whether the mixin has an attribute of that name; a subclass may give its column another type."""
    return any(name in vars(cls) for cls in mapper.class_.__mro__ if cls.__module__.startswith("async_task.attempts."))
