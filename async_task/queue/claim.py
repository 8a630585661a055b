"""A claim: what a worker asks for, and what it knows of each attempt that it was given."""

import datetime as dt
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Table, case, literal_column, type_coerce

from async_task.database.clock import Instant, UnreadInstant
from async_task.database.sizes import octet_length
from async_task.queue.left_out import NOTHING, LeftOut
from async_task.targets.target import call_name

LONGEST_READ = 16_384
"""How many bytes the arguments of an attempt may have that are read with its claim."""
Unread: TypeAlias = float | dt.datetime


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A claim of up to `limit` due attempts of one `queue`, by `worker`, under `claim_id`.

    `began`: only attempts that were due at that instant, existed then, and were not started since. `suspects`: only
    suspects; otherwise none. `targets`: only these; if empty, any. `besides`: calls to leave out this time, each a
    target and a method. `unknown`: what to leave out because this process does not know it. `marks` (PostgreSQL): for
    each priority, the `due_at` from which to search.
    """

    worker: str
    lease: dt.timedelta
    queue: str
    limit: int
    claim_id: uuid.UUID
    began: dt.datetime | None = None
    suspects: bool = False
    targets: tuple[str, ...] = ()
    besides: tuple[tuple[str, str], ...] = ()
    unknown: LeftOut = NOTHING
    marks: tuple[Any, ...] = ()

    @property
    def known(self) -> tuple[Any, ...]:
        """The last fields of every claim of it, which need not be read with each row: `known_fields`."""
        # A plain text, as a row has it: the caller's may be a member of an Enum.
        same = (str.__str__(self.queue), self.claim_id)
        return same if self.suspects else (0, 0, *same)

    @property
    def left_out(self) -> LeftOut:
        """All that is to be left out."""
        return self.unknown._replace(calls=self.besides + self.unknown.calls) if self.besides else self.unknown


class Claim(NamedTuple):
    """One attempt, claimed under `claim_id`: the fence of every write about it. `number`: which start this is, from 1.

    Its fields are those of the row, in the order of `COLUMNS`; the last ones are the `known_fields`. Instants are as
    they came from the driver: most calls never read one. `encoded_args` is empty until `load_arguments` has read it, if
    it is longer than LONGEST_READ.
    """

    id: uuid.UUID
    target: str
    method_name: str
    encoded_args: str
    encryptor: str
    order_key: str | None
    number: int
    num_errors: int
    max_attempts: int | None
    scheduled_at: Unread | None
    created_at: Unread
    attempted_at: Unread
    expires_at: Unread | None
    last_error: str | None
    priority: int
    due_at: Unread
    trace_context: str | None
    call_settings: str | None
    num_crashes: int
    num_losses: int
    queue: str
    claim_id: uuid.UUID

    @property
    def call(self) -> str:
        """What is called: `shop.orders.fulfill`."""
        return call_name(self.target, self.method_name)

    @property
    def is_loaded(self) -> bool:
        """Whether its arguments were read: no arguments are the text of an empty object."""
        return self.encoded_args != ""

    @property
    def is_suspect(self) -> bool:
        """Whether its last start was lost with its process."""
        return self.num_crashes > 0 or self.num_losses > 0

    @property
    def claimed_at(self) -> dt.datetime:
        """When it was claimed, by the database's clock."""
        return UnreadInstant.read(self.attempted_at)

    @property
    def age(self) -> dt.timedelta:
        """From `scheduled_at`, or else `created_at`, to its claim."""
        wanted_at = self.created_at if self.scheduled_at is None else self.scheduled_at
        return UnreadInstant.between(wanted_at, self.attempted_at)

    @property
    def left(self) -> dt.timedelta | None:
        """From its claim to `expires_at`; None without `expires_at`."""
        return None if self.expires_at is None else UnreadInstant.between(self.attempted_at, self.expires_at)


COLUMNS = tuple({"encoded_args": "method_args", "number": "num_attempts"}.get(name, name) for name in Claim._fields)


def columns(table: Table, without: Collection[str] = ()) -> list[Any]:
    """The columns of a claim, in the order of its fields, but for those of `without`."""
    return [_unread(table.c[name]) for name in COLUMNS if name not in without]


def known_fields(*, suspects: bool) -> tuple[str, ...]:
    """The fields that are the same in all claims of a request, of `suspects` or of others."""
    # Each column that is not read saves both sides 0.5 us a claim.
    same = ("queue", "claim_id")
    return same if suspects else ("num_crashes", "num_losses", *same)


def _unread(column: Any) -> Any:
    if column.name == "method_args":
        read = case((octet_length(column) <= literal_column(str(LONGEST_READ)), column), else_=literal_column("''"))
        return type_coerce(read, column.type).label(column.name)
    # As seconds on PostgreSQL: the text of a timestamptz costs both sides (of 500 rows, 16.6 us a row instead of 14.8).
    return type_coerce(column, UnreadInstant()) if isinstance(column.type, Instant) else column
