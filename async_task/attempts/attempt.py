"""The model: one row, one call that must happen. Its columns, its questions, and the verbs that change its state."""

import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import (
    Any,
    Concatenate,
    Generic,
    Self,
    TypeVar,
    Unpack,
    overload,
)

from sqlalchemy import Boolean, Computed, Connection, Enum, Select, SmallInteger, Table, event, inspect, or_, select
from sqlalchemy.orm import Mapped, MappedAsDataclass, Mapper, mapped_column, validates
from sqlalchemy.orm.attributes import instance_state, set_committed_value

from async_task.arguments.decoding import decode
from async_task.attempts import actions, create, create_many
from async_task.attempts.options import AnySession, CallByName, CallOptions, P, SyncSession, TakenSession
from async_task.database.clock import clock_now, statement_now
from async_task.encryption.encryptors import Encryptor, context_of, encryptor_named, unseal
from async_task.errors import ConfigurationError, InvalidState
from async_task.schema.columns import Counter, Identifier, Instant, LongText, Name, RowNumber, SealedText, uuid7
from async_task.schema.indexes import OrderSlot, complete_table
from async_task.schema.states import Status
from async_task.schema.tables import Base, companion_tables
from async_task.targets.registry import method_of

AttemptT = TypeVar("AttemptT", bound="BaseAttempt")


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


UNKNOWN = object()
metadata = Base.metadata
"""The ready-made tables, for `target_metadata` and `create_all`."""
# Select[Any], because its element is Self in SQLAlchemy 2.1 and tuple[Self] in 2.0, and both lines are served.


