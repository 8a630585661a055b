"""What a test says about the calls that were written down."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import select

from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.options import AnySession, SyncSession
from async_task.encryption.encryptors import NullEncryptor
from async_task.error_text import HIDDEN
from async_task.errors import AsyncTaskError, ConfigurationError, InvalidArguments
from async_task.targets.registry import method_of, target_named
from async_task.targets.target import Method, call_name
from async_task.testing.sessions import TestSession, on_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

MOST_SHOWN = 10
"""How many calls a message shows."""
LONGEST_SHOWN = 200
"""How many characters of one argument it shows."""


@overload
def written(session: SyncSession | None = None, fn: Callable[..., Any] | None = None) -> list[BaseAttempt]: ...
@overload
def written(
    session: "AsyncSession | async_scoped_session[Any]", fn: Callable[..., Any] | None = None
) -> Awaitable[list[BaseAttempt]]: ...
def written(
    session: AnySession | None = None, fn: Callable[..., Any] | None = None
) -> list[BaseAttempt] | Awaitable[Any]:
    """Return the attempts that the session sees, in the order in which they were written; `fn`: only calls of this
    function. The session is flushed first. In a test that rolls back they are the test's own, whatever their status.

        assert [one.method_args for one in written(session, OrderClient.fulfill)] == [{"order_number": 17}]

    With an AsyncSession: `await written(session)`. Raises NoTransaction without a session, UnknownTarget for a function
    that no target has, ConfigurationError for a function in the place of the session, SchemaMismatch without a table of
    attempts.
    """
    given: object = session
    if inspect.isroutine(given) or inspect.isclass(given):
        name = getattr(given, "__qualname__", "function")
        raise ConfigurationError(f"written takes the session first, and then the function: written(fn={name})")
    method = None if fn is None else method_of(fn)
    return on_session(session, "written", lambda one: _written(one, method))


@overload
def assert_written(
    fn: Callable[..., Any], /, *args: Any, session: SyncSession | None = None, **kwargs: Any
) -> BaseAttempt: ...
@overload
def assert_written(
    fn: Callable[..., Any], /, *args: Any, session: "AsyncSession | async_scoped_session[Any]", **kwargs: Any
) -> Awaitable[BaseAttempt]: ...
def assert_written(
    fn: Callable[..., Any], /, *args: Any, session: AnySession | None = None, **kwargs: Any
) -> BaseAttempt | Awaitable[Any]:
    """Raise AssertionError unless this call was written; return the first attempt that fits.

        assert_written(OrderClient.fulfill, order_number=17)

    Arguments that are not given are not compared; those that are given are compared decrypted and decoded. The message
    shows the calls that were written, and the arguments that differ. It shows no redacted and no encrypted value.
    Otherwise as `written`. Raises InvalidArguments for an argument that the function does not take.
    """
    method, wanted = _call_meant(fn, args, kwargs)

    def check(one: TestSession) -> BaseAttempt:
        __tracebackhide__ = True
        attempts = _written(one, None)
        for attempt in attempts:
            if _is_of(attempt, method) and not _differences(attempt, wanted):
                return attempt
        raise AssertionError(_not_written(method, wanted, attempts))

    __tracebackhide__ = True
    return on_session(session, "assert_written", check)


@overload
def assert_not_written(
    fn: Callable[..., Any], /, *args: Any, session: SyncSession | None = None, **kwargs: Any
) -> None: ...
@overload
def assert_not_written(
    fn: Callable[..., Any], /, *args: Any, session: "AsyncSession | async_scoped_session[Any]", **kwargs: Any
) -> Awaitable[None]: ...
def assert_not_written(
    fn: Callable[..., Any], /, *args: Any, session: AnySession | None = None, **kwargs: Any
) -> Awaitable[Any] | None:
    """Raise AssertionError if this call was written, with these arguments; otherwise as `assert_written`."""
    method, wanted = _call_meant(fn, args, kwargs)

    def check(one: TestSession) -> None:
        __tracebackhide__ = True
        found = [
            attempt for attempt in _written(one, None) if _is_of(attempt, method) and not _differences(attempt, wanted)
        ]
        if found:
            lines = [f"{_call(method, wanted, _hidden_of(method, found))} was written", *_listed(found)]
            raise AssertionError("\n".join(lines))

    __tracebackhide__ = True
    return on_session(session, "assert_not_written", check)


def _written(session: TestSession, method: Method | None) -> list[BaseAttempt]:
    session.own.flush()
    found: list[BaseAttempt] = []
    for model in session.models():
        rows: Any = select(model).execution_options(populate_existing=True)
        found += session.own.scalars(rows).unique()
    # Ids sort by the time at which their objects were made.
    return sorted((one for one in found if method is None or _is_of(one, method)), key=lambda one: one.id)


def _is_of(attempt: BaseAttempt, method: Method) -> bool:
    return attempt.target in method.target.names and attempt.method_name == method.name


def _call_meant(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Method, dict[str, Any]]:
    """The method, and the arguments that are to be compared."""
    method = method_of(fn)
    signature = method.signature
    signature.refuse_unknown_names(kwargs)
    try:
        return method, dict(inspect.Signature(signature.parameters).bind_partial(*args, **kwargs).arguments)
    except TypeError as error:
        raise InvalidArguments(f"{signature.label}: {error}") from None


def _differences(attempt: BaseAttempt, wanted: Mapping[str, Any]) -> list[str]:
    """The names of the arguments that are not as wanted. What the call left out has the value of its default."""
    if not wanted:
        return []
    found = _arguments(attempt)
    return [name for name, value in wanted.items() if name not in found or found[name] != value]


def _arguments(attempt: BaseAttempt) -> dict[str, Any]:
    parameters = _method(attempt).signature.parameters
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    return {**defaults, **attempt.method_args}


def _method(attempt: BaseAttempt) -> Method:
    return target_named(attempt.target).method(attempt.method_name)


# Messages.


def _not_written(method: Method, wanted: Mapping[str, Any], attempts: Sequence[BaseAttempt]) -> str:
    alike = [one for one in attempts if _is_of(one, method)]
    hidden = _hidden_of(method, alike)
    first = f"{_call(method, wanted, hidden)} was not written"
    if alike:
        nearest = min(alike, key=lambda one: len(_differences(one, wanted)))
        return "\n".join([first, *_differing(nearest, wanted, hidden), *_listed(alike)])
    return "\n".join([first, *(_listed(attempts) if attempts else ["no call was written at all"])])


def _differing(attempt: BaseAttempt, wanted: Mapping[str, Any], hidden: frozenset[str] | None) -> list[str]:
    found = _arguments(attempt)
    return [
        f"  {name} is {_shown(name, found.get(name), hidden)}, not {_shown(name, wanted[name], hidden)}, "
        f"in {attempt.id}"
        for name in _differences(attempt, wanted)
    ]


def _listed(attempts: Sequence[BaseAttempt]) -> list[str]:
    lines = ["written were:", *(f"  {_described(one)}" for one in attempts[:MOST_SHOWN])]
    more = len(attempts) - MOST_SHOWN
    return lines + ([f"  and {more} more"] if more > 0 else [])


def _described(attempt: BaseAttempt) -> str:
    name, hidden = call_name(attempt.target, attempt.method_name), _hidden(attempt)
    try:
        arguments: Mapping[str, Any] = attempt.method_args
    except AsyncTaskError as error:
        return f"{name}: {error}"
    return f"{name}({_joined(arguments, hidden)})" + ("" if attempt.status == "pending" else f", {attempt.status}")


def _hidden(attempt: BaseAttempt) -> frozenset[str] | None:
    """The names of the arguments that are not shown; None: all of them."""
    try:
        redacted = _method(attempt).policy.redact or frozenset()
    except AsyncTaskError:  # its target is not known here, nor what it redacts
        return None
    return None if attempt.encryptor != NullEncryptor.name else redacted


def _hidden_of(method: Method, compared: Sequence[BaseAttempt]) -> frozenset[str] | None:
    """The same of the arguments that are wanted: also if one of the attempts `compared` hides them."""
    found = [*map(_hidden, compared), None if method.policy.encryptor else method.policy.redact or frozenset()]
    return None if None in found else frozenset[str]().union(*(one for one in found if one is not None))


def _call(method: Method, wanted: Mapping[str, Any], hidden: frozenset[str] | None) -> str:
    return f"{call_name(method.target.name, method.name)}({_joined(wanted, hidden)})"


def _joined(arguments: Mapping[str, Any], hidden: frozenset[str] | None) -> str:
    return ", ".join(f"{name}={_shown(name, value, hidden)}" for name, value in arguments.items())


def _shown(name: str, value: object, hidden: frozenset[str] | None) -> str:
    if hidden is None or name in hidden:
        return HIDDEN
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
