"""The classes that an annotation speaks of: what a target's parameter can hold, its arguments can be stored as."""

import dataclasses
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from async_task.arguments.kinds import is_mapped, kind_of
from async_task.arguments.types import argument_type
from async_task.errors import ConfigurationError


def register_annotation(annotation: object) -> None:
    """Register every class that an argument with this annotation can hold, through generics, aliases and nested fields.

    A class that is registered already keeps its name. Raises ConfigurationError as `argument_type` does, and for a
    mapped class or a name that cannot be resolved.
    """
    # `seen` holds the classes and aliases on the way: only through those can a type contain itself.
    _walk(annotation, set())


def _walk(annotation: Any, seen: set[object]) -> None:
    origin = typing.get_origin(annotation)
    if isinstance(annotation, str | typing.ForwardRef):
        raise ConfigurationError(_unresolved(getattr(annotation, "__forward_arg__", annotation)))
    if origin is Literal:
        _walk_each((type(value) for value in typing.get_args(annotation)), seen)
    elif origin is typing.Annotated:
        _walk(annotation.__origin__, seen)
    elif origin is type:
        return  # a class as the argument, which cannot be stored anyway
    elif origin is not None:
        _walk_each((origin, *typing.get_args(annotation)), seen)
    elif isinstance(annotation, list):  # the parameters of a Callable
        _walk_each(typing.cast("list[object]", annotation), seen)
    elif isinstance(annotation, TypeVar):
        _walk_each((annotation.__bound__, *annotation.__constraints__), seen)
    elif isinstance(annotation, type):
        _walk_class(annotation, seen)
    elif isinstance(annotation, typing.NewType):
        _walk(annotation.__supertype__, seen)
    elif type(annotation).__name__ == "TypeAliasType" and annotation not in seen:
        seen.add(annotation)
        _walk_each(_alias_hints(annotation), seen)


def _walk_each(annotations: Iterable[object], seen: set[object]) -> None:
    for annotation in annotations:
        _walk(annotation, seen)


def _walk_class(cls: type, seen: set[object]) -> None:
    if cls in seen:
        return
    seen.add(cls)
    if is_mapped(cls):
        raise ConfigurationError(f"{cls.__name__} is a mapped class: pass its id")
    if kind_of(cls) is not None:
        argument_type(cls)
        _walk_each(_held_annotations(cls), seen)
    elif typing.is_typeddict(cls):
        _walk_each(_hints(cls, cls.__annotations__), seen)


def _held_annotations(cls: Any) -> list[object]:
    """The annotations of what an instance of a registered class holds."""
    if hasattr(cls, "__pydantic_complete__") and hasattr(cls, "model_fields"):
        if not cls.__pydantic_complete__:
            cls.model_rebuild(raise_errors=False)
        return [field.annotation for field in cls.model_fields.values()]
    if dataclasses.is_dataclass(cls):
        return _hints(cls, [field.name for field in dataclasses.fields(cls)])
    return _hints(cls, getattr(cls, "_fields", ()))


def _alias_hints(alias: Any) -> list[object]:
    # Before Python 3.12 an alias refers to itself by a string, which means something in the module of the alias.
    value = _resolved(lambda: alias.__value__, str(alias))
    return _hints(
        type(str(alias), (), {"__module__": alias.__module__, "__annotations__": {"value": value}}), ["value"]
    )


def _hints(cls: Any, names: Iterable[str]) -> list[object]:
    hints = _resolved(lambda: typing.get_type_hints(cls, include_extras=True), cls.__qualname__)
    return [hints[name] for name in names if name in hints]


def _resolved(evaluate: Callable[[], Any], owner: str) -> Any:
    try:
        return evaluate()
    except NameError as error:
        raise ConfigurationError(f"{owner}: {_unresolved(error.name)}") from error


def _unresolved(name: object) -> str:
    return f"the annotation {name!r} cannot be resolved: import it for real, not only under TYPE_CHECKING"
