"""Which errors of a call are retried, and which end its attempt at once: `retry_on=` and `discard_on=`. Pure."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, TypeAlias

from async_task.error_text import is_of_library
from async_task.errors import ConfigurationError
from async_task.targets.context import Discard, RetryAfter

ErrorType: TypeAlias = type[BaseException]
Types: TypeAlias = ErrorType | tuple[ErrorType, ...] | list[ErrorType]
"""One class of errors, or several; their subclasses too."""
NOT_NAMED = "its type is not in retry_on"


class ErrorKinds(NamedTuple):
    """`retry_on`: what is retried, None for everything. `discard_on`: what ends the attempt."""

    retry_on: tuple[ErrorType, ...] | None = None
    discard_on: tuple[ErrorType, ...] = ()

    def ending(self, error: BaseException) -> str | None:
        """Why this error ends the attempt at once, "" if the error itself says it; None if the retry policy decides.

        The class that is nearer in the error's order of base classes decides. `except` looks at the same order. Errors
        that the library itself raises about a call, as of its time limit, count as named in `retry_on`.

        A group of errors ends it if one of them does, unless a class is named that makes it a group.
        """
        waiting = [error]  # not by recursion: a group may be as deep as somebody likes
        while waiting:
            one = waiting.pop()
            if isinstance(one, BaseExceptionGroup) and not self._names_group(type(one)):
                waiting.extend(reversed(one.exceptions))
            elif (why := self._ending(one)) is not None:
                return why
        return None

    def _ending(self, error: BaseException) -> str | None:
        """The same for an error that is no group, or a group as a whole."""
        if any(isinstance(one, Discard) for one in leaves(error)):
            return ""
        if isinstance(error, RetryAfter):
            return None
        order = type(error).__mro__
        discarded = _nearest(order, self.discard_on)
        retried = 0 if is_of_library(error) else _nearest(order, self.retry_on or (BaseException,))
        if discarded is not None and (retried is None or discarded <= retried):
            return ""
        return NOT_NAMED if retried is None else None

    def _names_group(self, kind: ErrorType) -> bool:
        own = [one for one in kind.__mro__ if one not in Exception.__mro__]
        return any(one in own for one in (*(self.retry_on or ()), *self.discard_on))


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of errors, and in the groups in it; any other error alone."""
    waiting = [error]  # not by recursion: a group may be as deep as somebody likes
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(reversed(one.exceptions))
        else:
            yield one


def _nearest(order: tuple[type, ...], types: tuple[ErrorType, ...]) -> int | None:
    return min((order.index(one) for one in types if one in order), default=None)


ANY = ErrorKinds()


def error_types(given: Any, name: str) -> tuple[ErrorType, ...]:
    """The classes of `retry_on=` or `discard_on=`. Raises ConfigurationError, naming `name`."""
    types = (given,) if isinstance(given, type) else given
    if isinstance(types, str) or not isinstance(types, Collection):
        raise ConfigurationError(f"{name} takes a class of exceptions or a list of them, not {given!r}")
    for one in types:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise ConfigurationError(f"{name} takes classes of exceptions, and {one!r} is none")
    if name == "retry_on" and not types:
        raise ConfigurationError("retry_on names at least one class of exceptions; retry=Retry.never() retries none")
    _refuse_outcomes(types, name)
    return tuple(types)


def _refuse_outcomes(types: Collection[ErrorType], name: str) -> None:
    """A target raises these to decide by itself."""
    fixed = Discard if name == "retry_on" else RetryAfter
    for one in types:
        if issubclass(one, fixed):
            does = "ends its attempt at once" if fixed is Discard else "asks for another try"
            raise ConfigurationError(f"{name} cannot name {one.__name__}: a {fixed.__name__} always {does}")
