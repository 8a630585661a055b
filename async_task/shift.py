"""A shift: one process at work for as long as one verb lasts, with its name, its beat, its lanes and its quarantine."""

import datetime as dt
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Table

from async_task import transactions
from async_task.attempt import BaseAttempt
from async_task.claims import Claim
from async_task.dialects import locks_rows
from async_task.engines import Source
from async_task.heartbeat import Heartbeat
from async_task.lanes import Lane, open_lane
from async_task.outcomes import Failed, Outcome, Parked, Superseded
from async_task.perform import held_elsewhere, perform
from async_task.quarantine import Died, Quarantine
from async_task.site import Site
from async_task.status import Status
from async_task.verbs import table_of

logger = logging.getLogger("async_task")


class Shift:
    """What claims and performs attempts of one model. Close it, to end its beat and its quarantine."""

    def __init__(self, source: Source, model: type[BaseAttempt], worker: str, lease: dt.timedelta) -> None:
        self.source = source
        self.model = model
        self.table: Table = table_of(model)
        self.worker = worker
        self.lease = lease
        self.heartbeat = Heartbeat(self.table, worker, lease, lambda: open_lane(source))
        self._quarantine = Quarantine(self._perform_in_child)
        self._one_suspect = threading.Lock()
        if hasattr(os, "fork") and threading.active_count() == 1 and not self._has_database_open():
            self._quarantine.prepare()

    def lane(self) -> Lane:
        return open_lane(self.source)

    def claim_one(self, lane: Lane, attempt_id: uuid.UUID) -> Claim | Outcome:
        """Take this attempt, or say why not."""
        self.heartbeat.before_claim(lane)
        return lane.run(lambda: transactions.claim_one(lane.engine, self.table, self.worker, self.lease, attempt_id))

    def claim_due(self, lane: Lane, queue: str, *, began: dt.datetime, suspects: bool) -> Claim | None:
        """Take the most urgent due attempt of this queue: only what is started at once is claimed."""
        self.heartbeat.before_claim(lane)
        claims = lane.run(
            lambda: transactions.claim_due(
                lane.engine, self.table, self.worker, self.lease, queue, 1, began=began, suspects=suspects
            )
        )
        return claims[0] if claims else None

    def perform(self, lane: Lane, claim: Claim) -> Outcome:
        """Perform a claimed attempt on this lane; a suspect in the quarantine, one at a time."""
        if claim.is_suspect and self._can_quarantine():
            return self._perform_suspect(lane, claim)
        return perform(self._site(lane), claim, self.heartbeat.holding)

    def close(self) -> None:
        self.heartbeat.stop()
        self._quarantine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _site(self, lane: Lane) -> Site:
        return Site(self.source, self.model, self.table, lane)

    def _perform_suspect(self, lane: Lane, claim: Claim) -> Outcome:
        with self._one_suspect, self.heartbeat.holding(claim.id, leased=True):
            try:
                return self._quarantine.perform(claim)
            except Died as death:
                how = str(death)
        logger.warning("attempt %s: %s", claim.id, how)
        status = lane.run(lambda: transactions.lose(lane.engine, self.table, claim, how))
        if status is None:
            return Superseded(claim.id)
        if status is Status.FAILED:
            return Failed(claim.id, transactions.crashed_reason(claim.num_crashes + 1, how))
        return Parked(claim.id, dt.timedelta(0), how)

    def _perform_in_child(self, claim: Claim) -> Outcome:
        with _lane_of_child(self.source) as lane:
            return perform(self._site(lane), claim, held_elsewhere)

    def _can_quarantine(self) -> bool:
        if self._quarantine.is_ready:
            return True
        # SQLite must not be carried over a fork; without one, a suspect is performed here, while nothing else is.
        return hasattr(os, "fork") and not self._has_database_open()

    def _has_database_open(self) -> bool:
        """Whether this process has an SQLite database open, as far as the system tells; never for a server."""
        if locks_rows(self.source.dialect):
            return False
        try:
            opened = [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        except OSError:
            return True
        name = os.path.realpath(self.source.database_file)
        return any(one.startswith(name) for one in opened)


@contextmanager
def _lane_of_child(source: Source) -> Iterator[Lane]:
    lane = open_lane(source, private=True)
    try:
        yield lane
    finally:
        lane.close()
