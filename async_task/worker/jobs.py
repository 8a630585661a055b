"""The two jobs of the original: one performs an attempt, one performs all that is due. Subclasses may be given to
`AsyncTask`; the mixins are for job classes that have a base of their own."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, inspect
from sqlalchemy.orm import Session

from async_task.database.lanes import Lane
from async_task.database.sessions import routed_as_writes
from async_task.outcomes import Outcome
from async_task.queue.backlog import Scope
from async_task.queue.claim import Claim
from async_task.worker.batch_report import BatchReport, Progress
from async_task.worker.batch_workload import BatchOptions
from async_task.worker.run_batch import run_batch
from async_task.worker.runtime import Runtime
from async_task.worker.workload import PerformClaim


class BaseAttemptJob:
    """Performs one attempt: only if it is still pending and due, and nobody else performs it.

    `before` is set on it before `perform`: called with a session in the transaction of the claim. It is no parameter,
    so that a subclass that overrides `perform(attempt_id)` keeps working.
    """

    before: Callable[[Session], object] | None = None

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def perform(self, attempt_id: uuid.UUID) -> Outcome:
        """Claim this attempt and perform it, or return the reason why not: a duplicate delivery is a no-op."""
        claimer, performer = self.runtime.claimer, self.runtime.performer
        with self.runtime.lane() as lane:
            claim = lane.run(lambda: claimer.claim_one(lane, attempt_id, self._begin))
            if isinstance(claim, Outcome):
                return claim
            if not performer.needs_child(lane, claim):
                return self.run(lane, claim)
        performer.prepare()  # while no lane is open: SQLite's locks do not survive a fork
        with self.runtime.lane() as lane:
            return self.run(lane, claim)

    def run(self, lane: Lane, claim: Claim) -> Outcome:
        """Perform a claimed attempt; `outbox.perform`, batches and workers come through here."""
        return self.runtime.performer.perform_claim(lane, claim)

    @contextmanager
    def _begin(self, engine: Engine) -> Iterator[Connection]:
        """The transaction of a claim, in which `before` has written."""
        if self.before is None:
            with engine.begin() as connection:
                yield connection
            return
        with self.runtime.source.session(engine) as session, session.begin():
            self.before(session)
            session.flush()
            with routed_as_writes(session, inspect(self.runtime.model)) as connection:
                yield connection


class BaseAttemptBatchJob:
    """Performs what is due, once, on `concurrency` lanes; suspects alone, at the end.

    What else `run_batch` was asked for is set on it before `perform`: `stop`, `scope` (which queues and targets),
    `deadline` (by time.monotonic(): from then on nothing is started), `progress` (called with the report so far). These
    are no parameters, so that a subclass that overrides `perform(limit, concurrency)` keeps working.
    """

    def __init__(self, runtime: Runtime, job: BaseAttemptJob) -> None:
        self.runtime = runtime
        self.job = job
        self.stop = threading.Event()
        self.scope = Scope()
        self.deadline: float | None = None
        self.progress: Progress | None = None

    def perform(self, limit: int | None = None, concurrency: int = 1) -> BatchReport:
        """Recover, expire, then perform everything that was due when it began, at most `limit` attempts."""
        options = BatchOptions(limit, concurrency, self.scope, self.deadline, self.progress, self.stop)
        return run_batch(self.runtime, own_run(self.job), options)


def own_run(job: BaseAttemptJob) -> PerformClaim | None:
    """The `run` of a job of the user's own, through which every attempt goes; None for the ready-made one."""
    made = type(job)
    is_own = made.run is not BaseAttemptJob.run or made.perform is not BaseAttemptJob.perform
    return job.run if is_own else None


class AttemptJob(BaseAttemptJob):
    """The ready-made single-attempt job."""


class AttemptBatchJob(BaseAttemptBatchJob):
    """The ready-made batch job."""
