"""A claim: what a worker knows of an attempt that it has taken."""

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Table

COLUMNS = (
    "id", "target", "method_name", "method_args", "encryptor", "claim_id", "num_attempts", "num_errors", "num_crashes",
    "max_attempts", "scheduled_at", "created_at", "attempted_at", "expires_at", "last_error", "priority", "due_at",
    "order_key",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt, taken under `claim_id`: the fence of every write about it. `number`: which start this is, from 1.

    `age` and `left` were measured by the database when it was taken: since `scheduled_at` or else `created_at`, and
    until `expires_at` (None without one).
    """

    id: uuid.UUID
    claim_id: uuid.UUID
    target: str
    method_name: str
    encoded_args: str
    encryptor: str
    number: int
    num_errors: int
    num_crashes: int
    max_attempts: int | None
    taken_at: dt.datetime
    age: dt.timedelta
    left: dt.timedelta | None
    last_error: str | None
    order_key: str | None = None

    @classmethod
    def of(cls, row: Any) -> Self:
        """From a row of `COLUMNS`, read after the claim."""
        taken = row.attempted_at
        return cls(
            id=row.id, claim_id=row.claim_id, target=row.target, method_name=row.method_name,
            encoded_args=row.method_args, encryptor=row.encryptor, number=row.num_attempts, num_errors=row.num_errors,
            num_crashes=row.num_crashes, max_attempts=row.max_attempts, taken_at=taken,
            age=taken - (row.scheduled_at or row.created_at),
            left=None if row.expires_at is None else row.expires_at - taken, last_error=row.last_error,
            order_key=row.order_key,
        )  # fmt: skip

    @property
    def is_suspect(self) -> bool:
        """Whether its last start was lost with its process."""
        return self.num_crashes > 0


def columns(table: Table) -> list[Any]:
    """The columns that `Claim.of` reads."""
    return [table.c[name] for name in COLUMNS]
