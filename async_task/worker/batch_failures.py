"""The final failures of a batch, in groups: a report names each kind of failure once, however many calls it met."""

import threading
import uuid
from dataclasses import dataclass, replace

from async_task.outcomes import Expired, Failed
from async_task.queue.claim import Claim
from async_task.queue.final_failures import FinalFailure
from async_task.queue.fingerprints import normalised
from async_task.schema.states import Status

MOST_GROUPS = 100
"""How many groups are kept apart. Further failures of a call form one group for each status."""


@dataclass(frozen=True, slots=True)
class FinalFailureGroup:
    """Calls that ended alike in a batch. `call`: what was called. `status`: FAILED or EXPIRED. `reason`: why the last
    one ended, in one line without secrets; the others differ from it in numbers, UUIDs and quoted texts only. `count`:
    how many there were. `latest`: the attempt of the last one."""

    call: str
    status: Status
    reason: str
    count: int
    latest: uuid.UUID


class FinalFailures:
    """Counts the final failures of a batch. All methods may be called from several threads."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, Status, str], FinalFailureGroup] = {}
        self._guard = threading.Lock()

    def add(self, failure: FinalFailure) -> None:
        """Count one that expired in a sweep."""
        self._add(failure.call, failure.status, failure.said, failure.attempt_id)

    def add_claim(self, claim: Claim, outcome: Failed | Expired) -> None:
        """Count one that was performed, with its reason as it is stored."""
        status = Status.FAILED if isinstance(outcome, Failed) else Status.EXPIRED
        self._add(claim.call, status, outcome.reason.partition("\n")[0], claim.id)

    def _add(self, call: str, status: Status, reason: str, attempt_id: uuid.UUID) -> None:
        with self._guard:
            key = (call, status, normalised(reason))
            if key not in self._groups and len(self._groups) >= MOST_GROUPS:
                key = (call, status, "")
            one = self._groups.get(key) or FinalFailureGroup(call, status, reason, 0, attempt_id)
            self._groups[key] = replace(one, reason=reason, count=one.count + 1, latest=attempt_id)

    def groups(self) -> tuple[FinalFailureGroup, ...]:
        """The groups so far, the most frequent first."""
        with self._guard:
            return tuple(sorted(self._groups.values(), key=lambda one: -one.count))
