"""The user's classes that may stand in stored arguments: Enums, dataclasses, NamedTuples and pydantic models.

Reading a stored text looks classes up here and nowhere else, so a text can never name code that was not offered.
"""

import dataclasses
import enum
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar, overload

from async_task.errors import ConfigurationError

_C = TypeVar("_C")
_Default = Callable[[], object]

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


class Unstorable(Exception):
    """Why a value cannot be stored; gathers the path to it on its way up, innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


class ArgumentType:
    """One registered class: the name it is stored under, and how an instance is taken apart and put together."""

    kind: ClassVar[str]

    def __init__(self, name: str, cls: type) -> None:
        self.name = name
        self.cls: Any = cls

    @classmethod
    def covers(cls, candidate: type) -> bool:
        """Whether the class is of this kind."""
        raise NotImplementedError

    def take_apart(self, value: Any) -> str | int | dict[str, object]:
        """What an instance is made of: nothing is left out that `put_together` would not bring back. Or Unstorable."""
        raise NotImplementedError

    def put_together(self, parts: Any) -> object:
        """The instance made of these parts, without its `__init__`. May raise anything if the parts do not fit."""
        raise NotImplementedError


class _FlagType(ArgumentType):
    kind = "a Flag"

    @classmethod
    def covers(cls, candidate: type) -> bool:
        return issubclass(candidate, enum.Flag)

    def take_apart(self, value: Any) -> int:
        return int(value._value_)

    def put_together(self, parts: Any) -> object:
        flag = self.cls(parts)
        if type(parts) is not int or type(flag) is not self.cls or flag._value_ != parts:
            raise ValueError
        return flag


class _EnumType(ArgumentType):
    kind = "an Enum"

    @classmethod
    def covers(cls, candidate: type) -> bool:
        return issubclass(candidate, enum.Enum)

    def take_apart(self, value: Any) -> str:
        name = value._name_
        if name not in self.cls.__members__:
            raise Unstorable(f"{a(type(value))} that is none of its named members cannot be stored: pass its value")
        return str(name)

    def put_together(self, parts: Any) -> object:
        return self.cls[parts]


class _RecordType(ArgumentType):
    """What holds its parts in named fields."""

    @functools.cached_property
    def fields(self) -> Mapping[str, _Default | None]:
        """The fields in order, each with what makes its default, or None where a value is required.

        Read at first use: while a pydantic model is being registered, its forward references may still be open.
        """
        return dict(self._fields())

    @functools.cached_property
    def derived(self) -> frozenset[str]:
        """Attributes of an instance that are not stored because they come back by themselves."""
        cached = {
            name
            for owner in self.cls.__mro__
            for name, attribute in vars(owner).items()
            if isinstance(attribute, functools.cached_property)
        }
        return frozenset(cached | {"__orig_class__"})  # typing leaves it on what Box[int](...) makes

    def _fields(self) -> Iterator[tuple[str, _Default | None]]:
        raise NotImplementedError

    def _only_fields(self, held: Mapping[str, object]) -> dict[str, object]:
        for name in self.fields:
            if name not in held:
                raise Unstorable(f"its field {name} has no value: set it before the call is written down")
        for name in held:
            if name not in self.fields and name not in self.derived:
                raise Unstorable(f"it holds {name}, which is not a field and would be lost: make it one, or remove it")
        return {name: held[name] for name in self.fields}

    def _all_fields(self, parts: Mapping[str, object]) -> dict[str, object]:
        if parts.keys() - self.fields.keys():
            raise ValueError
        return {name: parts[name] if name in parts else _made(default) for name, default in self.fields.items()}


class _DataclassType(_RecordType):
    kind = "a dataclass"

    @classmethod
    def covers(cls, candidate: type) -> bool:
        return dataclasses.is_dataclass(candidate)

    def _fields(self) -> Iterator[tuple[str, _Default | None]]:
        validated = getattr(self.cls, "__pydantic_fields__", {})  # a pydantic dataclass leaves a Field() as the default
        for field in dataclasses.fields(self.cls):
            yield field.name, _model_default(validated[field.name]) if field.name in validated else _default(field)

    def take_apart(self, value: Any) -> dict[str, object]:
        held = _held_by(value)
        for name in self.fields:
            if name not in held and hasattr(value, name):  # a default that stands on the class, or behind a descriptor
                held[name] = getattr(value, name)
        return self._only_fields(held)

    def put_together(self, parts: Any) -> object:
        instance = object.__new__(self.cls)
        for name, part in self._all_fields(parts).items():
            object.__setattr__(instance, name, part)
        return instance


class _NamedTupleType(_RecordType):
    kind = "a NamedTuple"

    @classmethod
    def covers(cls, candidate: type) -> bool:
        return issubclass(candidate, tuple) and hasattr(candidate, "_fields")

    def _fields(self) -> Iterator[tuple[str, _Default | None]]:
        for name in self.cls._fields:
            default = functools.partial(self.cls._field_defaults.get, name)
            yield name, default if name in self.cls._field_defaults else None

    def take_apart(self, value: Any) -> dict[str, object]:
        items = dict(zip(self.fields, value, strict=False))
        return self._only_fields(_held_by(value) | items)

    def put_together(self, parts: Any) -> object:
        return tuple.__new__(self.cls, self._all_fields(parts).values())


class _ModelType(_RecordType):
    kind = "a pydantic model"
    _kept = frozenset(("__dict__", "__pydantic_fields_set__"))  # a RootModel leaves out extras and private attributes

    @classmethod
    def covers(cls, candidate: type) -> bool:
        # Who has a model has imported pydantic; who has none does not pay for the import.
        return getattr(sys.modules.get("pydantic.main"), "BaseModel", None) in candidate.__mro__

    def _fields(self) -> Iterator[tuple[str, _Default | None]]:
        for name, field in self.cls.model_fields.items():
            yield name, _model_default(field)

    def take_apart(self, value: Any) -> dict[str, object]:
        state = value.__getstate__()
        if type(state) is not dict or not self._kept <= state.keys():
            raise Unstorable(f"the __getstate__ of {a(type(value))} leaves out what pydantic keeps: extend it instead")
        return {**state, "__dict__": self._only_fields(state["__dict__"])}

    def put_together(self, parts: Any) -> object:
        extra, private = parts.get("__pydantic_extra__"), parts.get("__pydantic_private__")
        if type(parts["__pydantic_fields_set__"]) is not set or {type(extra), type(private)} - {dict, type(None)}:
            raise ValueError
        model = self.cls.__new__(self.cls)
        model.__setstate__({**parts, "__dict__": self._all_fields(parts["__dict__"])})
        return model


_KINDS: tuple[type[ArgumentType], ...] = (_FlagType, _EnumType, _ModelType, _DataclassType, _NamedTupleType)


def _held_by(value: object) -> dict[str, object]:
    """What an instance holds in its __dict__ and its slots, whatever its class makes of pickling."""
    state: Any = object.__getstate__(value)
    in_dict, in_slots = state if isinstance(state, tuple) else (state, None)
    return {**(in_dict or {}), **(in_slots or {})}


def _made(default: _Default | None) -> object:
    if default is None:
        raise ValueError
    return default()


def _default(field: "dataclasses.Field[Any]") -> _Default | None:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return None if field.default is dataclasses.MISSING else lambda: field.default


def _model_default(field: Any) -> _Default | None:
    return None if field.is_required() else functools.partial(field.get_default, call_default_factory=True)


# The registry.

_by_class: dict[type, ArgumentType] = {}
_by_name: dict[str, ArgumentType] = {}


def of_class(cls: type) -> ArgumentType | None:
    """The registration of exactly this class."""
    return _by_class.get(cls)


def of_name(name: str) -> ArgumentType | None:
    """The registration under this name; never an import."""
    return _by_name.get(name)


def kind_of(cls: type) -> type[ArgumentType] | None:
    """Which of the kinds that can be registered this class is, if any."""
    return next((kind for kind in _KINDS if kind.covers(cls)), None)


def is_mapped(cls: type) -> bool:
    """Whether instances are rows of the database (SQLAlchemy, and so SQLModel tables)."""
    return getattr(cls, "__mapper__", None) is not None


def a(cls: type) -> str:
    """The name of a class as a noun in a sentence."""
    return f"{'an' if cls.__name__[:1] in 'AEIOaeio' else 'a'} {cls.__name__}"


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
    if kind is _DataclassType and issubclass(cls, _WITH_CONTENTS):
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
