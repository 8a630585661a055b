"""A claim: what a worker asks for, and what it knows of each attempt that it was given."""

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Table, type_coerce

from async_task.database.clock import Instant, UnreadInstant

Unread: TypeAlias = float | dt.datetime


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A claim of up to `limit` due attempts of one `queue`, by `worker`, under `claim_id`.

    `began`: only attempts that were due at that instant, existed then, and were not started since. `suspects`: only
    suspects; otherwise none. `targets`: only these; if empty, any. `besides`: calls to leave out, each a target and a
    method. `marks` (PostgreSQL): for each priority, the `due_at` from which to search.
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
    marks: tuple[Any, ...] = ()


class Claim(NamedTuple):
    """One attempt, taken under `claim_id`: the fence of every write about it. `number`: which start this is, from 1.

    Its fields are what the row holds, in the order of `COLUMNS`. The instants are unread: what most calls never ask for
    is not made ready.
    """

    id: uuid.UUID
    claim_id: uuid.UUID
    target: str
    method_name: str
    encoded_args: str
    encryptor: str
    queue: str
    order_key: str | None
    number: int
    num_errors: int
    num_crashes: int
    max_attempts: int | None
    scheduled_at: Unread | None
    created_at: Unread
    attempted_at: Unread
    expires_at: Unread | None
    last_error: str | None
    priority: int
    due_at: Unread

    @property
    def is_suspect(self) -> bool:
        """Whether its last start was lost with its process."""
        return self.num_crashes > 0

    @property
    def taken_at(self) -> dt.datetime:
        """When it was taken, by the database's clock."""
        return UnreadInstant.read(self.attempted_at)

    @property
    def age(self) -> dt.timedelta:
        """How long before that it was wanted: since `scheduled_at`, or else `created_at`."""
        wanted_at = self.created_at if self.scheduled_at is None else self.scheduled_at
        return UnreadInstant.between(wanted_at, self.attempted_at)

    @property
    def left(self) -> dt.timedelta | None:
        """How long after that it expires; None without `expires_at`."""
        return None if self.expires_at is None else UnreadInstant.between(self.attempted_at, self.expires_at)


COLUMNS = tuple({"encoded_args": "method_args", "number": "num_attempts"}.get(name, name) for name in Claim._fields)


def columns(table: Table) -> list[Any]:
    """The columns that a claim is made of: `Claim._make(row)`."""
    return [_unread(table.c[name]) for name in COLUMNS]


def _unread(column: Any) -> Any:
    return type_coerce(column, UnreadInstant()) if isinstance(column.type, Instant) else column
