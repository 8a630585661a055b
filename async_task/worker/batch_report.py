"""What a batch did."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from async_task.outcomes import Canceled, Expired, Failed, Outcome, Parked, Retried, Succeeded, Superseded
from async_task.queue.running_batches import RunningBatch
from async_task.queue.sweep import SweepReport
from async_task.worker.batch_failures import FinalFailureGroup


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a batch did, in attempts: `claimed`, and what became of those; `expired` and `recovered` with its sweep's.

    `seconds`: how long the batch took. `left`: what was
    due and not started because `max_seconds` had passed; 10,000 are counted at most. `unknown`: what was due and is
    left to other processes, because this one does not know its target or key; counted likewise. `paused`: queues in
    which something waits, and from which nothing was claimed because they are paused. `overlapped`: the running batch
    because of which nothing was done at all (`overlap="skip"`). `failures`: what failed for good or expired, in groups
    of calls that ended alike, the most frequent first.
    """

    claimed: int = 0
    succeeded: int = 0
    retried: int = 0
    failed: int = 0
    expired: int = 0
    canceled: int = 0
    parked: int = 0
    superseded: int = 0
    recovered: int = 0
    seconds: float = 0.0
    left: int = 0
    paused: int = 0
    unknown: int = 0
    overlapped: RunningBatch | None = None
    failures: tuple[FinalFailureGroup, ...] = ()


Progress = Callable[[BatchReport], object]
"""Called with the report of a batch so far."""


def report_of(
    outcomes: Counter[type[Outcome]], swept: SweepReport, failures: tuple[FinalFailureGroup, ...], *,
    seconds: float, left: int, paused: int, unknown: int,
) -> BatchReport:  # fmt: skip
    """The report of a batch whose claims ended so."""
    return BatchReport(
        claimed=outcomes.total(), succeeded=outcomes[Succeeded], retried=outcomes[Retried], failed=outcomes[Failed],
        expired=outcomes[Expired] + swept.expired, canceled=outcomes[Canceled], parked=outcomes[Parked],
        superseded=outcomes[Superseded], recovered=swept.recovered,
        seconds=seconds, left=left, paused=paused, unknown=unknown, failures=failures,
    )  # fmt: skip
