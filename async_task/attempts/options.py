"""The arguments of `create` as types, and `options(...).call(...)`: what a type checker sees of a call written down."""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Required, TypedDict, TypeVar, overload

from sqlalchemy.orm import Session, scoped_session

from async_task.encryption.encryptors import Encryptor
from async_task.targets.registry import method_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    from async_task.attempts.attempt import BaseAttempt

    AnySession = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]
else:
    AnySession = object  # the asyncio half of SQLAlchemy wants greenlet, which a synchronous program need not have

P = ParamSpec("P")
SyncSession = Session | scoped_session[Any]
TakenSession = TypeVar("TakenSession", bound="Session | AsyncSession")
AttemptT = TypeVar("AttemptT", bound="BaseAttempt")


class Options(TypedDict, total=False):
    """All that `create` takes but the session and the call itself."""

    idempotence_token: str | None
    scheduled_at: dt.datetime | None
    expires_at: dt.datetime | None
    queue: str | None
    priority: int | None
    order_key: str | None
    encryptor: Encryptor | str | None
    max_attempts: int | None


class CallOptions(Options, total=False):
    """What `options(...)` takes."""

    session: AnySession | None


class CallByName(Options, total=False):
    """What `ensure` takes: `create`'s arguments, with the session in front."""

    target: Required[object]
    method_name: str | None
    method_args: Mapping[str, Any] | None


class Call(Generic[AttemptT]):
    """`Attempt.options(...)`: knows how the call shall be written down, and waits for the call."""

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
        """Write down the call `fn(*args, **kwargs)`, without the session that `fn` may ask for. As `Attempt.create`."""
        method = method_of(fn)
        arguments = method.signature.arguments(args, kwargs)
        return self._model.create(
            target=method.target.name, method_name=method.name, method_args=arguments, **self._options
        )
