"""One attempt, performed on a thread of its own, so that the thread that asked for it can abandon a running call."""

import contextvars
import logging
import threading
import time
import uuid
from functools import partial

from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.outcomes import Outcome
from async_task.queue import fenced_writes, fetch
from async_task.worker.jobs import BaseAttemptJob

logger = logging.getLogger("async_task")
LONGEST_RELEASE = 3.0
"""Seconds in which the claim of an abandoned call is released; a row that is still locked then waits for its lease."""


class LoneCall:
    """`perform` may be called once."""

    def __init__(self, job: BaseAttemptJob, attempt_id: uuid.UUID) -> None:
        self._job = job
        self._attempt_id = attempt_id
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None

    def perform(self) -> Outcome:
        """The outcome. What is raised here meanwhile, by the handler of a signal, abandons the call: its claim is
        released, uncharged, although the call may go on."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=partial(context.run, self._live), name="async-task-call", daemon=True)
        try:
            thread.start()
            while thread.is_alive():
                thread.join(timeout=0.1)
        except BaseException:
            self._abandon()
            raise
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    def _live(self) -> None:
        try:
            self._outcome = self._job.perform(self._attempt_id)
        except BaseException as error:
            self._error = error

    def _abandon(self) -> None:
        runtime = self._job.runtime
        logger.warning("worker %s abandons its running call", runtime.worker)
        runtime.performer.abandon()
        runtime.disconnect_calls()
        try:
            self._release()
        except Exception as error:
            runtime.has_left_claims = True
            logger.warning("a claim waits for its lease: %s", describe(error).summary)

    def _release(self) -> None:
        runtime = self._job.runtime
        until = time.monotonic() + LONGEST_RELEASE
        with runtime.private_lane() as lane:
            claims = lane.run(lambda: fetch.claims_of(lane.engine, runtime.table, runtime.worker))
            runtime.heartbeat.abandon([claim.id for claim in claims])
            while claims and time.monotonic() < until:
                release = partial(fenced_writes.release_abandoned, lane.engine, runtime.table, claims)
                done = retry_transient(partial(lane.run, release), LONGEST_RELEASE)
                claims = [claim for claim in claims if claim.id not in done]
                time.sleep(0.02 if claims else 0)
        runtime.has_left_claims = bool(claims)
