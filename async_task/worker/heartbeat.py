"""The heartbeat of a process that has claims or runs a batch: it tells that the process lives, and extends leases."""

import datetime as dt
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial

from sqlalchemy import Table

from async_task.database.lanes import Lane
from async_task.errors import AlreadyRunning
from async_task.queue import running_batches, workers
from async_task.queue.ledger import NO_LEDGER, Ledger
from async_task.queue.running_batches import RunningBatch
from async_task.queue.workers import IDLE_PAUSE, WORKER
from async_task.worker.held_name import HeldName
from async_task.worker.outages import Outages

logger = logging.getLogger("async_task")

LONGEST_STOP = 2.0
"""Seconds to wait for a heartbeat that is being written when the end has come."""


class Heartbeat:
    """Written every third of a lease while anything is claimed, or a batch runs, or a worker claims now and then;
    rarely while a worker is idle. One thread, with a lane of its own, started when needed."""

    def __init__(
        self,
        table: Table,
        worker: str,
        lease: dt.timedelta,
        open_lane: Callable[[], Lane],
        outages: Outages,
        ledger: Ledger = NO_LEDGER,
        held_name: HeldName | None = None,
    ) -> None:
        self._table = table
        self._worker = worker
        self._lease = lease
        self._open_lane = open_lane
        self._ledger = ledger
        self._outages = outages
        self._changed = threading.Condition()
        # Counted: what one lane has released, another one may claim before the first untracks it.
        self._tracked: Counter[uuid.UUID] = Counter()
        self._abandoned: set[uuid.UUID] = set()
        self._lapsed: set[uuid.UUID] = set()
        """Those that were tracked when a heartbeat came later than a lease after the one before."""
        self._thread: threading.Thread | None = None
        self._last: float | None = None
        self._claimed_at = -IDLE_PAUSE
        self._waits_long = False
        """Whether the thread waits for longer than it may once something is claimed."""
        self._stopped = False
        self._kind: str | None = None
        self._held_name = held_name
        self.name_lost: AlreadyRunning | None = None
        """That another worker has taken over the name of this one, which is to end."""

    def begin_run(self, lane: Lane, *, alone: bool) -> RunningBatch | None:
        """From now until `stop` this is a batch that other processes see. `alone`: only if no other batch is running;
        else that one is returned, and nothing has begun."""
        other = lane.run(
            lambda: running_batches.begin(lane.engine, self._table, self._worker, self._lease, alone=alone)
        )
        if other is None:
            with self._changed:
                self._kind, self._last = running_batches.KIND, time.monotonic()
                self._start()
        return other

    def begin_work(self, lane: Lane, about: str) -> None:
        """From now until `stop` this is a worker, and others can read what it tells `about` itself. Inside of
        `lane.run`."""
        with lane.engine.begin() as connection:
            workers.register(connection, self._table, self._worker, WORKER, about=about)
        with self._changed:
            self._kind, self._last = WORKER, time.monotonic()
            self._start()

    def lose_name(self, error: AlreadyRunning) -> None:
        """Another worker has taken over the name of this one."""
        self.name_lost = self.name_lost or error

    def before_claim(self, lane: Lane) -> None:
        """Write a heartbeat now, on the claiming lane, unless the last one is younger than half a lease: a claim is
        never without one. Inside of `lane.run`."""
        self._ledger.open()
        with self._changed:
            self._claimed_at = now = time.monotonic()
            is_fresh = self._last is not None and now - self._last < self._fresh
        if not is_fresh:
            self._beat(lane, [])

    @contextmanager
    def tracking(self, attempt_id: uuid.UUID) -> Iterator[None]:
        """While a call is made: extend its lease; also that of a locked one, which counts when the lock is lost with
        its connection."""
        self.track((attempt_id,))
        try:
            yield
        finally:
            self.untrack((attempt_id,))

    def track(self, attempt_ids: Collection[uuid.UUID]) -> None:
        """From now on, the same for all of these, until each was untracked as often as it was tracked."""
        with self._changed:
            self._tracked.update(attempt_ids)
            self._start()
            if self._waits_long:
                self._changed.notify()

    def untrack(self, attempt_ids: Collection[uuid.UUID]) -> None:
        with self._changed:
            ended = []
            for attempt_id in attempt_ids:
                if (left := self._tracked.pop(attempt_id, 0) - 1) > 0:
                    self._tracked[attempt_id] = left
                else:
                    ended.append(attempt_id)
            if self._lapsed:
                self._lapsed.difference_update(ended)
            self._ledger.forget([one for one in ended if one not in self._abandoned] if self._abandoned else ended)
            if self._stopped:
                self._changed.notify()

    def abandon(self, attempt_ids: Collection[uuid.UUID]) -> None:
        """As `untrack`, for calls that go on. The ledger keeps what it says of them: whoever recovers a claim that
        could not be released must not take its call for one that never began."""
        with self._changed:
            self._abandoned.update(attempt_ids)
        self.untrack(attempt_ids)

    def stop(self) -> None:
        """End, and wait for the end, LONGEST_STOP at most; but not while a thread that was left behind still makes a
        call."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread = None if self._tracked else self._thread
        if thread is not None:
            thread.join(timeout=LONGEST_STOP)

    @property
    def is_over(self) -> bool:
        """Whether there was a heartbeat, and will be no other."""
        return self._last is not None and self._stopped and not self._tracked

    def tracks(self, attempt_id: uuid.UUID) -> bool:
        """Whether this process knows that it has claimed this attempt."""
        with self._changed:
            return attempt_id in self._tracked

    def may_have_lost(self, attempt_id: uuid.UUID) -> bool:
        """Whether this process, which tracks the attempt, had no heartbeat for a lease since then, as one that was
        frozen: another may have recovered the claim."""
        last = self._last
        is_late = last is not None and time.monotonic() - last >= self._lease.total_seconds()
        return is_late or attempt_id in self._lapsed

    @property
    def _pause(self) -> float:
        """Seconds between two heartbeats, as things are."""
        has_claimed = time.monotonic() - self._claimed_at < self._fresh
        # With a name, silence must soon tell that it has ended.
        is_active = self._tracked or self._kind != WORKER or has_claimed or self._held_name is not None
        return self._often if is_active else max(self._often, IDLE_PAUSE)

    @property
    def _fresh(self) -> float:
        """Seconds for which a claim needs no other heartbeat."""
        return self._lease.total_seconds() / 2

    @property
    def _often(self) -> float:
        return self._lease.total_seconds() / 3

    @property
    def _is_wanted(self) -> bool:
        return bool(self._tracked) or (self._kind is not None and not self._stopped)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="async-task-heartbeat", daemon=True)
            self._thread.start()

    def _live(self) -> None:
        lane: Lane | None = None
        try:
            while self._wait():
                self._ledger.beat()
                try:
                    lane = lane or self._open_lane()
                    lane.run(partial(self._beat, lane, list(self._tracked)))
                    if self._held_name is not None:
                        self._held_name.keep()
                    if self._kind != WORKER:  # a worker has a poller, which needs more of the database
                        self._outages.over()
                except AlreadyRunning:
                    return
                except Exception as error:
                    self._outages.failed(error)
        finally:
            if lane is not None:
                lane.close()

    def _wait(self) -> bool:
        """Until a heartbeat is due: True; or until the end: False."""
        began = time.monotonic()
        with self._changed:
            while not (self._stopped and not self._tracked):
                pause = self._pause
                left = max(self._last or 0.0, began) + pause - time.monotonic()
                if left <= 0 and self._is_wanted:
                    return True
                self._waits_long = pause > self._often or not self._is_wanted
                self._changed.wait(left if self._is_wanted else None)
            return False

    def _beat(self, lane: Lane, claimed: list[uuid.UUID]) -> None:
        began = time.monotonic()
        try:
            workers.beat(lane.engine, self._table, self._worker, self._lease, claimed, kind=self._kind)
        except AlreadyRunning as error:
            self.lose_name(error)
            raise
        with self._changed:
            silent = 0.0 if self._last is None else time.monotonic() - self._last
            if silent >= self._lease.total_seconds() and self._tracked:
                self._lapsed.update(self._tracked)
                logger.warning(
                    "worker %s had no heartbeat for %.1f s: calls that were not started are released",
                    self._worker,
                    silent,
                )
            self._last = began if self._last is None else max(self._last, began)  # another lane's may be newer
