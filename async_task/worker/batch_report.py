"""What a batch did."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from async_task.outcomes import Canceled, Expired, Failed, Outcome, Parked, Retried, Succeeded, Superseded
from async_task.queue.sweep import SweepReport
from async_task.queue.workers import RunningBatch


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a batch did, in attempts: `claimed`, and what became of those; `expired` and `recovered` with its sweep's.

    `crashed`: orphans that the sweep failed at the crash limit. `seconds`: how long the batch took. `left`: what was
    due and not started because `max_seconds` had passed; 10,000 are counted at most. `paused`: queues in which
    something waits, and from which nothing was claimed because they are paused. `overlapped`: the running batch because
    of which nothing was done at all (`overlap="skip"`).
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
    crashed: int = 0
    seconds: float = 0.0
    left: int = 0
    paused: int = 0
    overlapped: RunningBatch | None = None


Progress = Callable[[BatchReport], object]
"""Called with the report of a batch so far."""


def report_of(
    outcomes: Counter[type[Outcome]], swept: SweepReport, *, seconds: float, left: int, paused: int
) -> BatchReport:
    """The report of a batch whose claims ended so."""
    return BatchReport(
        claimed=outcomes.total(), succeeded=outcomes[Succeeded], retried=outcomes[Retried], failed=outcomes[Failed],
        expired=outcomes[Expired] + swept.expired, canceled=outcomes[Canceled], parked=outcomes[Parked],
        superseded=outcomes[Superseded], recovered=swept.recovered, crashed=swept.crashed,
        seconds=seconds, left=left, paused=paused,
    )  # fmt: skip
