"""The arguments of `create` as types, for type checkers."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Required, TypedDict, TypeVar

from sqlalchemy.orm import Session, scoped_session

from async_task.encryption.encryptors import Encryptor
from async_task.targets.keeping import Age
from async_task.targets.retry import Duration, Retry

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    AnySession = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]
else:
    AnySession = object  # SQLAlchemy's asyncio half needs greenlet, which a synchronous program need not have

P = ParamSpec("P")
SyncSession = Session | scoped_session[Any]
TakenSession = TypeVar("TakenSession", bound="Session | AsyncSession")


class Options(TypedDict, total=False):
    """The arguments of `create`, without the session and the call itself."""

    idempotence_token: str | None
    scheduled_at: dt.datetime | None
    delay: Age | None
    expires_at: dt.datetime | None
    queue: str | None
    priority: int | None
    order_key: str | None
    encryptor: Encryptor | str | None
    max_attempts: int | None
    retry: Retry | None
    timeout: Duration | None
    columns: Mapping[str, Any] | None


class CallOptions(Options, total=False):
    """The arguments of `options`."""

    session: AnySession | None


class CallByName(Options, total=False):
    """The keyword arguments of `ensure`."""

    target: Required[object]
    method_name: str | None
    method_args: Mapping[str, Any] | None
    within: Age | None
    until_done: bool


@dataclass(frozen=True, slots=True)
class CallToMake:
    """A function with the options by which calls of it are written down: `Attempt.options(queue="slow").of(report)`."""

    model: type[Any]
    function: Callable[..., Any]
    options: CallOptions
