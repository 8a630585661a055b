"""Final failures: attempts that ended `failed` or `expired` because nothing more is tried. Each is logged once, after
its commit, as a sentence and as fields, so that somebody hears of it. No log holds the value of an argument."""

import datetime as dt
import logging
import re
import uuid
from dataclasses import dataclass
from typing import Any, Self

from async_task.database.clock import UnreadInstant
from async_task.error_text import Failure, without_values
from async_task.outcomes import Expired, Failed
from async_task.queue.claim import Claim
from async_task.schema.states import Status
from async_task.targets.target import call_name

logger = logging.getLogger("async_task")
COLUMNS = (
    "id", "target", "method_name", "queue", "num_attempts", "last_error", "created_at", "due_at", "trace_context",
    "attempted_at",
)  # fmt: skip
"""The columns that `of_row` reads."""
_ENDED = {Status.FAILED: "failed for good", Status.EXPIRED: "expired"}
_LEVELS = {Status.FAILED: logging.ERROR, Status.EXPIRED: logging.WARNING}
_CLASS = re.compile(r"[A-Z][\w.]*(?=:|$)")


@dataclass(frozen=True, slots=True)
class FinalFailure:
    """The end of one attempt. `status`: FAILED or EXPIRED. `tries`: how often it was started. `reason`: why nothing
    more is tried. `error`: its last error, without the values of arguments; None if there was none."""

    attempt_id: uuid.UUID
    target: str
    method_name: str
    queue: str
    status: Status
    tries: int
    reason: str
    created_at: dt.datetime
    due_at: dt.datetime
    error: Failure | None = None
    trace_context: str | None = None
    started_at: dt.datetime | None = None

    @classmethod
    def of_claim(cls, claim: Claim, outcome: Failed | Expired, reason: str, error: Failure | None = None) -> Self:
        """The end of a claimed attempt. `error`: what its call raised in this try."""
        status = Status.FAILED if isinstance(outcome, Failed) else Status.EXPIRED
        error = error or _stored(claim.last_error)
        created_at, due_at = UnreadInstant.read(claim.created_at), UnreadInstant.read(claim.due_at)
        return cls(
            claim.id, claim.target, claim.method_name, claim.queue, status, claim.number, reason, created_at, due_at,
            error, claim.trace_context, claim.claimed_at,
        )  # fmt: skip

    @classmethod
    def of_row(cls, row: Any, status: Status, reason: str) -> Self:
        """The end of the attempt of a row that has the columns `COLUMNS`."""
        error = _stored(row.last_error)
        return cls(
            row.id, row.target, row.method_name, row.queue, status, row.num_attempts, reason, row.created_at,
            row.due_at, error, row.trace_context, row.attempted_at,
        )  # fmt: skip

    @property
    def call(self) -> str:
        """What was called: `shop.orders.fulfill`."""
        return call_name(self.target, self.method_name)

    @property
    def said(self) -> str:
        """The reason and the last error, on one line."""
        error = "" if self.error is None else self.error.summary
        return ": ".join(part for part in (self.reason, error) if part)

    def log(self, error: BaseException | None = None) -> None:
        """Log it: at ERROR if it failed, at WARNING if it expired. `error`: what its call raised, of which the places
        are logged."""
        fields = {
            "attempt_id": str(self.attempt_id), "target": self.target, "method": self.method_name, "queue": self.queue,
            "outcome": self.status.value, "try": self.tries, "error": self.error and self.error.summary,
        }  # fmt: skip
        ended, tries = _ENDED[self.status], "1 try" if self.tries == 1 else f"{self.tries} tries"
        shown = None if error is None or self.error is None else without_values(error, self.error)
        logger.log(
            _LEVELS[self.status], "%s %s after %s: %s (attempt %s)", self.call, ended, tries, self.said,
            self.attempt_id, exc_info=shown, extra=fields,
        )  # fmt: skip


def _stored(last_error: str | None) -> Failure | None:
    """The class of a stored error: its message may quote arguments."""
    found = _CLASS.match(last_error or "")
    return None if found is None else Failure(found[0], "")
