"""What the annotations of a target's parameters allow, checked by pydantic. No message holds an argument's value."""

import datetime as dt
import json
import math
import typing
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from functools import cache, cached_property, partial
from inspect import Parameter
from itertools import pairwise
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar

import typing_extensions

from async_task.arguments.json_input import refuse_booleans_as_numbers
from async_task.errors import ConfigurationError, InvalidArguments

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
"""Types whose values pydantic never converts in strict mode."""
COMPARED = frozenset({Decimal, dt.date, dt.datetime, dt.time, dt.timedelta, uuid.UUID, set, frozenset})
"""Further types whose values can be compared with what a validator makes of them."""

MOST_NAMED = 5
"""How many fields that do not fit a message names."""
_UNIONS = (typing.Union, UnionType)


class ParameterTypes:
    """The types of these parameters; `label` begins each message. `hints`: the resolved annotations, by name."""

    def __init__(self, label: str, parameters: Collection[Parameter], hints: Mapping[str, Any]) -> None:
        self._label = label
        self._hints = {one.name: hints.get(one.name, Any) for one in parameters}
        self._required = {one.name for one in parameters if one.default is one.empty}

    @cached_property
    def are_plain(self) -> bool:
        """Whether each is a plain type, or a union of such."""
        parts = [
            part
            for hint in self._hints.values()
            for part in (typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else (hint,))
        ]
        return all(any(part is kind for kind in PLAIN) for part in parts)  # an annotation may have no hash

    def fit_plainly(self, arguments: Mapping[str, Any]) -> bool:
        """Whether all are plain values that fit. Most calls are, and this is far quicker than to say what does not."""
        if not PLAIN.issuperset(map(type, arguments.values())):
            return False
        try:
            return bool(self._validator.validate_python(arguments, strict=True) == arguments)
        except Exception:
            return False

    def check(self, arguments: Mapping[str, Any], *, may_change: bool = False) -> None:
        """Raises InvalidArguments, naming the field and why, where a value does not fit. Nothing is converted: a value
        that a validator of the user's changes is refused too, unless it `may_change`."""

        def converted() -> str | None:
            made = self._adapter.validate_python(dict(arguments), strict=True)
            return _converted(arguments, made) or (None if may_change else _changed(arguments, made))

        if (why := self._validated(arguments, converted)) is not None:
            raise InvalidArguments(f"{self._label}: {why}")

    def from_json(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """The values that the annotations make of plain JSON; parameters may be missing. Raises InvalidArguments."""
        types = self._adapter_for_json
        # Pydantic reads it as JSON: "2026-10-25" becomes a date, and "19.90" a Decimal. It reads strictly: "5" does not
        # become an int.
        made = self._validated(plain, lambda: types.validate_json(json.dumps(plain), strict=True))
        dump = partial(types.dump_python, mode="json", warnings=False, fallback=repr)
        refuse_booleans_as_numbers(plain, made, dump, self._label)
        return typing.cast("dict[str, Any]", made)

    def _validated(self, arguments: Mapping[str, Any], validate: Callable[[], T]) -> T:
        from pydantic import ValidationError

        try:
            return validate()
        except ValidationError as error:
            why = _first_error(error, arguments)
        except ConfigurationError:
            raise
        except Exception as error:
            why = f"a validator raised {type(error).__name__}"
        # Outside of the handlers: a context would drag the values along.
        raise InvalidArguments(f"{self._label}: {why}")

    @cached_property
    def _adapter(self) -> "TypeAdapter[Any]":
        return self._typed_dict(self._required)

    @cached_property
    def _validator(self) -> Any:
        return self._adapter.validator

    @cached_property
    def _adapter_for_json(self) -> "TypeAdapter[Any]":
        return self._typed_dict(set())

    def _typed_dict(self, required: Collection[str]) -> "TypeAdapter[Any]":
        make: Any = typing_extensions.TypedDict  # pydantic wants this one before Python 3.12
        # Python's cache of NotRequired[] confuses `A | B` with `B | A`, so it is used only where it must be.
        optional = self._hints.keys() - required if required else ()
        fields = {name: typing.NotRequired[hint] if name in optional else hint for name, hint in self._hints.items()}
        shape = make("Arguments", fields, total=bool(required))
        shape.__pydantic_config__ = {"arbitrary_types_allowed": True, "extra": "forbid"}
        return self._adapted(shape)

    def _adapted(self, shape: Any) -> "TypeAdapter[Any]":
        from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

        try:
            return TypeAdapter(shape)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise ConfigurationError(
                f"{self._label}: its annotations cannot be checked: {str(error).splitlines()[0]}"
            ) from None


def load_checks() -> None:
    """Make now what the first check of arguments would import and make: 0.2 s."""
    one = Parameter("number", Parameter.POSITIONAL_OR_KEYWORD)
    ParameterTypes("a first check", [one], {"number": int}).check({"number": 1})


def _first_error(error: "ValidationError", arguments: Mapping[str, Any]) -> str:
    """The first field that does not fit, and why; and the names of further ones."""
    first, *others = error.errors(include_url=False, include_input=False)
    fields = dict.fromkeys(_path(one["loc"], arguments) for one in others)
    fields.pop(_path(first["loc"], arguments), None)
    named = ", ".join([*fields][:MOST_NAMED]) + (", ..." if len(fields) > MOST_NAMED else "")
    more = f"; {named} {'does' if len(fields) == 1 else 'do'} not fit either" if fields else ""
    return f"{_path(first['loc'], arguments)}: {_reason(first)}{more}"


def _reason(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _known_errors() and kind.endswith("_parsing") and context.get("error"):
        return str(error["msg"].partition(str(context["error"]))[0].rstrip(", "))  # behind it, the parser quotes
    # A validator's own message, and the tag of a union, may contain the value.
    if kind not in _known_errors() or {"error", "tag"} & context.keys():
        return f"refused by a validator ({kind})"
    return str(error["msg"])


@cache
def _known_errors() -> frozenset[str]:
    from pydantic_core.core_schema import ErrorType

    return frozenset(typing.get_args(ErrorType))


def _path(steps: tuple[int | str, ...], arguments: Mapping[str, Any]) -> str:
    """The path to what does not fit: arguments, fields and places in a list. A key of a mapping may be a secret."""
    value: Any = arguments
    words = [str(step) for step in steps[:1]]
    for before, step in pairwise(steps):
        value = value.get(before) if isinstance(value, Mapping) else getattr(value, str(before), None)
        is_shown = isinstance(step, int) if isinstance(value, list | tuple) else hasattr(value, str(step))
        words.append(str(step) if is_shown and not isinstance(value, Mapping) else "[an entry]")
    return ".".join(words)


def _converted(given: Mapping[str, Any], made: Mapping[str, Any]) -> str | None:
    """Why a value is refused that pydantic has converted to a model or a NamedTuple, as it does even in strict mode.

    The target is called with what was given, which is no such instance."""
    for name, value in made.items():
        if kind := _kind_made(given[name], value):
            return f"{name}: Input should be an instance of {kind.__name__}"
    return None


def _changed(given: Mapping[str, Any], made: Mapping[str, Any]) -> str | None:
    """Why a value is refused of which a validator makes another one: stored is what was given, and the target is called
    with that. A default that was not given is none."""
    for name, value in given.items():
        if _differs(value, made[name]):
            return (
                f"{name}: a validator makes another value of it, and the target is called with what is stored: "
                "give the value as the validator makes it"
            )
    return None


def _differs(given: Any, made: Any) -> bool:
    """Whether values differ that can be compared, also in lists and mappings."""
    if type(given) in COMPARED and type(made) is type(given):
        return str(given) != str(made) if isinstance(given, Decimal) else bool(given != made)
    if type(given) in PLAIN and type(made) in PLAIN:
        return bool(given != made) and not (isinstance(given, float) and math.isnan(given))
    if isinstance(given, list | tuple) and isinstance(made, list | tuple):
        return len(given) != len(made) or any(map(_differs, given, made))
    if isinstance(given, dict) and isinstance(made, dict):
        return given.keys() != made.keys() or any(_differs(value, made[name]) for name, value in given.items())
    return False


def _kind_made(given: Any, made: Any) -> type[Any] | None:
    kind = type(made)
    if is_dataclass(kind) or hasattr(kind, "model_fields") or hasattr(kind, "_fields"):
        return None if isinstance(given, kind) else kind
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        given, made = given.values(), made.values()
    elif not (isinstance(given, list | tuple) and isinstance(made, list | tuple)):
        return None
    return next(filter(None, map(_kind_made, given, made)), None)
