"""The model: one row, one call that must happen. Its columns, its questions, and the verbs that change its state."""

import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypedDict, TypeVar, Unpack, overload

from sqlalchemy import (
    Boolean,
    Computed,
    Connection,
    Enum,
    Select,
    SmallInteger,
    Table,
    and_,
    event,
    inspect,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Mapped, MappedAsDataclass, Mapper, Session, mapped_column, scoped_session, validates
from sqlalchemy.orm.attributes import set_committed_value

from async_task import verbs, writing
from async_task.arguments import decode
from async_task.columns import Counter, Identifier, Instant, LongText, Name, RowNumber
from async_task.constraints import ORDER_SLOT, furnish
from async_task.dialects import compared, written
from async_task.encryption import Encryptor, context_of, encryptor_named, unseal
from async_task.errors import ConfigurationError, InvalidState
from async_task.identity import uuid7
from async_task.status import Status
from async_task.tables import Base
from async_task.targets import method_of

P = ParamSpec("P")
AnySession = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any]
TakenSession = TypeVar("TakenSession", bound=Session | AsyncSession)
AttemptT = TypeVar("AttemptT", bound="BaseAttempt")


class CallOptions(TypedDict, total=False):
    """What `options(...)` takes: all of `create` but the call itself."""

    session: AnySession | None
    idempotence_token: str | None
    scheduled_at: dt.datetime | None
    expires_at: dt.datetime | None
    queue: str | None
    priority: int | None
    order_key: str | None
    encryptor: Encryptor | str | None
    max_attempts: int | None


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


