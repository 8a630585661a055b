"""The user's classes that stored arguments may contain: Enums, dataclasses, NamedTuples and pydantic models.

Decoding finds classes here and nowhere else, so a stored text cannot name any other code.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, overload

import typing_extensions

from async_task.arguments.kinds import ArgumentType, DataclassType, a, is_mapped, kind_of
from async_task.errors import ConfigurationError

_C = TypeVar("_C")

MAX_DEPTH = 100
"""How many levels deep arguments may be nested."""

BUILTIN_TAGS = frozenset(
    "bytes date datetime decimal dict float frozenset set str time timedelta tuple uuid".split()  # noqa: SIM905
)
"""The tags that `encoding` writes itself; no class can be registered under one of them."""


@overload
def argument_type(cls: type[_C], /, *, name: str | None = None) -> type[_C]: ...
@overload
def argument_type(cls: None = None, /, *, name: str | None = None) -> Callable[[type[_C]], type[_C]]: ...
def argument_type(
    cls: type[_C] | None = None, /, *, name: str | None = None
) -> type[_C] | Callable[[type[_C]], type[_C]]:
    """Let instances of this Enum, dataclass, NamedTuple or pydantic model be arguments of a call.

    Classes in the annotations of a target are registered by themselves; this is for those under `Any`, and to give one
    a name that survives a rename.

        @argument_type(name="shop.line")
        @dataclass
        class Line:
            product: str
            price: Decimal

    Without `name` it is stored as "module:qualname". A class may be registered again; with two names it is written
    under the newer one, and read under both. Raises ConfigurationError for another kind of class, for a name in use,
    and for a class that no worker could import.
    """
    if cls is None:
        return lambda decorated: _register(decorated, name)
    return _register(cls, name)


_by_class: dict[type, ArgumentType] = {}
_by_name: dict[str, ArgumentType] = {}


def of_class(cls: type) -> ArgumentType | None:
    """The registration of exactly this class."""
    return _by_class.get(cls)


def of_name(name: str) -> ArgumentType | None:
    """The registration under this name. Nothing is imported for it."""
    return _by_name.get(name)


def _register(cls: type[_C], name: str | None) -> type[_C]:
    kind = _storable_kind(cls)
    if name is None and cls in _by_class:
        return cls
    name = _default_name(cls) if name is None else _checked_name(cls, name)
    known = _by_name.get(name)
    if known is not None and not _same_definition(known.cls, cls):
        raise ConfigurationError(
            f"{_place(cls)} cannot be registered as {name!r}, because {_place(known.cls)} is: give one of them another "
            "name with @argument_type(name=...)"
        )
    _by_class[cls] = _by_name[name] = kind(name, cls)
    return cls


_WITH_CONTENTS = (BaseException, bytearray, bytes, dict, float, frozenset, int, list, set, str, tuple)


def _storable_kind(cls: object) -> type[ArgumentType]:
    if not isinstance(cls, type):
        raise ConfigurationError(f"argument_type takes a class, and was given {a(type(cls))}")
    if is_mapped(cls):
        raise ConfigurationError(f"{cls.__name__} is a mapped class: pass its id")
    kind = kind_of(cls)
    if kind is None:
        raise ConfigurationError(
            f"{_place(cls)} is not an Enum, a dataclass, a NamedTuple or a pydantic model: make it one (@argument_type "
            "stands above @dataclass), or pass what it is made of"
        )
    if kind is DataclassType and issubclass(cls, _WITH_CONTENTS):
        raise ConfigurationError(
            f"{_place(cls)} is a dataclass that extends a builtin type, whose contents are no field: put them into one"
        )
    return kind


def _default_name(cls: type) -> str:
    local = "<locals>" in cls.__qualname__
    if local or cls.__module__ in ("__main__", "__mp_main__"):
        raise ConfigurationError(
            f"{_place(cls)} is defined {'inside a function' if local else 'in __main__'}, where no worker can find it: "
            "move it to a module that the workers import, or give it a name with @argument_type(name=...)"
        )
    return _place(cls)


def _checked_name(cls: type, name: object) -> str:
    if not isinstance(name, str) or not name or not name.isprintable() or name in BUILTIN_TAGS:
        raise ConfigurationError(
            f"{name!r} cannot be the name of {_place(cls)}: use printable text, and none of "
            f"{', '.join(sorted(BUILTIN_TAGS))}"
        )
    return name


def _same_definition(known: type, cls: type) -> bool:
    return _place(known) == _place(cls)  # importlib.reload makes a second class of one definition


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def register_annotation(annotation: object) -> None:
    """Register each class that an argument with this annotation can contain, also in generics, aliases and fields.

    A class that is registered already keeps its name. Raises ConfigurationError as `argument_type` does, and for a
    mapped class or a name that cannot be resolved.
    """
    # `seen`: the classes and aliases on the way, because a type can contain itself only through them.
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
        _walk_each(held_annotations(cls).values(), seen)
    elif typing_extensions.is_typeddict(cls):
        _walk_each(held_annotations(cls).values(), seen)


def held_annotations(cls: Any) -> dict[str, object]:
    """The annotations of the fields of a registered class, or of a TypedDict. Raises ConfigurationError for a name that
    cannot be resolved."""
    if hasattr(cls, "__pydantic_complete__") and hasattr(cls, "model_fields"):
        if not cls.__pydantic_complete__:
            cls.model_rebuild(raise_errors=False)
        return {name: field.annotation for name, field in cls.model_fields.items()}
    if dataclasses.is_dataclass(cls):
        return _hints(cls, [field.name for field in dataclasses.fields(cls)])
    return _hints(cls, cls.__annotations__ if typing_extensions.is_typeddict(cls) else getattr(cls, "_fields", ()))


def _alias_hints(alias: Any) -> Iterable[object]:
    # Before Python 3.12 an alias refers to itself by a string, to be resolved in the alias's module.
    value = _resolved(lambda: alias.__value__, str(alias))
    return _hints(
        type(str(alias), (), {"__module__": alias.__module__, "__annotations__": {"value": value}}), ["value"]
    ).values()


def _hints(cls: Any, names: Iterable[str]) -> dict[str, object]:
    hints = _resolved(lambda: typing.get_type_hints(cls, include_extras=True), cls.__qualname__)
    return {name: hints[name] for name in names if name in hints}


def _resolved(evaluate: Callable[[], Any], owner: str) -> Any:
    try:
        return evaluate()
    except NameError as error:
        raise ConfigurationError(f"{owner}: {_unresolved(error.name)}") from error


def _unresolved(name: object) -> str:
    return f"the annotation {name!r} cannot be resolved: import it outside of TYPE_CHECKING"
