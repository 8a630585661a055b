"""The retry of what failed by one cause: a frozen set of attempts, a few of them first, until the error returns."""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from async_task.application.jobs import ApplicationJobs
from async_task.application.validation import at_least, check_event, check_function
from async_task.errors import AsyncTaskError, ConfigurationError, InvalidState
from async_task.reading.failed_set import FailedSet, has_returned
from async_task.schema.states import Status
from async_task.schema.tables import table_of
from async_task.targets.retry import Duration, duration

PAUSE = 0.2
"""Seconds between two looks at those that are tried first."""
PAGE = 500
RetryEnd = Literal["done", "returned", "canary", "late", "stopped"]


@dataclass(frozen=True, slots=True)
class RetryReport:
    """What a retry of failures did. `failed`: the set. `retried`, `refused`: how many attempts. `end`: why it ended:
    `done` (nothing is left), `returned` (an error of this fingerprint came again), `canary` (one of those that were
    tried first has not succeeded), `late` (they had not ended in time), or `stopped`.

    While it goes on: `attempt_id` is the attempt that was decided last, and `why_refused` why it was not retried, None
    where it was; `is_waiting` whether those that were retried first are awaited now.
    """

    failed: FailedSet
    retried: int = 0
    refused: int = 0
    end: RetryEnd = "done"
    attempt_id: uuid.UUID | None = None
    why_refused: str | None = None
    is_waiting: bool = False

    @property
    def left(self) -> int:
        """How many were neither retried nor refused."""
        return len(self.failed.ids) - self.retried - self.refused


class FailureRetry(ApplicationJobs):
    """Retries what failed by one cause."""

    def retry_failures(
        self,
        failures: FailedSet | str,
        *,
        reason: str,
        first: int | None = None,
        wait: Duration = 600,
        progress: Callable[[RetryReport], object] | None = None,
        stop: threading.Event | None = None,
    ) -> RetryReport:
        """Retry the attempts that failed for good by errors of one fingerprint, the oldest first, by `retry_now`.

            outbox.retry_failures("3f9a12c4b07e", reason="the warehouse is back", first=5)

        `failures`: a fingerprint of `outbox.attempts.failures()`, or the set that `outbox.attempts.failed_by` has
        frozen; what fails later is not in it. `first`: retry that many, wait until these have ended, and go on only if
        all succeeded; workers must run meanwhile. `wait`: seconds or a timedelta for which they are awaited. Each
        attempt is changed in a transaction of its own, and stands in its order key where it stood; one that is no
        longer failed is refused, and does not stop the others. It ends when an error of the fingerprint returns, of
        whatever attempt. `stop`: once it is set, nothing further is retried. `progress(report)`: called after each
        attempt, and when the wait begins.

        What was killed in between can be called again: it retries those that are still failed. Raises
        ConfigurationError for an invalid argument, and as `run_batch`.
        """
        _check_reason(reason)
        numbers = None if first is None else at_least(1, first, "first")
        patience = duration(wait, name="wait").total_seconds()
        check_event(stop, "stop")
        check_function(progress, "progress", "progress(report)")
        self._check_before_change("retry_failures")
        failed = failures if isinstance(failures, FailedSet) else self.attempts.failed_by(failures)
        run = _Run(self, failed, reason, progress or (lambda _: None), stop or threading.Event())
        return run.until_end(numbers, patience)


class _Run:
    """One retry. `report`: so far."""

    def __init__(
        self, app: FailureRetry, failed: FailedSet, reason: str, progress: Callable[[RetryReport], object],
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self._app, self._failed, self._reason = app, failed, reason
        self._progress, self._stop = progress, stop
        self.report = RetryReport(failed)
        self._retried: list[uuid.UUID] = []

    def until_end(self, first: int | None, patience: float) -> RetryReport:
        for attempt_id in self._failed.ids:
            if self.report.retried == first:
                if (end := self._await(patience)) is not None:
                    return self._ended(end)
                first = None
            if self._stop.is_set():
                return self._ended("stopped")
            if not self._is_decided(attempt_id):
                return self._ended("returned")
        return self._ended("done")

    def _ended(self, end: RetryEnd) -> RetryReport:
        return replace(self.report, end=end, is_waiting=False)

    def _is_decided(self, attempt_id: uuid.UUID) -> bool:
        """Retry it, or say why not. False if the error has returned: nothing was done."""
        try:
            if not self._app.write(lambda session: self._retry(session, attempt_id)):
                return False
            why = None
            self._retried.append(attempt_id)
        except AsyncTaskError as error:
            why = str(error)
        done, refused = self.report.retried + (why is None), self.report.refused + (why is not None)
        self.report = RetryReport(self._failed, done, refused, attempt_id=attempt_id, why_refused=why)
        self._progress(self.report)
        return True

    def _retry(self, session: Session, attempt_id: uuid.UUID) -> bool:
        model: Any = self._app.model
        if has_returned(session, table_of(model), self._failed):
            return False
        attempt = session.get(model, attempt_id)
        if attempt is None:
            raise InvalidState(f"retry_now: there is no attempt {attempt_id}")
        if attempt.status is not Status.FAILED or attempt.completed_at > self._failed.cutoff:
            raise InvalidState(f"retry_now: attempt {attempt_id} was changed meanwhile, and is {attempt.status}")
        attempt.retry_now(reason=self._reason)
        return True

    def _await(self, patience: float) -> RetryEnd | None:
        """Until all that were retried have succeeded: None; else why nothing further is retried."""
        self._progress(replace(self.report, is_waiting=True))
        until = time.monotonic() + patience
        while True:
            found = self._app.read(self._judge)
            if found != "open":
                return None if found == "succeeded" else found
            if time.monotonic() >= until:
                return "late"
            if self._stop.wait(PAUSE):
                return "stopped"

    def _judge(self, session: Session) -> Literal["open", "succeeded", "canary", "returned"]:
        c = table_of(self._app.model).c
        if has_returned(session, table_of(self._app.model), self._failed):
            return "returned"
        rows: list[Any] = []
        for some in _pages(self._retried):
            asked: Any = select(c.status, c.num_errors, c.num_crashes).where(c.id.in_(some))
            rows += session.execute(asked).all()
        # What was pruned meanwhile had ended, and without an error of this fingerprint.
        if any(row.status not in (Status.PENDING, Status.SUCCEEDED) for row in rows):
            return "canary"
        pending = [row for row in rows if row.status is Status.PENDING]
        if any(row.num_errors or row.num_crashes for row in pending):
            return "canary"
        return "open" if pending else "succeeded"


def _pages(ids: Sequence[uuid.UUID]) -> Sequence[Sequence[uuid.UUID]]:
    return [ids[start : start + PAGE] for start in range(0, len(ids), PAGE)]


def _check_reason(reason: object) -> None:
    if not isinstance(reason, str) or not reason.strip():
        raise ConfigurationError('retry_failures takes a reason, for the events of the attempts: reason="it is mended"')
