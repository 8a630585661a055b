"""What a target, or a method of a row, may answer."""

import inspect
from collections.abc import Callable
from typing import Any

from async_task.database.answers import Raised
from async_task.error_text import quotes_nothing
from async_task.errors import ConfigurationError
from async_task.targets.context import Again


def checked_answer(answer: object, who: str = "the target") -> object:
    """The answer; `Raised` if it is something that has not run, or an error that was returned instead of raised. `who`:
    has returned it."""
    if answer is None:
        return None
    if inspect.isgenerator(answer) or inspect.isasyncgen(answer) or inspect.isawaitable(answer):
        return Raised(quotes_nothing(TypeError(f"{who} returned a {type(answer).__name__}, which was never run")))
    is_class = isinstance(answer, type) and issubclass(answer, (BaseException, Again))
    if isinstance(answer, BaseException) or is_class:
        name = answer.__name__ if isinstance(answer, type) else type(answer).__name__
        said = f"{who} returned {name}: exceptions are raised, and a poll returns Again(after=...)"
        return Raised(quotes_nothing(TypeError(said)))
    return answer


def refuse_generator(method: Callable[..., Any], label: str) -> None:
    """Raise ConfigurationError for a method of which a call runs nothing."""
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        raise ConfigurationError(f"{label} is a generator: calling it runs nothing, so it cannot do the work of a row")
