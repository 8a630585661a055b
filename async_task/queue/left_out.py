"""What a claim leaves out: calls, encryptors, keys and attempts. Each is a condition of the statements that look for
what is due."""

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Table, bindparam, or_

from async_task.database.pairs import joined, paired
from async_task.encryption.rotation import stored_head


class LeftOut(NamedTuple):
    """`calls`: each a target and a method. `encryptors`: names. `keys`: each an encryptor, and the beginning of the
    texts under the key (`stored_head_of`). `ids`: of attempts."""

    calls: tuple[tuple[str, str], ...] = ()
    encryptors: tuple[str, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()
    ids: tuple[uuid.UUID, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The fields that name anything: each set of parts is a statement of its own."""
        if not any(self):  # so it is for most claims
            return ()
        return tuple(name for name, named in zip(self._fields, self, strict=True) if named)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the conditions `but` these parts."""
        return {_parameter(name): self._values(name) for name in self.parts}

    def is_any_of(self, table: Table) -> ColumnElement[bool]:
        """The row is one of those that are left out; with the values in it."""
        return or_(*(_column(table, name).in_(self._values(name)) for name in self.parts))

    def _values(self, part: str) -> tuple[Any, ...]:
        return tuple(joined(one) if isinstance(one, tuple) else one for one in getattr(self, part))


NOTHING = LeftOut()


def but(table: Table, parts: tuple[str, ...]) -> tuple[ColumnElement[bool], ...]:
    """The conditions that leave out these parts, whose names are sent as parameters."""
    return tuple(_column(table, name).not_in(bindparam(_parameter(name), expanding=True)) for name in parts)


def _parameter(part: str) -> str:
    return f"other_{part}"


def _column(table: Table, part: str) -> Any:
    return _COLUMNS[part](table)


_COLUMNS: dict[str, Callable[[Table], Any]] = {
    "calls": lambda table: paired(table.c.target, table.c.method_name),
    "encryptors": lambda table: table.c.encryptor,
    "keys": lambda table: paired(table.c.encryptor, stored_head(table)),
    "ids": lambda table: table.c.id,
}
