"""The model: one row is one call that must happen. Its columns, and the verbs that create and change it."""

import datetime as dt
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import (
    Any,
    Concatenate,
    Self,
    Unpack,
    overload,
)

from sqlalchemy import Connection, Table, event, inspect
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_state, set_committed_value

from async_task.arguments.decoding import decode
from async_task.attempts import actions, create, create_many, notes, unwritten
from async_task.attempts.call import Call
from async_task.attempts.draft import aware, draft
from async_task.attempts.mapping import check_base
from async_task.attempts.notes import NoteInfo
from async_task.attempts.options import AnySession, CallByName, CallOptions, P, SyncSession, TakenSession
from async_task.attempts.scopes import AttemptScopes
from async_task.attempts.written_once import WrittenOnce
from async_task.database.sessions import attached_session
from async_task.encryption.encryptors import Encryptor, context_of, encryptor_named, unseal
from async_task.errors import InvalidArguments, NoTransaction
from async_task.schema.columns import uuid7
from async_task.schema.indexes import complete_table
from async_task.schema.states import EMPTIED, Status
from async_task.schema.tables import Base, companion_tables
from async_task.targets.keeping import Age
from async_task.targets.retry import Duration, Retry

metadata = Base.metadata
"""The ready-made tables, for `target_metadata` and `create_all`."""


