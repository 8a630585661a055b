"""What a target's method takes: its parameters, checked when a call is written down and again before it is made."""

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from async_task.arguments import register_annotation
from async_task.errors import ConfigurationError, InvalidArguments

if TYPE_CHECKING:
    from pydantic import TypeAdapter


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
        """A call's arguments under their parameters' names; defaults are left to the target. Raises InvalidArguments."""
        try:
            bound = inspect.Signature(self.parameters).bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArguments(f"{self.label}: {error}") from None
        extra = bound.arguments.pop(self._open_name, {}) if self._open_name else {}
        return {**bound.arguments, **extra}

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raises InvalidArguments, naming the field and why, when names, number or types do not fit. Strict: nothing is
        converted, so that what arrives is what was given. Messages never hold the values."""
        self._check_names(arguments)
        from pydantic import ValidationError

        try:
            self._types.validate_python(dict(arguments))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            raise InvalidArguments(f"{self.label}: {where}: {first['msg']}{more}") from None

    @cached_property
    def _open_name(self) -> str | None:
        return next((one.name for one in self.parameters if one.kind is one.VAR_KEYWORD), None)

    @cached_property
    def _types(self) -> "TypeAdapter[Any]":
        from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
        from typing_extensions import TypedDict  # pydantic brings it, and wants it before Python 3.12

        fields = {
            one.name: self.hints.get(one.name, Any)
            if one.default is one.empty
            else typing.NotRequired[self.hints.get(one.name, Any)]
            for one in self.parameters
            if one.kind is not one.VAR_KEYWORD
        }
        shape: Any = TypedDict("Arguments", fields)  # type: ignore[operator]
        shape.__pydantic_config__ = {
            "strict": True, "arbitrary_types_allowed": True, "extra": "allow" if self._open_name else "forbid",
        }  # fmt: skip
        try:
            return TypeAdapter(shape)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise ConfigurationError(
                f"{self.label}: its annotations cannot be checked: {str(error).splitlines()[0]}"
            ) from None

    def _check_names(self, arguments: Mapping[str, Any]) -> None:
        names = [one.name for one in self.parameters if one.kind is not one.VAR_KEYWORD]
        unknown = [name for name in arguments if name not in names]
        if unknown and not self._open_name:
            takes = f"it takes {', '.join(names)}" if names else "it takes none"
            raise InvalidArguments(f"{self.label}: no argument is named {unknown[0]!r}; {takes}")
        missing = [
            one.name
            for one in self.parameters
            if one.name not in arguments and one.default is one.empty and one.kind is not one.VAR_KEYWORD
        ]
        if missing:
            raise InvalidArguments(f"{self.label}: the argument {missing[0]!r} is missing")

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
            if _is_session(self.hints.get(one.name)):
                raise ConfigurationError(f"{self.label}: the session {one.name} must be the first parameter")
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
    return hint if _is_session(hint) else None


def _is_session(hint: Any) -> bool:
    if not inspect.isclass(hint):
        return False
    if issubclass(hint, Session):
        return True
    from sqlalchemy.ext.asyncio import AsyncSession

    return issubclass(hint, AsyncSession)
