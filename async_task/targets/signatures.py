"""The parameters of a target's method: read when it is registered, and checked for each call."""

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from sqlalchemy.orm import Session

from async_task.arguments.annotations import why_unstorable
from async_task.arguments.json_input import read_json
from async_task.arguments.types import register_annotation
from async_task.database.sessions import is_registry, is_session
from async_task.errors import ConfigurationError, InvalidArguments
from async_task.targets.parameter_types import ParameterTypes


class Signature:
    """The parameters of `callable_`, without the session that it may ask for as its first.

    Raises ConfigurationError for what cannot be stored: `*args`, `**kwargs`, positional-only parameters, names
    beginning with `_`, generators, annotations that cannot be resolved, a session that is not the first parameter.
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
        self.names = [one.name for one in self.parameters]
        self.hints = {name: hint for name, hint in hints.items() if name in self.names}
        self._check_parameters()

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments by parameter name, without defaults. Raises InvalidArguments."""
        if self.session_class and any(
            is_session(type(one)) or is_registry(type(one)) for one in (*args, *kwargs.values())
        ):
            raise InvalidArguments(
                f"{self.label}: leave the session out: the call gets one when it is performed. The session to create "
                "the attempt in goes to options(session=...)"
            )
        self.refuse_unknown_names(kwargs)
        try:
            return inspect.Signature(self.parameters).bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidArguments(f"{self.label}: {error}") from None

    def check(self, arguments: Mapping[str, Any], *, may_change: bool = False) -> None:
        """Raises InvalidArguments, naming the field and why, when names, number or types do not fit.

        Strict: nothing is converted, so the target gets what was given, and a value of which a validator makes another
        one is refused, unless it `may_change`. Messages never hold the values."""
        if self._types.fit_plainly(arguments):
            return
        self.refuse_unknown_names(arguments)
        for one in self.parameters:
            if one.name not in arguments and one.default is one.empty:
                raise InvalidArguments(f"{self.label}: the argument {one.name!r} is missing")
        self._types.check(arguments, may_change=may_change)

    @property
    def takes_plain_values(self) -> bool:
        """Whether each parameter takes plain values alone: to check these runs no code of the user's."""
        return self._types.are_plain

    def check_session(self, *, engine_is_async: bool) -> None:
        """Raises ConfigurationError if an engine of this kind has no such session for this call."""
        if self.session_is_async and not engine_is_async:
            raise ConfigurationError(f"{self.label} asks for an AsyncSession: give AsyncTask an AsyncEngine")
        if self.is_async and engine_is_async and self.session_class is not None and not self.session_is_async:
            raise ConfigurationError(
                f"{self.label} is an async def that takes a {self.session_class.__name__}, which would block the event "
                "loop of an AsyncEngine: take an AsyncSession and await it, or make it a plain def"
            )

    def read(self, text: str) -> dict[str, Any]:
        """The arguments in a JSON object that a person wrote; `check` is still to come.

        Each value is made what its annotation says (`"2026-10-25"` for a date, a list for a tuple), or is in the form
        in which arguments are stored. Raises InvalidArguments, also for a number with more digits than a float holds.
        """
        stored, plain = read_json(text)
        self.refuse_unknown_names({**stored, **plain})
        return {**stored, **self._types.from_json(plain)}

    @cached_property
    def _types(self) -> ParameterTypes:
        return ParameterTypes(self.label, self.parameters, self.hints)

    def refuse_unknown_names(self, arguments: Mapping[str, Any]) -> None:
        for name in arguments:
            if name not in self.names:
                takes = f"it takes {', '.join(self.names)}" if self.names else "it takes none"
                raise InvalidArguments(f"{self.label}: no argument is named {name!r}; {takes}")

    def _parameters(self, callable_: Callable[..., Any]) -> list[inspect.Parameter]:
        try:
            return list(inspect.signature(callable_).parameters.values())
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"{self.label} has no signature that Python can read: wrap it in a function"
            ) from None

    def _hints(self, function: Any, parameters: list[inspect.Parameter]) -> dict[str, Any]:
        # Without the return annotation, which may name what is imported for type checking only.
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
            if one.kind in _STARS:
                raise ConfigurationError(
                    f"{self.label} takes {_STARS[one.kind]}{one.name}: arguments are stored under names, so name each "
                    "(or take one dict)"
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
            hint = self.hints.get(one.name, Any)
            register_annotation(hint)
            if one.default is one.empty and (why := why_unstorable(hint)) is not None:
                raise ConfigurationError(f"{self.label}: {one.name} can never be given: {why}")


_STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def _function_of(callable_: Any) -> Any:
    """The function under partials, methods and instances: it has the annotations, and the `async` or `yield`."""
    while isinstance(callable_, partial):
        callable_ = callable_.func
    if not inspect.isroutine(callable_) and not inspect.isclass(callable_):
        callable_ = type(callable_).__call__
    return inspect.unwrap(getattr(callable_, "__func__", callable_))


def _session_class(hints: Mapping[str, Any], parameters: list[inspect.Parameter]) -> type[Any] | None:
    hint = hints.get(parameters[0].name) if parameters else None
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    return hint if inspect.isclass(hint) and is_session(hint) else None


def _mentions_session(hint: Any) -> bool:
    if inspect.isclass(hint):
        return is_session(hint) or is_registry(hint)
    return any(_mentions_session(part) for part in typing.get_args(hint))
