"""The kinds of classes whose instances can be stored, and how an instance is taken apart and put together."""

import dataclasses
import enum
import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

_Default = Callable[[], object]


class Unstorable(Exception):
    """Why a value cannot be stored. `path` is collected on the way up, innermost part first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


class ArgumentType(ABC):
    """One registered class: the name it is stored under, and how an instance is taken apart and put together."""

    kind: ClassVar[str]

    def __init__(self, name: str, cls: type) -> None:
        self.name = name
        self.cls: Any = cls

    @classmethod
    @abstractmethod
    def covers(cls, candidate: type) -> bool:
        """Whether the class is of this kind."""

    @abstractmethod
    def take_apart(self, value: Any) -> str | int | dict[str, object]:
        """Everything that `put_together` needs to make an equal instance. Raises Unstorable."""

    @abstractmethod
    def put_together(self, parts: Any) -> object:
        """The instance with these parts, made without its `__init__`. May raise anything if they do not fit."""

    def default_of(self, field: str) -> _Default | None:
        """What makes the default of a field; None where it has none."""
        return None


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
    """A class whose instances have named fields."""

    @functools.cached_property
    def fields(self) -> Mapping[str, _Default | None]:
        """The fields in order, each with a function that makes its default; None where a value is required.

        Read at first use: while a pydantic model is being registered, its forward references may be unresolved.
        """
        return dict(self._fields())

    def default_of(self, field: str) -> _Default | None:
        return dict(self._fields()).get(field)

    @functools.cached_property
    def derived(self) -> frozenset[str]:
        """Attributes of an instance that are not stored, because they are computed again."""
        cached = {
            name
            for owner in self.cls.__mro__
            for name, attribute in vars(owner).items()
            if isinstance(attribute, functools.cached_property)
        }
        return frozenset(cached | {"__orig_class__"})  # typing sets it on the result of Box[int](...)

    @abstractmethod
    def _fields(self) -> Iterator[tuple[str, _Default | None]]:
        """Each field, and the function that makes its default; None where it has none."""

    def _only_fields(self, held: Mapping[str, object]) -> dict[str, object]:
        for name in self.fields:
            if name not in held:
                raise Unstorable(f"its field {name} has no value: set it before the attempt is created")
        for name in held:
            if name not in self.fields and name not in self.derived:
                raise Unstorable(f"it holds {name}, which is not a field and would be lost: make it one, or remove it")
        return {name: held[name] for name in self.fields}

    def _all_fields(self, parts: Mapping[str, object]) -> dict[str, object]:
        if parts.keys() - self.fields.keys():
            raise ValueError
        return {name: parts[name] if name in parts else _made(default) for name, default in self.fields.items()}


class DataclassType(_RecordType):
    kind = "a dataclass"

    @classmethod
    def covers(cls, candidate: type) -> bool:
        return dataclasses.is_dataclass(candidate)

    def _fields(self) -> Iterator[tuple[str, _Default | None]]:
        validated = getattr(self.cls, "__pydantic_fields__", {})  # a pydantic dataclass has a Field() as default
        for field in dataclasses.fields(self.cls):
            yield field.name, _model_default(validated[field.name]) if field.name in validated else _default(field)

    def take_apart(self, value: Any) -> dict[str, object]:
        held = _held_by(value)
        for name in self.fields:
            if name not in held and hasattr(value, name):  # a default on the class, or from a descriptor
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
    _kept = frozenset(("__dict__", "__pydantic_fields_set__"))  # a RootModel has no extras and private attributes

    @classmethod
    def covers(cls, candidate: type) -> bool:
        # A process with a model has imported pydantic already; others should not pay for the import.
        return getattr(sys.modules.get("pydantic.main"), "BaseModel", None) in candidate.__mro__

    def _fields(self) -> Iterator[tuple[str, _Default | None]]:
        for name, field in self.cls.model_fields.items():
            yield name, _model_default(field)

    def take_apart(self, value: Any) -> dict[str, object]:
        state = value.__getstate__()
        if type(state) is not dict or not self._kept <= state.keys():
            raise Unstorable(f"the __getstate__ of {a(type(value))} leaves out parts of pydantic's own: extend it")
        return {**state, "__dict__": self._only_fields(state["__dict__"])}

    def put_together(self, parts: Any) -> object:
        extra, private = parts.get("__pydantic_extra__"), parts.get("__pydantic_private__")
        if type(parts["__pydantic_fields_set__"]) is not set or {type(extra), type(private)} - {dict, type(None)}:
            raise ValueError
        model = self.cls.__new__(self.cls)
        model.__setstate__({**parts, "__dict__": self._all_fields(parts["__dict__"])})
        return model


_KINDS: tuple[type[ArgumentType], ...] = (_FlagType, _EnumType, _ModelType, DataclassType, _NamedTupleType)


def _held_by(value: object) -> dict[str, object]:
    """The values in an instance's __dict__ and slots, whatever its class does for pickling."""
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


def kind_of(cls: type) -> type[ArgumentType] | None:
    """The kind of this class; None if it cannot be registered."""
    return next((kind for kind in _KINDS if kind.covers(cls)), None)


def is_mapped(cls: type) -> bool:
    """Whether instances are rows of a database: SQLAlchemy models, and SQLModel tables."""
    return getattr(cls, "__mapper__", None) is not None


def a(cls: type) -> str:
    """The name of a class with its article, "an Order"."""
    return f"{'an' if cls.__name__[:1] in 'AEIOaeio' else 'a'} {cls.__name__}"
