"""A call with options: what `Attempt.options(...)` returns."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, TypeVar, overload

from async_task.attempts.options import CallOptions, CallToMake, P, TakenSession
from async_task.targets.registry import method_of

if TYPE_CHECKING:
    from async_task.attempts.attempt import BaseAttempt

AttemptT = TypeVar("AttemptT", bound="BaseAttempt")


class Call(Generic[AttemptT]):
    """The answer of `Attempt.options(...)`: its `call` writes a call down with these options."""

    def __init__(self, model: type[AttemptT], options: CallOptions) -> None:
        self._model = model
        self._options = options

    @overload
    def call(
        self, fn: Callable[Concatenate[TakenSession, P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> AttemptT: ...
    @overload
    def call(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> AttemptT: ...
    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AttemptT:
        """Write down the call `fn(*args, **kwargs)`, as `Attempt.call` does, with the options."""
        method = method_of(fn)
        arguments = method.signature.arguments(args, kwargs)
        return self._model.create(
            target=method.target.name, method_name=method.name, method_args=arguments, **self._options
        )

    def of(self, fn: Callable[..., Any], /) -> CallToMake:
        """Calls of `fn` with these options, for a schedule: `call=Attempt.options(queue="slow").of(report)`."""
        return CallToMake(self._model, fn, self._options)
