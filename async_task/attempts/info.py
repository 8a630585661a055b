"""An attempt as a frozen value: the facts of its row, read once, for people and programs that show them."""

import datetime as dt
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import Column, Select, inspect, select
from sqlalchemy.orm import Session

from async_task.attempts.actions import refusal
from async_task.attempts.tokens import given_token
from async_task.outcomes import error_alone
from async_task.queue.ordering import ahead
from async_task.schema.states import Status
from async_task.schema.tables import table_of
from async_task.targets.call_settings import settings_in_words
from async_task.targets.target import call_name


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptInfo:
    """One attempt as it was at `read_at`: every column of `BaseAttempt` but its arguments, by the same names.

    `is_pruned`: only what its token needs is left of it. `idempotence_token`: as it was given to `create` or `ensure`,
    without what `within` and `until_done` add to it; None if none was given.

    `waits_behind`: the id of the attempt with the same order key that must end first; None for one that need not wait.
    `read_at`: the database's clock when the row was read. `extra`: the columns that your own model adds, by attribute;
    only `outbox.attempts.get` reads them. Instants are aware datetimes in UTC.
    """

    id: uuid.UUID
    status: Status
    target: str
    method_name: str
    encryptor: str
    idempotence_token: str | None
    queue: str
    priority: int
    order_key: str | None
    seq: int | None
    released: bool
    arrived: bool | None
    num_attempts: int
    num_errors: int
    num_crashes: int
    num_losses: int
    max_attempts: int | None
    scheduled_at: dt.datetime | None
    due_at: dt.datetime
    claim_id: uuid.UUID | None
    claimed_by: str | None
    lease_until: dt.datetime | None
    expires_at: dt.datetime | None
    attempted_at: dt.datetime | None
    completed_at: dt.datetime | None
    last_error: str | None
    created_at: dt.datetime
    updated_at: dt.datetime
    trace_context: str | None
    call_settings: str | None
    is_pruned: bool
    waits_behind: uuid.UUID | None
    read_at: dt.datetime
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> str:
        """What is called: `shop.orders.fulfill`, or the target alone where it is what is called."""
        return call_name(self.target, self.method_name)

    @property
    def own_rules(self) -> Mapping[str, str]:
        """The `retry` and the `timeout` that it was written with, in words; empty where its target's policy decides."""
        return settings_in_words(self.call_settings)

    @property
    def error(self) -> str | None:
        """The last error on one line, without the reason why nothing more is tried; None where there is none."""
        return None if self.last_error is None else error_alone(self.last_error.partition("\n")[0])

    @property
    def is_performing(self) -> bool:
        """Whether a worker had claimed it; also past its lease, as `BaseAttempt.is_performing`."""
        return self.status is Status.PENDING and self.claim_id is not None

    @property
    def is_due(self) -> bool:
        """Whether a worker could start it at `read_at`."""
        is_free = self.status is Status.PENDING and self.claim_id is None and self.released
        is_late = self.expires_at is not None and self.expires_at <= self.read_at
        return is_free and self.due_at <= self.read_at and not is_late

    def why_not(self, verb: str) -> str | None:
        """Why `expire`, `fail`, `cancel`, `retry_now` or `reschedule` would raise InvalidState for this row; None where
        it would not. For a button that is disabled, and says why."""
        is_leased = self.lease_until is not None and self.lease_until > self.read_at
        claimed_by = self.claimed_by if is_leased else None
        return refusal(verb, self.id, self.status, claimed_by, self.attempted_at, self.is_pruned)


FACTS = tuple(one.name for one in fields(AttemptInfo) if one.name not in ("waits_behind", "read_at", "extra"))
"""The attributes of the model that an AttemptInfo holds."""
UNSHOWN = frozenset({*FACTS, "encoded_args", "order_slot"})


def facts_of(model: type[Any]) -> Select[Any]:
    """The select of everything that `info_of` needs."""
    facts: Any = select(*(getattr(model, name).label(name) for name in FACTS))
    found: Select[Any] = facts.add_columns(ahead(table_of(model)).label("waits_behind"))
    return found


def info_of(row: Any, read_at: dt.datetime) -> AttemptInfo:
    """A row of `facts_of` as a value."""
    facts: dict[str, Any] = dict(row._mapping)
    facts["idempotence_token"] = given_token(facts["idempotence_token"])
    return AttemptInfo(**facts, read_at=read_at)


def infos_of(
    session: Session, model: type[Any], ids: Collection[uuid.UUID], read_at: dt.datetime
) -> list[AttemptInfo]:  # fmt: skip
    """Those of these attempts that are there, in one statement."""
    if not ids:
        return []
    wanted = facts_of(model).where(table_of(model).c.id.in_(list(ids)))
    return [info_of(row, read_at) for row in session.execute(wanted)]


def info_of_attempt(attempt: Any, waits_behind: uuid.UUID | None, read_at: dt.datetime) -> AttemptInfo:
    """The same of an instance of the model, with the columns that the user added."""
    columns = [one.key for one in inspect(type(attempt)).column_attrs if isinstance(one.columns[0], Column)]
    extra = {name: getattr(attempt, name) for name in columns if name not in UNSHOWN}
    facts = {name: getattr(attempt, name) for name in FACTS}
    facts["idempotence_token"] = given_token(attempt.idempotence_token)
    return AttemptInfo(**facts, waits_behind=waits_behind, read_at=read_at, extra=extra)