class BaseAttempt:
    """The mixin: `class Attempt(BaseAttempt, Base): __tablename__ = "..."`, with any further columns and overrides."""

    id: Mapped[uuid.UUID] = mapped_column(Identifier(), primary_key=True, default=uuid7, sort_order=-100)
    status: Mapped[Status] = mapped_column(
        Enum(Status, native_enum=False, length=16, values_callable=lambda kinds: [kind.value for kind in kinds]),
        default=Status.PENDING,
    )
    target: Mapped[str] = mapped_column(Name(255))
    method_name: Mapped[str] = mapped_column(Name(255))
    encoded_args: Mapped[str] = mapped_column("method_args", SealedText())
    encryptor: Mapped[str] = mapped_column(Name(64), default="null")
    idempotence_token: Mapped[str | None] = mapped_column(Name(255))
    queue: Mapped[str] = mapped_column(Name(64), default="default")
    priority: Mapped[int] = mapped_column(SmallInteger(), default=0)
    order_key: Mapped[str | None] = mapped_column(Name(255))
    seq: Mapped[int | None] = mapped_column(RowNumber())
    released: Mapped[bool] = mapped_column(Boolean(), default=True)
    arrived: Mapped[bool | None] = mapped_column(Boolean())
    order_slot: Mapped[str | None] = mapped_column(Name(255), Computed(OrderSlot(), persisted=True))
    num_attempts: Mapped[int] = mapped_column(Counter(), default=0)
    num_errors: Mapped[int] = mapped_column(Counter(), default=0)
    num_crashes: Mapped[int] = mapped_column(Counter(), default=0)
    max_attempts: Mapped[int | None] = mapped_column(SmallInteger())
    scheduled_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    due_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    claim_id: Mapped[uuid.UUID | None] = mapped_column(Identifier())
    claimed_by: Mapped[str | None] = mapped_column(Name(128))
    lease_until: Mapped[dt.datetime | None] = mapped_column(Instant())
    expires_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    attempted_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    completed_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    last_error: Mapped[str | None] = mapped_column(LongText())
    created_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    updated_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    trace_context: Mapped[str | None] = mapped_column(Name(64))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if issubclass(cls, MappedAsDataclass):
            raise _no_dataclass(cls)
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
        the target's, else "default" and 0 (first; 9 last). Attempts with the same `order_key`, a printable text of 1 to
        255 characters, are performed one at a time, in the order in which they were inserted.

        Raises, before anything is written: UnknownTarget, UnknownMethod, InvalidArguments, UnknownEncryptor,
        NoTransaction, AmbiguousTransaction. A used `idempotence_token` fails at the flush with IntegrityError.
        """
        made = create.draft(
            {}, target=target, method_name=method_name, method_args=method_args, idempotence_token=idempotence_token,
            scheduled_at=scheduled_at, expires_at=expires_at, queue=queue, priority=priority, order_key=order_key,
            encryptor=encryptor, max_attempts=max_attempts,
        )  # fmt: skip
        return create.add(cls, made, session)

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
        """`Attempt.options(scheduled_at=...).call(fn, ...)`: `call` with the other arguments of `create`."""
        return Call(cls, options)

    @classmethod
    def ensure(cls, session: SyncSession | None = None, /, **attempt: Unpack[CallByName]) -> Self:
        """The attempt with this target, method and `idempotence_token`: created, unless it exists. Takes what `create`
        takes, and flushes the session first; a coroutine calls `await session.run_sync(Attempt.ensure, ...)`.

        The caller's transaction is never aborted at READ COMMITTED; above it, PostgreSQL may raise its serialization
        failure. Raises what `create` raises.
        """
        ensured: Self = create.ensure(cls, attempt, session)
        return ensured

    @classmethod
    def create_many(cls, where: SyncSession | Connection, rows: Iterable[Mapping[str, Any]], /) -> list[uuid.UUID]:
        """Write many calls down in one statement; each row is a mapping with the arguments of `create`, without
        `session`. Answers the ids, in order. Raises what `create` raises, with the number of the row."""
        return create_many.insert_many(cls, where, rows)

    @property
    def method_args(self) -> Mapping[str, Any]:
        """The arguments, decrypted and decoded. Raises UnknownEncryptor, DecryptionFailed, InvalidArguments."""
        context = context_of(self.id, self.target, self.method_name)
        return decode(unseal(self.encoded_args, encryptor_named(self.encryptor), context))

    @property
    def is_due(self) -> bool:
        """Whether it may be taken now, by this process's clock and the row as read; `due()` asks the database."""
        if not inspect(self).has_identity:  # only the database's clock says when it will be due
            return False
        is_free = self.status is Status.PENDING and self.claim_id is None and self.released
        return is_free and self.due_at <= dt.datetime.now(dt.UTC)

    @property
    def is_performing(self) -> bool:
        """Whether somebody held it when the row was read."""
        return self.status is Status.PENDING and self.claim_id is not None

    def expire(self, session: SyncSession | None = None, /, *, reason: str | None = None) -> None:
        """It should no longer be run (square/async_task). Legal while pending and not performed, else InvalidState."""
        actions.end(self, create.given(session), Status.EXPIRED, "expire", reason)

    def fail(self, session: SyncSession | None = None, /, *, reason: str | None = None) -> None:
        """Failed for good. Legal while pending and not being performed, else InvalidState (square/async_task)."""
        actions.end(self, create.given(session), Status.FAILED, "fail", reason)

    def cancel(self, session: SyncSession | None = None, /, *, reason: str | None = None) -> None:
        """No longer wanted. Legal while pending and not being performed, else InvalidState."""
        actions.end(self, create.given(session), Status.CANCELED, "cancel", reason)

    def retry_now(self, session: SyncSession | None = None, /, *, reason: str | None = None) -> None:
        """Due now. A failed, expired or canceled attempt is pending again, with `num_errors` and `num_crashes` 0 and
        without a deadline that has passed. Else InvalidState: succeeded, or being performed."""
        actions.retry_now(self, create.given(session), reason)

    def reschedule(self, session: SyncSession | None = None, /, *, at: dt.datetime, reason: str | None = None) -> None:
        """Due at `at`, an aware datetime. Legal while pending and not being performed, else InvalidState."""
        actions.reschedule(self, create.given(session), create.aware(at, "at"), reason)

    def handle_perform_error(self, error: BaseException) -> None:
        """For you to override: runs after every failed try, in a transaction of its own, with `self` attached.

        `self.fail()`, `self.expire()` and `self.cancel()` are legal in it. What it raises is logged, and rolled back.
        """

    @classmethod
    def pending(cls) -> Select[Any]:
        return select(cls).where(cls.status == Status.PENDING)

    @classmethod
    def succeeded(cls) -> Select[Any]:
        return select(cls).where(cls.status == Status.SUCCEEDED)

    @classmethod
    def failed(cls) -> Select[Any]:
        return select(cls).where(cls.status == Status.FAILED)

    @classmethod
    def expired(cls) -> Select[Any]:
        return select(cls).where(cls.status == Status.EXPIRED)

    @classmethod
    def canceled(cls) -> Select[Any]:
        return select(cls).where(cls.status == Status.CANCELED)

    @classmethod
    def due(cls) -> Select[Any]:
        """Those that may be taken now, by the database's clock."""
        in_time = or_(cls.expires_at.is_(None), cls.expires_at > statement_now())
        return cls.pending().where(cls.claim_id.is_(None), cls.released, cls.due_at <= statement_now(), in_time)

    @classmethod
    def potentially_stuck(cls) -> Select[Any]:
        """What a person may have to look at: failed or expired, or pending and due, running, failing or parked.
        Oldest first (Caseflow)."""
        given_up = cls.status.in_((Status.FAILED, Status.EXPIRED))
        at_work = or_(cls.due_at <= statement_now(), cls.claim_id.is_not(None))
        troubled = or_(at_work, cls.num_crashes > 0, cls.last_error.is_not(None))
        stuck = or_(given_up, (cls.status == Status.PENDING) & troubled)
        return select(cls).where(stuck).order_by(cls.created_at, cls.id)

    def __repr__(self) -> str:
        # Of what is loaded, because a repr does no I/O; and never of the arguments.
        known = self.__dict__
        status, target, name = known.get("status", "not loaded"), known.get("target"), known.get("method_name")
        call = target if name in (None, "__call__") else f"{target}.{name}"
        return " ".join([f"<{type(self).__name__}", str(known.get("id")), str(status), *filter(None, [call])]) + ">"

    @validates("target", "method_name", "encoded_args", "encryptor")
    def _written_once(self, key: str, value: str) -> str:
        # What is there may be set again: a merge does. What was not loaded is not loaded to compare.
        known = self.__dict__.get(key, UNKNOWN)
        if value != known and (known is not UNKNOWN or instance_state(self).has_identity):
            raise InvalidState(f"{key} is written once: create another attempt, and cancel this one")
        return value


