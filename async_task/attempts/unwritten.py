"""Calls that are checked and not written, for tests of code that has nothing to do with them: the mode "off" of
`async_task.testing`."""

from typing import Any, TypeVar

from sqlalchemy import inspect

from async_task.attempts.draft import Draft
from async_task.attempts.own_columns import own_values

M = TypeVar("M")
is_off = False
"""Whether calls are not written now."""


def unwritten(model: type[M], made: Draft) -> M:
    """An instance of `model` that belongs to no session. Raises InvalidArguments for a name that is no column of the
    user's."""
    values: dict[str, Any] = made.given_values
    values["encoded_args"] = values.pop("method_args")
    mapper: Any = inspect(model)
    return model(**values, **own_values(mapper, made.columns))


def is_unwritten(attempt: object) -> bool:
    """Whether this attempt was not written, and is not to be."""
    return is_off and bool(inspect(attempt).transient)
