"""The columns of an attempt, each with what it says."""

import datetime as dt
import uuid
from typing import Any, TypeVar

from sqlalchemy import Boolean, Computed, Enum, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from async_task.database.clock import clock_now
from async_task.schema.columns import Counter, Identifier, Instant, LongText, Name, RowNumber, SealedText, uuid7
from async_task.schema.indexes import OrderSlot
from async_task.schema.states import Status

T = TypeVar("T", bound=TypeEngine[Any])


def named_if_given(kind: T) -> T:
    """`kind`, for a column that the INSERT of an object names only where it has a value.

    SQLAlchemy names all others, as NULL. That is a third of the parameters, and tables that are not upgraded yet lack
    the newest columns. Not for what is often given to one call of a flush and not to the next one: rows with the same
    columns share a statement.
    """
    return kind.evaluates_none()


class AttemptColumns:
    """The columns of `BaseAttempt`, which says who may write them."""

    id: Mapped[uuid.UUID] = mapped_column(Identifier(), primary_key=True, default=uuid7, sort_order=-100)
    """A UUIDv7, made with the object: known before the flush, and in the order of creation."""
    status: Mapped[Status] = mapped_column(
        Enum(Status, native_enum=False, length=16, values_callable=lambda kinds: [kind.value for kind in kinds]),
        default=Status.PENDING,
    )
    """`pending`, `succeeded`, `failed`, `expired` or `canceled`. An attempt that runs is pending, with a `claim_id`."""
    target: Mapped[str] = mapped_column(Name(255))
    """The registered name of what is called."""
    method_name: Mapped[str] = mapped_column(Name(255))
    """The method of the target; `__call__` where the target itself is called."""
    encoded_args: Mapped[str] = mapped_column("method_args", SealedText())
    """The arguments as they are stored, in the column `method_args`: JSON, or base64 of what the encryptor made."""
    encryptor: Mapped[str] = mapped_column(Name(64), default="null")
    """The name of the encryptor of the arguments; `null` where they are not encrypted."""
    idempotence_token: Mapped[str | None] = mapped_column(Name(255))
    """Unique together with `target` and `method_name`; a null token is never a duplicate."""
    queue: Mapped[str] = mapped_column(Name(64), default="default")
    """Where it waits."""
    priority: Mapped[int] = mapped_column(SmallInteger(), default=0)
    """0 (first) to 9 (last), within its queue."""
    order_key: Mapped[str | None] = mapped_column(named_if_given(Name(255)))
    """Attempts with the same key are performed one at a time, in the order of `seq`."""
    seq: Mapped[int | None] = mapped_column(named_if_given(RowNumber()))
    """The place among those with the same order key; null without a key."""
    released: Mapped[bool] = mapped_column(Boolean(), default=True)
    """Whether it may be claimed: false while it waits for an earlier attempt of its order key."""
    arrived: Mapped[bool | None] = mapped_column(named_if_given(Boolean()))
    """True from the insertion of an attempt with an order key until a worker has checked whether it is next."""
    order_slot: Mapped[str | None] = mapped_column(Name(255), Computed(OrderSlot(), persisted=True))
    """The order key of a pending, released attempt: unique, so that one of a key is released at a time. Computed."""
    num_attempts: Mapped[int] = mapped_column(Counter(), default=0)
    """How often it was started, committed before each call."""
    num_errors: Mapped[int] = mapped_column(Counter(), default=0)
    """How many of these calls raised."""
    num_crashes: Mapped[int] = mapped_column(Counter(), default=0)
    """How many of the last starts in a row killed a process that performed nothing else; 0 after any start that was
    settled."""
    num_losses: Mapped[int] = mapped_column(Counter(), default=0, server_default="0")
    """How many of the last starts in a row were lost with a worker, whatever ended it; 0 after any start that was
    settled."""
    max_attempts: Mapped[int | None] = mapped_column(SmallInteger())
    """How many errors end it as failed; null: as the retry policy says."""
    scheduled_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    """When the caller wanted it to start; null: at once."""
    due_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    """When it may be started next: `scheduled_at` at first, then moved by retries, polls, parking and people."""
    claim_id: Mapped[uuid.UUID | None] = mapped_column(named_if_given(Identifier()))
    """The fence: a new id at each claim, which every write about the call must match. Null while nobody claims it."""
    claimed_by: Mapped[str | None] = mapped_column(named_if_given(Name(128)))
    """The name of the worker that has claimed it."""
    lease_until: Mapped[dt.datetime | None] = mapped_column(named_if_given(Instant()))
    """Until when the claim holds without a lock on the row; running workers extend it."""
    expires_at: Mapped[dt.datetime | None] = mapped_column(Instant())
    """After this instant it is not started any more, and ends as expired; null: never."""
    attempted_at: Mapped[dt.datetime | None] = mapped_column(named_if_given(Instant()))
    """When it was last started."""
    completed_at: Mapped[dt.datetime | None] = mapped_column(named_if_given(Instant()))
    """When it ended; null exactly while it is pending."""
    last_error: Mapped[str | None] = mapped_column(named_if_given(LongText()))
    """The last error, the last reason for parking, or the reason that a person gave. Without arguments."""
    created_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    """When it was written down."""
    updated_at: Mapped[dt.datetime] = mapped_column(Instant(), default=clock_now())
    """When the row was last changed."""
    trace_context: Mapped[str | None] = mapped_column(named_if_given(Name(64)))
    """The W3C `traceparent` of the transaction that created it; null without OpenTelemetry."""
    call_settings: Mapped[str | None] = mapped_column(named_if_given(LongText()))
    """The `retry` and `timeout` that it was written with, as JSON; null: as its target's policy says."""
