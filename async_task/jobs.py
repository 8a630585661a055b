"""The two jobs of the original: one performs an attempt, one performs all that is due. Subclasses may be given to
`AsyncTask`; the mixins are for job classes that have a base of their own."""

import datetime as dt
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from async_task import transactions
from async_task.claims import Claim
from async_task.lanes import Lane
from async_task.outcomes import Canceled, Expired, Failed, Outcome, Parked, Retried, Succeeded, Superseded
from async_task.settling import insist
from async_task.shift import Shift
from async_task.sweeps import SweepReport, sweep


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a batch did, in attempts: `claimed`, and what became of those; `expired` and `recovered` with its sweep's.

    `crashed`: orphans that the sweep failed at the crash limit. `seconds`: how long the batch took.
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


class BaseAttemptJob:
    """Performs one attempt: only if it is still pending and due, and nobody else performs it (square/async_task)."""

    def __init__(self, shift: Shift) -> None:
        self.shift = shift

    def perform(self, attempt_id: uuid.UUID) -> Outcome:
        """Claim this attempt and perform it, or say why not: a duplicate delivery is a no-op."""
        with self.shift.lane() as lane:
            claim = self.shift.claim_one(lane, attempt_id)
            return claim if isinstance(claim, Outcome) else self.run(lane, claim)

    def run(self, lane: Lane, claim: Claim) -> Outcome:
        """Perform a claimed attempt; both jobs come through here."""
        return self.shift.perform(lane, claim)


class BaseAttemptBatchJob:
    """Picks what is due and has each performed, once, in `concurrency` threads; suspects alone, at the end."""

    def __init__(self, shift: Shift, job: BaseAttemptJob) -> None:
        self.shift = shift
        self.job = job
        self.stop = threading.Event()

    def perform(self, limit: int | None = None, concurrency: int = 1) -> BatchReport:
        """Recover, expire, then perform everything that was due when it began, at most `limit` attempts."""
        began = time.monotonic()
        with self.shift.lane() as lane:
            swept = lane.run(lambda: sweep(lane.engine, self.shift.table, self.shift.lease))
            names, now = insist(lambda: lane.run(lambda: transactions.queues(lane.engine, self.shift.table)))
        batch = _Batch(names, now, limit, self.stop)
        if names:
            with ThreadPoolExecutor(concurrency, "async-task-lane") as threads:
                lanes = [threads.submit(self._work, batch, suspects=False) for _ in range(concurrency)]
                self._wait_for(lanes)
            self._work(batch, suspects=True)
        return batch.report(swept, time.monotonic() - began)

    def _wait_for(self, lanes: "list[Future[None]]") -> None:
        try:
            for one in lanes:
                one.result()
        except BaseException:
            self.stop.set()  # what is in hand is finished, and waited for: Ctrl-C starts nothing further
            raise

    def _work(self, batch: "_Batch", *, suspects: bool) -> None:
        """One lane: claim, perform, again, until nothing is due any more."""
        with self.shift.lane() as lane:
            for queue in batch.names:
                while batch.may_start():
                    claim = self.shift.claim_due(lane, queue, began=batch.began, suspects=suspects)
                    if claim is None:
                        batch.take_back()
                        break
                    batch.count(self.job.run(lane, claim))


class AttemptJob(BaseAttemptJob):
    """The ready-made single-attempt job."""


class AttemptBatchJob(BaseAttemptBatchJob):
    """The ready-made batch job."""


class _Batch:
    """What the lanes of one batch share."""

    def __init__(self, names: list[str], began: dt.datetime, limit: int | None, stop: threading.Event) -> None:
        self.names = names
        self.began = began
        self._limit = limit
        self._stop = stop
        self._started = 0
        self._outcomes: Counter[type[Outcome]] = Counter()
        self._guard = threading.Lock()

    def may_start(self) -> bool:
        """Whether the limit, and `stop`, allow one more; if so it is counted."""
        with self._guard:
            if self._stop.is_set() or (self._limit is not None and self._started >= self._limit):
                return False
            self._started += 1
            return True

    def take_back(self) -> None:
        with self._guard:
            self._started -= 1

    def count(self, outcome: Outcome) -> None:
        with self._guard:
            self._outcomes[type(outcome)] += 1

    def report(self, swept: SweepReport, seconds: float) -> BatchReport:
        ended = self._outcomes
        return BatchReport(
            claimed=self._started, succeeded=ended[Succeeded], retried=ended[Retried], failed=ended[Failed],
            expired=ended[Expired] + swept.expired, canceled=ended[Canceled], parked=ended[Parked],
            superseded=ended[Superseded],
            recovered=swept.recovered, crashed=swept.crashed, seconds=seconds,
        )  # fmt: skip
