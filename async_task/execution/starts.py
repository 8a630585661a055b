"""Notes which calls a process starts, and refuses to start one whose claim may be lost."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from async_task.queue.claim import Claim
from async_task.queue.ledger import NO_LEDGER, Ledger


class NotStarted(Exception):
    """A call was not started, because another process may have recovered its claim. The caller releases it."""


def _never(attempt_id: uuid.UUID) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Starts:
    """`ledger`: where a call is noted while it runs. `may_have_lost`: whether another process may have recovered the
    claim of an attempt, because this one was silent for a lease."""

    ledger: Ledger = NO_LEDGER
    may_have_lost: Callable[[uuid.UUID], bool] = _never

    def begin(self, claim: Claim) -> None:
        """The call of this claim begins. Raises NotStarted if the claim may be lost."""
        # First noted, then asked: whoever recovers the claim, and reads that its call had not begun, does so after a
        # lease without a heartbeat, which is seen here.
        self.ledger.begin(claim.id)
        if self.may_have_lost(claim.id):
            self.ledger.forget([claim.id])
            raise NotStarted

    def returned(self, claim: Claim) -> None:
        """Its call has returned or raised, and its outcome is to be written."""
        self.ledger.returned(claim.id)


NO_STARTS = Starts()
"""Notes nothing: for a process whose parent does."""
