"""The hooks and the telemetry that a program gives to `AsyncTask`. ConfigurationError refuses what cannot be called."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from types import CodeType
from typing import Any

from async_task.application.validation import check_function, listed
from async_task.attempts.telemetry import GuardedTelemetry, Telemetry
from async_task.errors import ConfigurationError
from async_task.queue.hooks import Around, Hooks, OnCrashed, OnExpired, OnFailed, OnRetried, OnSucceeded


def hooks_of(
    around: Around | Sequence[Around], *, on_succeeded: OnSucceeded | None, on_retried: OnRetried | None,
    on_failed: OnFailed | None, on_expired: OnExpired | None, on_crashed: OnCrashed | None,
) -> Hooks:  # fmt: skip
    """The hooks of an application. Raises ConfigurationError for what is no plain function."""
    hooks = Hooks(_around_of(around), on_succeeded, on_retried, on_failed, on_expired, on_crashed)
    for name in ("on_succeeded", "on_retried", "on_failed", "on_expired", "on_crashed"):
        hook = getattr(hooks, name)
        check_hook(hook, name, "facts", "outcome")
        _refuse_coroutine_function(hook, name)
    return hooks


def guarded(telemetry: Telemetry | None) -> GuardedTelemetry | None:
    """Telemetry that fails no call. Raises ConfigurationError for what is no telemetry."""
    if telemetry is None:
        return None
    verbs = ("writing", "performing", "settled", "crashed", "flush")
    if isinstance(telemetry, type) or not all(callable(getattr(telemetry, verb, None)) for verb in verbs):
        raise ConfigurationError(
            "telemetry takes an instance of OpenTelemetry, from async_task.integrations.opentelemetry, or of a class "
            f"with the methods of async_task.Telemetry, not {telemetry!r}"
        )
    return GuardedTelemetry(telemetry)


def observed(hooks: Hooks, telemetry: GuardedTelemetry | None) -> Hooks:
    """The hooks, and telemetry beside them."""
    return hooks if telemetry is None else replace(hooks, observer=telemetry, performing=telemetry.performing)


def _around_of(given: Around | Sequence[Around]) -> tuple[Around, ...]:
    hooks = (given,) if callable(given) else tuple(listed(given, "around takes a function, or a list of functions"))
    for hook in hooks:
        check_hook(hook, "around", "facts")
        if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook) or inspect.iscoroutinefunction(hook):
            raise ConfigurationError(
                "around takes a function that returns a context manager: put @contextmanager above a generator "
                f"function, or @asynccontextmanager above an asynchronous one: {hook!r}"
            )
    return hooks


def check_message_hook(hook: object) -> None:
    """None, or a plain function. Raises ConfigurationError."""
    check_hook(hook, "on_message", "user", "kind", "text")
    _refuse_coroutine_function(hook, "on_message")


def _refuse_coroutine_function(hook: object, name: str) -> None:
    called = type(hook).__call__ if callable(hook) else None
    if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(called):
        raise ConfigurationError(f"{name} takes a plain function, not a coroutine function: {hook!r}")


def check_hook(given: object, name: str, *parameters: str) -> None:
    """None, or something that can be called with these parameters, by position."""
    example = f"{name}({', '.join(parameters)})"
    check_function(given, name, example)
    signature = None if given is None else _signature_of(given)
    if signature is None:
        return
    try:
        signature.bind(*parameters)
    except TypeError as error:
        raise ConfigurationError(f"{name} is called as {example}, which {given!r} does not take: {error}") from None


def _signature_of(function: Any) -> inspect.Signature | None:
    """As it is called: what decorates a function may give it more than it is given. Those of contextlib do not. None if
    it has none, as some classes and functions in C."""
    code = _code_of(function)
    if code is not None and code in _PASS_ALL_ON:
        function = function.__wrapped__
    try:
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def _code_of(function: Any) -> CodeType | None:
    return getattr(function, "__code__", None)


async def _nothing() -> AsyncIterator[None]:
    yield


_PASS_ALL_ON = (_code_of(contextlib.contextmanager(iter)), _code_of(contextlib.asynccontextmanager(_nothing)))
"""The functions that contextlib makes are one code."""