@event.listens_for(BaseAttempt, "instrument_class", propagate=True)
def _furnish(mapper: Mapper[Any], model: type[Any]) -> None:
    if is_dataclass(model):
        raise _no_dataclass(model)
    # Here and not in __table_args__, which a subclass may replace: the fence rests on these.
    if isinstance(mapper.local_table, Table) and "claim_id" in mapper.local_table.c:
        complete_table(mapper.local_table)
        companion_tables(mapper.local_table)


@event.listens_for(BaseAttempt, "init", propagate=True)
def _identify(_attempt: BaseAttempt, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if "id" not in kwargs:
        kwargs["id"] = uuid7()


@event.listens_for(BaseAttempt, "expire", propagate=True)
def _keep_id(attempt: BaseAttempt, _names: Iterable[str] | None) -> None:
    # After a commit the id is still asked for, and an AsyncSession may not load it then.
    identity = instance_state(attempt).identity
    if identity is not None:
        set_committed_value(attempt, "id", identity[0])


def _no_dataclass(model: type[Any]) -> ConfigurationError:
    return ConfigurationError(
        f"{model.__name__}: an attempt's columns are written by create(), not by a dataclass's __init__: "
        "map it on a base without MappedAsDataclass (it may share that base's metadata and registry)"
    )


class Attempt(BaseAttempt, Base):
    """The ready-made model, in the table `async_task_attempts` of `async_task.metadata`."""

    __tablename__ = "async_task_attempts"