class BaseAttempt:
    """The mixin: `class Attempt(BaseAttempt, Base): __tablename__ = "..."`, with any further columns and overrides."""

    id: Mapped[uuid.UUID] = mapped_column(Identifier(), primary_key=True, default=uuid7, sort_order=-100)
    status: Mapped[Status] = mapped_column(
        Enum(Status, native_enum=False, length=16, values_callable=lambda kinds: [kind.value for kind in kinds]),
        default=Status.PENDING,
    )
    target: Mapped[str] = mapped_column(Name(255))
    method_name: Mapped[str] = mapped_column(Name(255))
    encoded_args: Mapped[str] = mapped_column("method_args", LongText())
    encryptor: Mapped[str] = mapped_column(Name(64), default="null")
    idempotence_token: Mapped[str | None] = mapped_column(Name(255))
    queue: Mapped[str] = mapped_column(Name(64), default="default")
    priority: Mapped[int] = mapped_column(SmallInteger(), default=0)
    order_key: Mapped[str | None] = mapped_column(Name(255))
    seq: Mapped[int | None] = mapped_column(RowNumber())
    released: Mapped[bool] = mapped_column(Boolean(), default=True)
    order_slot: Mapped[str | None] = mapped_column(Name(255), Computed(ORDER_SLOT, persisted=True))
    num_attempts: Mapped[int] = mapped_column(Counter(), default=0)
    num_errors: Mapped[int] = mapped_column(Counter(), default=0)
    num_crashes: Mapped[int] = mapped_column(Counter(), default=0)
    max_attempts: Mapped[int | None] = mapped_column(SmallInteger())
    scheduled_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    due_at: Mapped[dt.datetime] = mapped_column(Instant(), default=written())
    claim_id: Mapped[uuid.UUID | None] = mapped_column(Identifier())
    claimed_by: Mapped[str | None] = mapped_column(Name(128))
    lease_until: Mapped[dt.datetime | None] = mapped_column(Instant())
    expires_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    attempted_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    completed_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    last_error: Mapped[str | None] = mapped_column(LongText())
    created_at: Mapped[dt.datetime] = mapped_column(Instant(), default=written())
    updated_at: Mapped[dt.datetime] = mapped_column(Instant(), default=written())
    trace_context: Mapped[str | None] = mapped_column(Name(64))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if issubclass(cls, MappedAsDataclass):
            raise ConfigurationError(
                f"{cls.__name__}: an attempt's columns are written by create(), not by a dataclass's __init__: "
                "map it on a base without MappedAsDataclass (it may share that base's metadata and registry)"
            )
        super().__init_subclass__(**kwargs)

    @classmethod
    def create(
        cls,
        *,
        target: object,
        method_name: str | None = None,
        method_args: Mapping[str, Any] | None = None,
        session: AnySession | None = None,
        idempotence_token: str | None = None,
        scheduled_at: dt.datetime | None = None,
        expires_at: dt.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        order_key: str | None = None,
        encryptor: Encryptor | str | None = None,
        max_attempts: int | None = None,
    ) -> Self:
        """Write a call down in the caller's transaction; it exists if that commits. Does no I/O, awaits nothing.

        `target`: a registered class, module, function, instance, or its name. `session`: left out, the one transaction
        that this thread and asyncio task has begun. Instants are aware datetimes. Left out, `queue` and `priority` are
        the target's, else "default" and 0 (first; 9 last).

        Raises, before anything is written: UnknownTarget, UnknownMethod, InvalidArguments, UnknownEncryptor,
        NoTransaction, AmbiguousTransaction. A used `idempotence_token` fails at the flush with IntegrityError.
        """
        made = writing.draft(
            target=target, method_name=method_name, method_args=method_args, idempotence_token=idempotence_token,
            scheduled_at=scheduled_at, expires_at=expires_at, queue=queue, priority=priority, order_key=order_key,
            encryptor=encryptor, max_attempts=max_attempts,
        )  # fmt: skip
        return writing.add(cls, made, session)

    @overload
    @classmethod
    def call(cls, fn: Callable[Concatenate[TakenSession, P], Any], /, *args: P.args, **kwargs: P.kwargs) -> Self: ...
    @overload
    @classmethod
    def call(cls, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Self: ...
    @classmethod
    def call(cls, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Self:
        """`create`, checked by the type checker: `Attempt.call(OrderClient.fulfill, token, order_number=1)`.

        A first parameter of `fn` annotated with a session is handed in when performing, and not passed here.
        """
        return Call(cls, {}).call(fn, *args, **kwargs)

    @classmethod
    def options(cls, **options: Unpack[CallOptions]) -> Call[Self]:
        """`Attempt.options(scheduled_at=..., session=...).call(fn, ...)`: `call` with the other arguments of `create`."""
        return Call(cls, options)

    @classmethod
    def ensure(cls, session: AnySession | None = None, /, **attempt: Any) -> Self:
        """The attempt with this target, method and `idempotence_token`: created, unless it exists. Takes what `create`
        takes, and flushes the session first; a coroutine calls `await session.run_sync(Attempt.ensure, ...)`.

        The caller's transaction is never aborted at READ COMMITTED; above it, PostgreSQL may raise its serialization
        failure. Raises what `create` raises.
        """
        session = attempt.pop("session", session)
        return writing.ensure(cls, writing.draft(**attempt), None if session is None else writing.sync_session(session))

    @classmethod
    def create_many(cls, where: AnySession | Connection, rows: Iterable[Mapping[str, Any]], /) -> list[uuid.UUID]:
        """Write many calls down in one statement; each row is a mapping with the arguments of `create`, without
        `session`. Answers the ids, in order. Raises what `create` raises, with the number of the row."""
        return writing.insert_many(cls, where, rows)

    @property
    def method_args(self) -> Mapping[str, Any]:
        """The arguments, decrypted and decoded. Raises UnknownEncryptor, DecryptionFailed, InvalidArguments."""
        context = context_of(self.id, self.target, self.method_name)
        return decode(unseal(self.encoded_args, encryptor_named(self.encryptor), context))

    @property
    def is_due(self) -> bool:
        """Whether it may be taken now, by this process's clock and the row as it was read; `due()` asks the database."""
        return self.status is Status.PENDING and self.claim_id is None and self.due_at <= dt.datetime.now(dt.UTC)

    @property
    def is_performing(self) -> bool:
        """Whether somebody held it when the row was read."""
        return self.status is Status.PENDING and self.claim_id is not None

    def expire(self, session: AnySession | None = None, /, *, reason: str | None = None) -> None:
        """It should no longer be run. Legal while pending and not being performed, else InvalidState (square/async_task)."""
        verbs.end(self, session, Status.EXPIRED, "expire", reason)

    def fail(self, session: AnySession | None = None, /, *, reason: str | None = None) -> None:
        """Failed for good. Legal while pending and not being performed, else InvalidState (square/async_task)."""
        verbs.end(self, session, Status.FAILED, "fail", reason)

    def cancel(self, session: AnySession | None = None, /, *, reason: str | None = None) -> None:
        """No longer wanted. Legal while pending and not being performed, else InvalidState."""
        verbs.end(self, session, Status.CANCELED, "cancel", reason)

    def retry_now(self, session: AnySession | None = None, /, *, reason: str | None = None) -> None:
        """Due now. A failed, expired or canceled attempt is pending again, with `num_errors` and `num_crashes` 0 and
        without a deadline that has passed. Else InvalidState: succeeded, or being performed."""
        verbs.retry_now(self, session, reason)

    def reschedule(self, session: AnySession | None = None, /, *, at: dt.datetime, reason: str | None = None) -> None:
        """Due at `at`, an aware datetime. Legal while pending and not being performed, else InvalidState."""
        moment = writing.aware(at, "at")
        assert moment is not None
        verbs.reschedule(self, session, moment, reason)

    def handle_perform_error(self, error: BaseException) -> None:
        """For you to override: runs after every failed try, in a transaction of its own, with `self` attached.

        `self.fail()`, `self.expire()` and `self.cancel()` are legal in it. What it raises is logged, and rolled back.
        """

    @classmethod
    def pending(cls) -> Select[tuple[Self]]:
        return select(cls).where(cls.status == Status.PENDING)

    @classmethod
    def succeeded(cls) -> Select[tuple[Self]]:
        return select(cls).where(cls.status == Status.SUCCEEDED)

    @classmethod
    def failed(cls) -> Select[tuple[Self]]:
        return select(cls).where(cls.status == Status.FAILED)

    @classmethod
    def expired(cls) -> Select[tuple[Self]]:
        return select(cls).where(cls.status == Status.EXPIRED)

    @classmethod
    def canceled(cls) -> Select[tuple[Self]]:
        return select(cls).where(cls.status == Status.CANCELED)

    @classmethod
    def due(cls) -> Select[tuple[Self]]:
        """Those that may be taken now, by the database's clock."""
        in_time = or_(cls.expires_at.is_(None), cls.expires_at > compared())
        return cls.pending().where(cls.claim_id.is_(None), cls.released, cls.due_at <= compared(), in_time)

    @classmethod
    def potentially_stuck(cls) -> Select[tuple[Self]]:
        """What a person may have to look at: failed or expired, or pending and due, running, failing or parked.
        Oldest first (Caseflow)."""
        troubled = or_(
            cls.due_at <= compared(), cls.claim_id.is_not(None), cls.num_crashes > 0, cls.last_error.is_not(None)
        )
        given_up = cls.status.in_((Status.FAILED, Status.EXPIRED))
        return (
            select(cls)
            .where(or_(given_up, and_(cls.status == Status.PENDING, troubled)))
            .order_by(cls.created_at, cls.id)
        )

    @validates("target", "method_name", "encoded_args", "encryptor")
    def _written_once(self, key: str, value: str) -> str:
        if inspect(self).has_identity or (key in self.__dict__ and self.__dict__[key] != value):
            raise InvalidState(f"{key} is written once: create another attempt, and cancel this one")
        return value


@event.listens_for(BaseAttempt, "instrument_class", propagate=True)
def _furnish(mapper: Mapper[Any], model: type[Any]) -> None:
    # Here and not in __table_args__, which a subclass may replace: the fence rests on these.
    if isinstance(mapper.local_table, Table) and "claim_id" in mapper.local_table.c:
        furnish(mapper.local_table)


@event.listens_for(BaseAttempt, "init", propagate=True)
def _identify(attempt: BaseAttempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    kwargs.setdefault("id", uuid7())


@event.listens_for(BaseAttempt, "expire", propagate=True)
def _keep_id(attempt: BaseAttempt, names: Iterable[str] | None) -> None:
    # After a commit the id is still asked for, and an AsyncSession may not load it then.
    identity = inspect(attempt).identity
    if identity is not None:
        set_committed_value(attempt, "id", identity[0])


class Attempt(BaseAttempt, Base):
    """The ready-made model, in the table `async_task_attempts` of `async_task.metadata`."""

    __tablename__ = "async_task_attempts"
