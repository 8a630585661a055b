"""Rows of `create_many` that are alike: many calls of one target with plain arguments.

To check such a row runs no code of the user's, which might use the session or take long. So the server may read the
first rows while the others are checked.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from async_task.attempts.draft import Draft
from async_task.encryption.encryptors import NullEncryptor
from async_task.targets.parameter_types import PLAIN

MANY = 1_000
_COMMON = frozenset({"target", "method_name", "queue", "priority", "encryptor", "max_attempts", "retry", "timeout"})
_TEXT = (type(None), str)
_OWN = frozenset({"method_args", "idempotence_token", "scheduled_at", "expires_at"})


def are_many_alike(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether this is a list of many rows with the same names in the same order, which differ in what each call has of
    its own alone. A generator is none: it may use the session."""
    if type(rows) is not list or len(rows) < MANY or type(rows[0]) is not dict:
        return False
    names = list(rows[0])
    if not _COMMON.union(_OWN).issuperset(names):
        return False
    common = [(name, value) for name, value in rows[0].items() if name in _COMMON]
    has_arguments, has_token = "method_args" in names, "idempotence_token" in names
    for row in rows:
        if type(row) is not dict or [*row] != names:
            return False
        for name, value in common:
            if row[name] is not value:
                return False
        if (has_arguments and not _is_plain(row["method_args"])) or (
            has_token and type(row["idempotence_token"]) not in _TEXT
        ):
            return False
    return True


def _is_plain(arguments: object) -> bool:
    return type(arguments) is dict and PLAIN.issuperset(map(type, arguments.values()))


def has_plain_arguments(made: Draft) -> bool:
    """Whether arguments of this method are plain values, which are stored as they are."""
    form = made.form
    return form.sealer.name == NullEncryptor.name and form.method.signature.takes_plain_values
