"""The arguments of `create` as types, and `options(...).call(...)`: what a type checker sees of a call written down."""

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Required, TypedDict, TypeVar

from sqlalchemy.orm import Session, scoped_session

from async_task.encryption.encryptors import Encryptor

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    AnySession = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]
else:
    AnySession = object  # the asyncio half of SQLAlchemy wants greenlet, which a synchronous program need not have

P = ParamSpec("P")
SyncSession = Session | scoped_session[Any]
TakenSession = TypeVar("TakenSession", bound="Session | AsyncSession")


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
