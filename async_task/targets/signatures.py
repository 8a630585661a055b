"""What a target's method takes: its parameters, checked when a call is written down and again before it is made."""

import inspect
import json
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import typing_extensions
from sqlalchemy.orm import Session

from async_task.arguments.json_input import Unreadable, made_of, read_by_hand
from async_task.arguments.types import register_annotation
from async_task.database.sessions import is_registry, is_session
from async_task.errors import ConfigurationError, InvalidArguments

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
"""Types that pydantic makes nothing else of when it is strict."""


class Signature:
    """The parameters of `callable_`, without the session that it may ask for as its first.

    Raises ConfigurationError for what cannot be written down: `*args`, positional-only parameters, names beginning
    with `_`, generators, annotations that cannot be resolved, a session that is not the first parameter.
    """

    def __init__(self, callable_: Callable[..., Any], *, label: str) -> None:
        self.label = label
        function = _function_of(callable_)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"{label} is a generator: calling it runs nothing, so it cannot be a target")
        self.is_async = inspect.iscoroutinefunction(function)
        parameters = self._parameters(callable_)
        hints = self._hints(function, parameters)
        self.session_class = _session_class(hints, parameters)
        self.session_is_async = self.session_class is not None and not issubclass(self.session_class, Session)
        self.parameters = parameters[1:] if self.session_class else parameters
        self.hints = {name: hint for name, hint in hints.items() if name in {one.name for one in self.parameters}}
        self._check_parameters()

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments under their parameters' names, without defaults. Raises InvalidArguments."""
        if self.session_class and any(
            is_session(type(one)) or is_registry(type(one)) for one in (*args, *kwargs.values())
        ):
            raise InvalidArguments(
                f"{self.label}: the session is handed in when it is performed: leave it out (the one to write the call "
                "down in goes to options(session=...))"
            )
        self._check_known(kwargs)
        try:
            bound = inspect.Signature(self.parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArguments(f"{self.label}: {error}") from None
        extra = bound.arguments.pop(self._open_name, {}) if self._open_name else {}
        return {**bound.arguments, **extra}

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raises InvalidArguments, naming the field and why, when names, number or types do not fit. Strict: nothing is
        converted, so that what arrives is what was given. Messages never hold the values."""
        if self._fits_plainly(arguments):
            return
        self._check_names(arguments)
        self._check_types(self._types, arguments)
        if self._open_types is not None:
            named = {one.name for one in self.parameters}
            self._check_types(self._open_types, {name: arguments[name] for name in arguments if name not in named})

    def read(self, text: str) -> dict[str, Any]:
        """The arguments in a JSON object that a person wrote: each made what its annotation says (`"2026-10-25"` for a
        date, a list for a tuple), or in the form in which arguments are stored. A Decimal, as text or number, keeps its
        digits; no text becomes another number. For `check` to check. Raises InvalidArguments as `check` does."""
        stored, plain = read_by_hand(text)
        self._check_known({**stored, **plain})
        named = {one.name for one in self.parameters if one.kind is not one.VAR_KEYWORD}
        open_ = {name: plain.pop(name) for name in [*plain] if name not in named}
        made = self._made(self._types_by_hand, plain)
        return {**stored, **made, **(self._made(self._open_types, open_) if self._open_types else {})}

    def _made(self, types: "TypeAdapter[Any]", arguments: Mapping[str, Any]) -> dict[str, Any]:
        def make(plain: Mapping[str, Any]) -> dict[str, Any]:
            return self._validated(plain, lambda: types.validate_json(json.dumps(plain), strict=True))

        try:
            return made_of(arguments, make, partial(types.dump_python, mode="json", warnings=False, fallback=repr))
        except Unreadable as error:
            told = str(error)
        raise InvalidArguments(f"{self.label}: {told}")

    def _fits_plainly(self, arguments: Mapping[str, Any]) -> bool:
        """Whether all are plain values that fit: the way of most calls, and far quicker than to say why not."""
        if self._open_name is not None or not PLAIN.issuperset(map(type, arguments.values())):
            return False
        try:
            self._validator.validate_python(arguments, strict=True)
        except Exception:
            return False
        return True

    def _check_types(self, types: "TypeAdapter[Any]", arguments: Mapping[str, Any]) -> None:
        def converted() -> str | None:
            return _converted(arguments, types.validate_python(dict(arguments), strict=True))

        if (told := self._validated(arguments, converted)) is not None:
            raise InvalidArguments(f"{self.label}: {told}")

    def _validated(self, arguments: Mapping[str, Any], validate: Callable[[], T]) -> T:
        from pydantic import ValidationError

        try:
            return validate()
        except ValidationError as error:
            told = _told(error, arguments)
        except Exception as error:
            told = f"a validator raised {type(error).__name__}"
        # Outside of the handlers: a context would drag the values along.
        raise InvalidArguments(f"{self.label}: {told}")

    @cached_property
    def _open_name(self) -> str | None:
        return next((one.name for one in self.parameters if one.kind is one.VAR_KEYWORD), None)

    @cached_property
    def _types(self) -> "TypeAdapter[Any]":
        return self._named_types({one.name for one in self.parameters if one.default is one.empty})

    @cached_property
    def _validator(self) -> Any:
        return self._types.validator

    @cached_property
    def _types_by_hand(self) -> "TypeAdapter[Any]":
        return self._named_types(set())

    def _named_types(self, required: Collection[str]) -> "TypeAdapter[Any]":
        """What the named parameters take, in a mapping that must have those `required`."""
        make: Any = typing_extensions.TypedDict  # pydantic wants this one before Python 3.12
        hints = {one.name: self.hints.get(one.name, Any) for one in self.parameters if one.kind is not one.VAR_KEYWORD}
        # Python's cache of NotRequired[] takes `A | B` for `B | A`, so it is used only where it must be.
        optional = hints.keys() - required if required else ()
        fields = {name: typing.NotRequired[hint] if name in optional else hint for name, hint in hints.items()}
        shape = make("Arguments", fields, total=bool(required))
        extra = "allow" if self._open_name else "forbid"
        shape.__pydantic_config__ = {"arbitrary_types_allowed": True, "extra": extra}
        return self._adapter(shape)

    @cached_property
    def _open_types(self) -> "TypeAdapter[Any] | None":
        """What `**name` takes: each a type, or all a TypedDict."""
        hint = self.hints.get(self._open_name, Any) if self._open_name else None
        if hint is None:
            return None
        from pydantic import ConfigDict, with_config

        if typing.get_origin(hint) in (typing.Unpack, typing_extensions.Unpack):
            (shape,) = typing.get_args(hint)
            return self._adapter(with_config(ConfigDict(extra="forbid", arbitrary_types_allowed=True))(shape))
        return self._adapter(dict[str, hint])  # type: ignore[valid-type]

    def _adapter(self, shape: Any) -> "TypeAdapter[Any]":
        from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

        try:
            return TypeAdapter(shape)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise ConfigurationError(
                f"{self.label}: its annotations cannot be checked: {str(error).splitlines()[0]}"
            ) from None

    def _check_names(self, arguments: Mapping[str, Any]) -> None:
        self._check_known(arguments)
        missing = [
            one.name
            for one in self.parameters
            if one.name not in arguments and one.default is one.empty and one.kind is not one.VAR_KEYWORD
        ]
        if missing:
            raise InvalidArguments(f"{self.label}: the argument {missing[0]!r} is missing")

    def _check_known(self, arguments: Mapping[str, Any]) -> None:
        names = [one.name for one in self.parameters if one.kind is not one.VAR_KEYWORD]
        unknown = [name for name in arguments if name not in names]
        if unknown and not self._open_name:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            raise InvalidArguments(f"{self.label}: no argument is named {unknown[0]!r}; {takes}")

    def _parameters(self, callable_: Callable[..., Any]) -> list[inspect.Parameter]:
        try:
            return list(inspect.signature(callable_).parameters.values())
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"{self.label} has no signature that Python can read: wrap it in a function"
            ) from None

    def _hints(self, function: Any, parameters: list[inspect.Parameter]) -> dict[str, Any]:
        """Resolved without the return annotation: what is imported for type checking only does no harm there."""
        annotations = getattr(function, "__annotations__", {})
        mine = {one.name: annotations[one.name] for one in parameters if one.name in annotations}
        holder = type(self.label, (), {"__annotations__": mine})
        try:
            return typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}), include_extras=True)
        except NameError as error:
            raise ConfigurationError(
                f"{self.label}: the annotation {error.name!r} cannot be resolved at run time: import it outside of "
                "TYPE_CHECKING (and outside of a function)"
            ) from None
        except Exception as error:
            raise ConfigurationError(
                f"{self.label}: its annotations cannot be resolved at run time ({type(error).__name__}: {error})"
            ) from None

    def _check_parameters(self) -> None:
        for one in self.parameters:
            if one.kind is one.VAR_POSITIONAL:
                raise ConfigurationError(
                    f"{self.label} takes *{one.name}: arguments are stored under names, so name each"
                )
            if one.kind is one.POSITIONAL_ONLY:
                raise ConfigurationError(
                    f"{self.label}: {one.name} is positional-only: arguments are stored and given by name"
                )
            if one.name.startswith("_"):
                raise ConfigurationError(f"{self.label}: {one.name} begins with _, which is never stored")
            if _mentions_session(self.hints.get(one.name)):
                raise ConfigurationError(
                    f"{self.label}: the session {one.name} must be the first parameter, and annotated with Session or "
                    "AsyncSession alone"
                )
            register_annotation(self.hints.get(one.name, Any))


def _function_of(callable_: Any) -> Any:
    """The function that holds the annotations, and the `async` or the `yield`: under partials, methods, instances."""
    while isinstance(callable_, partial):
        callable_ = callable_.func
    if not inspect.isroutine(callable_) and not inspect.isclass(callable_):
        callable_ = type(callable_).__call__
    return inspect.unwrap(getattr(callable_, "__func__", callable_))


def _session_class(hints: Mapping[str, Any], parameters: list[inspect.Parameter]) -> type[Any] | None:
    hint = hints.get(parameters[0].name) if parameters else None
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return hint if _is_session(hint) else None


def _mentions_session(hint: Any) -> bool:
    if inspect.isclass(hint):
        return is_session(hint) or is_registry(hint)
    return any(_mentions_session(part) for part in typing.get_args(hint))


def _is_session(hint: Any) -> bool:
    return inspect.isclass(hint) and is_session(hint)


def _told(error: "ValidationError", arguments: Mapping[str, Any]) -> str:
    """The first field that does not fit, and why, without anything of its value."""
    first = error.errors(include_url=False, include_input=False)[0]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{_where(first['loc'], arguments)}: {_why(first)}{more}"


def _why(first: Any) -> str:
    kind, context = first["type"], first.get("ctx", {})
    if kind in _known_errors() and kind.endswith("_parsing") and context.get("error"):
        return str(first["msg"].partition(str(context["error"]))[0].rstrip(", "))  # behind it, the parser quotes
    # The words of a validator, and the tag of a union, may be the value itself.
    if kind not in _known_errors() or {"error", "tag"} & context.keys():
        return f"refused by a validator ({kind})"
    return str(first["msg"])


def _converted(given: Mapping[str, Any], made: Mapping[str, Any]) -> str | None:
    """Pydantic makes models and NamedTuples of what is none, even when strict; but the target gets what was given."""
    for name, value in made.items():
        if kind := _kind_made(given[name], value):
            return f"{name}: Input should be an instance of {kind.__name__}"
    return None


def _kind_made(given: Any, made: Any) -> type[Any] | None:
    kind = type(made)
    if is_dataclass(kind) or hasattr(kind, "model_fields") or hasattr(kind, "_fields"):
        return None if isinstance(given, kind) else kind
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        given, made = given.values(), made.values()
    elif not (isinstance(given, list | tuple) and isinstance(made, list | tuple)):
        return None
    return next(filter(None, map(_kind_made, given, made)), None)


def _where(steps: tuple[int | str, ...], arguments: Mapping[str, Any]) -> str:
    """The path to what does not fit. Shown are arguments, fields and places in a list; a key may be a secret itself."""
    value: Any = arguments
    words = [str(step) for step in steps[:1]]
    for before, step in pairwise(steps):
        value = value.get(before) if isinstance(value, Mapping) else getattr(value, str(before), None)
        is_shown = isinstance(step, int) if isinstance(value, list | tuple) else hasattr(value, str(step))
        words.append(str(step) if is_shown and not isinstance(value, Mapping) else "[an entry]")
    return ".".join(words)


@cache
def _known_errors() -> frozenset[str]:
    from pydantic_core.core_schema import ErrorType

    return frozenset(typing.get_args(ErrorType))