class BaseAttempt(WrittenOnce, AttemptScopes):
    """The mixin for an attempts table of your own, with any further columns, overrides and inheritance.

        class Attempt(BaseAttempt, Base):
            __tablename__ = "shop_attempts"
            tenant: Mapped[str | None]

    Everything but the columns that you add is written by the verbs here and by workers. Instants are in UTC, and of the
    database's clock. Raises ConfigurationError on a base with MappedAsDataclass, and as a model of SQLModel.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        check_base(cls)
        super().__init_subclass__(**kwargs)

    @classmethod
    def create(
        cls,
        session: AnySession | None = None,
        *,
        target: object,
        method_name: str | None = None,
        method_args: Mapping[str, Any] | None = None,
        idempotence_token: str | None = None,
        scheduled_at: dt.datetime | None = None,
        delay: Age | None = None,
        expires_at: dt.datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
        order_key: str | None = None,
        encryptor: Encryptor | str | None = None,
        max_attempts: int | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> Self:
        """Write a call down in your transaction: it is made after the commit, and never if that rolls back.

            with SessionLocal.begin() as session:
                session.add(order)
                Attempt.create(session, target=OrderClient, method_name="fulfill", method_args={"order_number": 17})

        Does no I/O and awaits nothing, so that it is the same for a Session and an AsyncSession; the row is written at
        the flush. `target`: a registered class, module, function or instance, or its name. `session`: left out, the
        one transaction that this thread and asyncio task has begun. `scheduled_at`, `expires_at`: aware datetimes.
        `delay`: due that long after the row is written, by the database's clock: seconds, a timedelta, or "2h".
        `queue`, `priority`: left out, the target's, else "default" and 0 (first; 9 is last). `order_key`: a printable
        text of 1 to 255 characters; attempts with the same one are performed one at a time, in the order of insertion.
        `encryptor`: an instance or a name. `max_attempts`: how many errors end it as failed, 1 to 32,767. `retry`,
        `timeout`: in the place of the policy's, for this attempt; not a Retry with a function of your own. `columns`:
        values of columns that you have added, by their names in the model: `columns={"tenant": "acme"}`.

        Raises, before anything is written: UnknownTarget, UnknownMethod, InvalidArguments, UnknownEncryptor,
        NoTransaction, AmbiguousTransaction. A used `idempotence_token` fails at the flush with IntegrityError.
        """
        made = draft(
            {}, target=target, method_name=method_name, method_args=method_args, idempotence_token=idempotence_token,
            scheduled_at=scheduled_at, delay=delay, expires_at=expires_at, queue=queue, priority=priority,
            order_key=order_key, encryptor=encryptor, max_attempts=max_attempts, retry=retry, timeout=timeout,
            columns=columns,
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
        """Write a call down as you would make it, checked by the type checker; otherwise as `create`.

            with SessionLocal.begin():
                Attempt.call(OrderClient.fulfill, token, order_number=17)

        A first parameter of `fn` that is annotated with a session is given to it by the worker, and not passed here.
        """
        return Call(cls, {}).call(fn, *args, **kwargs)

    @classmethod
    def options(cls, **options: Unpack[CallOptions]) -> Call[Self]:
        """Give a `call` the other arguments of `create`: `Attempt.options(queue="mail").call(send, to="ada@x.org")`."""
        return Call(cls, options)

    @classmethod
    def ensure(cls, session: SyncSession | None = None, **attempt: Unpack[CallByName]) -> Self:
        """Create an attempt, unless one with this target, method and `idempotence_token` exists; return that one.

            attempt = Attempt.ensure(session, target="orders", method_name="fulfill", idempotence_token="order-17")
            attempt = await session.run_sync(Attempt.ensure, target="orders", ...)  # with an AsyncSession

        One that was pruned while its token is remembered is returned too, as what is left of it (`is_pruned`). Takes
        the arguments of `create`, and flushes the session first. An attempt that exists does not abort your
        transaction. Transactions that race to write it may: on MySQL and MariaDB with a deadlock (1213), and at a level
        above READ COMMITTED on PostgreSQL with a serialization failure. Then OperationalError (DBAPIError with asyncpg)
        is raised, and the transaction is to be repeated. Raises what `create` raises.

        With one of these, a call may be written again, and a token of up to 180 characters may be left out: then equal
        arguments make it, and InvalidArguments refuses encrypted ones, as the token would tell which are equal.

        - `within="1h"`: once in each window of this length. Windows follow one another from 1970-01-01 00:00 UTC: those
          of an hour are the hours of the clock, so that 10:59 and 11:01 are in two. By the database's clock.
        - `until_done=True`: once while it is pending, also while it is performed. After it has ended, in whatever way,
          the next one is written.
        """
        ensured: Self = create.ensure(cls, attempt, session)
        return ensured

    @classmethod
    def create_many(cls, session: SyncSession | Connection, rows: Iterable[Mapping[str, Any]]) -> list[uuid.UUID]:
        """Write many calls down in one statement, with COPY where the driver has it; return their ids, in order.

            Attempt.create_many(session, [{"target": send, "method_args": {"to": to}} for to in addresses])

        Each row is a mapping with the arguments of `create` but `session`. A session is flushed first. Raises what
        `create` raises, with the number of the row, and IntegrityError for a used token.
        """
        return create_many.insert_many(cls, session, rows)

    @property
    def method_args(self) -> Mapping[str, Any]:
        """The arguments by name, decrypted and decoded; read-only. Raises UnknownEncryptor, DecryptionFailed,
        InvalidArguments."""
        if self.is_pruned:
            raise InvalidArguments(f"attempt {self.id} was pruned: its arguments are gone, and only its token is kept")
        context = context_of(self.id, self.target, self.method_name)
        return MappingProxyType(decode(unseal(self.encoded_args, encryptor_named(self.encryptor), context)))

    @property
    def is_due(self) -> bool:
        """Whether it may be started now, by the row as it was read and this process's clock; `due()` asks the database.

        False for an attempt that is not written yet."""
        if not inspect(self).has_identity:  # only the database's clock says when it will be due
            return False
        is_free = self.status is Status.PENDING and self.claim_id is None and self.released
        now = dt.datetime.now(dt.UTC)
        return is_free and self.due_at <= now and (self.expires_at is None or self.expires_at > now)

    @hybrid_property
    def is_pruned(self) -> bool:
        """Whether it was pruned, and is kept only because its token is still remembered. In a query, a condition."""
        return self.encoded_args == EMPTIED

    @property
    def is_performing(self) -> bool:
        """Whether a worker had claimed it when the row was read, as the status "performing" of `outbox.attempts.list`.

        Also past its lease, which is not extended under a lock that no row shows; so also, until a sweep recovers it,
        where that worker has died."""
        return self.status is Status.PENDING and self.claim_id is not None

    def expire(self, session: SyncSession | None = None, *, reason: str | None = None) -> None:
        """End it as expired: it is too late for the call. Legal while it is pending and not being performed.

        `session`: left out, the one to which it is attached. `reason`: for `last_error` and the event. Never waits for
        a lock. Raises InvalidState where it is not legal, InvalidArguments, and NoTransaction for a detached attempt
        without `session`. With an AsyncSession: `await session.run_sync(attempt.expire, reason="...")`.
        """
        actions.end(self, create.given(session), Status.EXPIRED, "expire", reason)

    def fail(self, session: SyncSession | None = None, *, reason: str | None = None) -> None:
        """End it as failed for good. Legal, and raises, as `expire`."""
        actions.end(self, create.given(session), Status.FAILED, "fail", reason)

    def cancel(self, session: SyncSession | None = None, *, reason: str | None = None) -> None:
        """End it as canceled: the call is no longer wanted. Legal, and raises, as `expire`."""
        actions.end(self, create.given(session), Status.CANCELED, "cancel", reason)

    def retry_now(self, session: SyncSession | None = None, *, reason: str | None = None) -> None:
        """Make it due now. A failed, expired or canceled attempt becomes pending again, with `num_errors`,
        `num_crashes` and `num_losses` 0 and without an `expires_at` that has passed. InvalidState where it has
        succeeded, is being performed or was pruned; else raises as `expire`."""
        actions.retry_now(self, create.given(session), reason)

    def reschedule(self, session: SyncSession | None = None, *, at: dt.datetime, reason: str | None = None) -> None:
        """Make it due at `at`, an aware datetime. Legal, and raises, as `expire`."""
        actions.reschedule(self, create.given(session), aware(at, "at"), reason)

    def add_note(self, session: SyncSession | None = None, *, text: str) -> NoteInfo:
        """Add a note in Markdown, up to 64 KB, in your transaction. Legal in every state, also while it is performed.

        `session`: left out, the one to which it is attached. Raises as the function `add_note`, and NoTransaction for a
        detached attempt without `session`. With an AsyncSession: `await session.run_sync(attempt.add_note, text=...)`.
        """
        if unwritten.is_unwritten(self):
            return notes.unwritten_note(text)
        own = create.given(session) or attached_session(self)
        if own is None:
            raise NoTransaction(f"attempt {self.id} is attached to no session: give the one in which to add the note")
        return notes.add_note(own, self, text)

    def message_user(self) -> Any:
        """Override this to return the user who gets messages about this attempt (`AsyncTask(on_message=...)`), for
        example from a column of your own. None: nobody."""
        return None

    def handle_perform_error(self, error: BaseException) -> Awaitable[None] | None:
        """Override this, as `def` or `async def`, to do something after every try that raised.

            def handle_perform_error(self, error):
                if isinstance(error, CardExpired):
                    self.fail(reason="the card has expired")

        It runs in the transaction that writes the outcome of the try, before anybody can claim the attempt again.
        `self` is attached to a session and has that outcome; `fail`, `expire` and `cancel` are legal, also after the
        last try. What it writes commits with the outcome. If it raises, that is logged and its writes are undone. It
        must be short, because the row is locked meanwhile.
        """
        return None

    def __repr__(self) -> str:
        # Only of what is loaded, because a repr does no I/O; and never the arguments.
        known = self.__dict__
        status, target, name = known.get("status", "not loaded"), known.get("target"), known.get("method_name")
        call = target if name in (None, "__call__") else f"{target}.{name}"
        return " ".join([f"<{type(self).__name__}", str(known.get("id")), str(status), *filter(None, [call])]) + ">"


@event.listens_for(BaseAttempt, "instrument_class", propagate=True)
def _furnish(mapper: Mapper[Any], model: type[Any]) -> None:
    check_base(model)
    # Not in __table_args__, which a subclass may replace: the fence depends on these indexes and checks.
    if isinstance(mapper.local_table, Table) and "claim_id" in mapper.local_table.c:
        complete_table(mapper.local_table)
        companion_tables(mapper.local_table)


@event.listens_for(BaseAttempt, "init", propagate=True)
def _identify(_attempt: BaseAttempt, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if "id" not in kwargs:
        kwargs["id"] = uuid7()


@event.listens_for(BaseAttempt, "expire", propagate=True)
def _keep_id(attempt: BaseAttempt | None, _names: Iterable[str] | None) -> None:
    # None for an object that was collected as garbage a moment ago: its owner was expired first, and released it.
    if attempt is None:
        return
    # The id is read after a commit too, when an AsyncSession must not load it.
    identity = instance_state(attempt).identity
    if identity is not None:
        set_committed_value(attempt, "id", identity[0])


class Attempt(BaseAttempt, Base):
    """The ready-made model, in the table `async_task_attempts` of `async_task.metadata`."""

    __tablename__ = "async_task_attempts"
