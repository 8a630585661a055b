"""The user's classes that may stand in stored arguments: Enums, dataclasses, NamedTuples and pydantic models.

Reading a stored text looks classes up here and nowhere else, so a text can never name code that was not offered.
"""

from collections.abc import Callable
from typing import TypeVar, overload

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

    They are stored under `name`, or else "module:qualname"; a name of its own survives a rename of the class.
    Registering a class again is harmless; under a second name it is written by the newest and read by each. Raises
    ConfigurationError for any other kind of class, for a name in use, and where no worker could find the class.
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
    """The registration under this name; never an import."""
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
            f"{_place(cls)} is a dataclass that extends a builtin type, whose contents are no field: hold them in one"
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
            f"{name!r} cannot be the name of {_place(cls)}: take printable text, and none of "
            f"{', '.join(sorted(BUILTIN_TAGS))}"
        )
    return name


def _same_definition(known: type, cls: type) -> bool:
    return _place(known) == _place(cls)  # importlib.reload makes a second class of one definition


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
