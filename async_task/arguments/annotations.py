"""Annotations whose values can never be stored, found when a target is registered."""

import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import typing_extensions

from async_task.arguments.encoding import PLAIN_TYPES, instead_of
from async_task.arguments.kinds import a, kind_of
from async_task.arguments.types import held_annotations

_UNIONS = (typing.Union, types.UnionType)
_QUALIFIERS = (typing.Required, typing.NotRequired, typing_extensions.ReadOnly)
_LIBRARIES = ("collections.abc", "typing")
"""Modules of abstract classes of which no storable class is a subclass only by accident."""


def why_unstorable(annotation: Any, within: tuple[type, ...] = ()) -> str | None:
    """Why no value but None with this annotation can be stored, and what to write instead; None if some can. `within`:
    the classes whose fields are being examined."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Annotated, *_QUALIFIERS):
        return why_unstorable(typing.get_args(annotation)[0], within)
    if isinstance(annotation, typing.NewType):
        return why_unstorable(annotation.__supertype__, within)
    if origin in _UNIONS:
        return _why_all([one for one in typing.get_args(annotation) if one is not type(None)], within)
    if origin is type:
        return "a class cannot be stored: take a str, and pass its name"
    if isinstance(origin, type):
        return _why_class(origin, within) or _why_contents(origin, typing.get_args(annotation), within)
    return _why_class(annotation, within) if isinstance(annotation, type) else None


def _why_all(members: list[Any], within: tuple[type, ...]) -> str | None:
    reasons = [why_unstorable(one, within) for one in members]
    return reasons[0] if reasons and all(reasons) else None


def _why_contents(origin: type, parts: tuple[Any, ...], within: tuple[type, ...]) -> str | None:
    if kind_of(origin) is not None:  # a generic class of the user's own: it says itself where its parts are
        return None
    return next((why for part in parts if (why := why_unstorable(part, within)) is not None), None)


def _why_fields(cls: type, within: tuple[type, ...]) -> str | None:
    """Why a class of the user's own cannot be stored: a field without which none is stored cannot be."""
    if cls in within:
        return None  # it contains itself: at some place there is None, or an empty list
    for name, hint in held_annotations(cls).items():
        why = why_unstorable(hint, (*within, cls))
        if why is not None and _needs(cls, name):
            return f"{cls.__name__}.{name}: {why}"
    return None


def _needs(cls: Any, name: str) -> bool:
    """Whether each instance has a value other than None in this field, as far as its default says."""
    if typing_extensions.is_typeddict(cls):
        return name in cls.__required_keys__
    kind = kind_of(cls)
    default = None if kind is None else kind("", cls).default_of(name)
    try:
        return default is None or default() is not None
    except Exception:  # of the user's own factory
        return True


def _why_class(cls: type, within: tuple[type, ...]) -> str | None:
    if sys.version_info < (3, 12) and typing_extensions.is_typeddict(cls) and type(cls).__module__ == "typing":
        return (
            f"{cls.__name__} is a TypedDict of typing, which cannot be checked before Python 3.12: "
            "from typing_extensions import TypedDict"
        )
    if kind_of(cls) is not None or typing_extensions.is_typeddict(cls):
        return _why_fields(cls, within)
    if _may_hold_a_storable_value(cls):
        return None
    for plain in PLAIN_TYPES:
        if issubclass(cls, plain):
            return f"{a(cls)} is a subclass of {plain.__name__} that would not come back: take a plain {plain.__name__}"
    return f"{a(cls)} cannot be stored: {instead_of(cls)}"


def _may_hold_a_storable_value(cls: type) -> bool:
    if cls is Any or hasattr(cls, "__get_pydantic_core_schema__"):
        return True
    try:
        if any(issubclass(plain, cls) for plain in PLAIN_TYPES):
            return True
    except TypeError:  # a Protocol, which says nothing at run time
        return True
    is_open = inspect.isabstract(cls) and cls.__module__ not in _LIBRARIES
    return is_open or any(kind_of(one) is not None for one in _subclasses(cls))


def _subclasses(cls: type) -> Iterator[type]:
    known: list[type] = type.__subclasses__(cls)
    for one in known:
        yield one
        yield from _subclasses(one)
