"""The clock: a process, or a part of a worker, that enqueues what is due by the schedule, for as long as it lives.

1. A tick writes the heartbeat, and reads the database's time and what is decided already.
2. For each entry it is decided what fires (`decisions.py`), and that is written (`occurrences.py`): an entry in one
   transaction. An error of one entry is logged, and the next one goes on; its times stay undecided, and are tried
   again.
3. It waits until the next time of any entry, TICK at most.
"""

import contextlib
import datetime as dt
import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

from async_task.attempts.attempt import BaseAttempt
from async_task.database.driver_errors import is_unavailable
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.database.transactions import retry_transient
from async_task.error_text import describe
from async_task.queue import workers
from async_task.queue.workers import CLOCK, worker_name
from async_task.schedule import occurrences
from async_task.schedule.conditions import Conditions
from async_task.schedule.decisions import Decided, decide
from async_task.schedule.entry import Entry
from async_task.schedule.occurrences import StoredEntry
from async_task.schedule.rules import next_times
from async_task.schema.tables import table_of
from async_task.version import __version__
from async_task.worker.bounded import finish_within
from async_task.worker.outages import Outages
from async_task.worker.signals import stopped_by_signals

logger = logging.getLogger("async_task")
TICK = 10.0
"""Seconds from one tick to the next at most."""
SLACK = 0.002
"""Seconds after a fire time at which the clock looks: by a clock that reads milliseconds it has come by then."""
AGAIN = 1.0
"""Seconds to the next tick while the database is away, or after another clock was writing an entry."""
PATIENCE = 1.0
"""Seconds for which the writing of an entry is repeated after a transient error."""
TOLD_EVERY = 60.0
"""Seconds between two lines about the same error of an entry."""
LONGEST_END = 5.0
"""Seconds in which a tick that is under way may end, and the row of the clock is deleted."""


class Clock:
    """What `outbox.clock()` returns: `run` it, and `stop` it from another thread or a signal's handler. It runs once.

    Any number of clocks may run, on any number of machines: each occurrence is enqueued once.
    """

    def __init__(
        self, source: Source, model: type[BaseAttempt], entries: Sequence[Entry], *, check: Callable[[], object]
    ) -> None:
        """`check`: raises what would make every tick fail."""
        self.entries = tuple(entries)
        self.name = worker_name()
        self.tally: Counter[str] = Counter()
        """How many occurrences were "enqueued", "skipped" and "missed" by this clock."""
        self._source, self._model, self._table = source, model, table_of(model)
        self._check = check
        self._outages = Outages(self.name, CLOCK)
        self._conditions = Conditions()
        self._adopted: set[str] = set()
        self._told: dict[str, tuple[str, float]] = {}
        self._changed = threading.Condition()  # with a lock that its own thread may take again: stop() is for signals
        self._is_stopping = False
        self._has_ticked = threading.Event()

    def run(self, *, began: Callable[[str], object] = lambda name: None) -> Counter[str]:
        """Enqueue what is due until `stop`; returns how many occurrences were enqueued, skipped and missed. `began` is
        called with the name of this clock.

        In the main thread, SIGINT and SIGTERM call `stop`, unless the program handles them itself. Raises
        SchemaMismatch without tables, and SQLAlchemy's OperationalError when the database is away at the start.
        """
        self._check()
        with stopped_by_signals(self.stop), self.running():
            began(self.name)
            while not self._is_stopping:
                self._wait(1.0)
        return self.tally

    def stop(self) -> None:
        """End after the entry that is being written."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside of this it ticks, on a thread of its own: the caller's thread never waits for the database."""
        thread = threading.Thread(target=self._live, name="async-task-clock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            until = time.monotonic() + LONGEST_END
            self.stop()
            thread.join(LONGEST_END)
            if self._has_ticked.is_set():
                finish_within(until - time.monotonic(), "end-of-clock", self._deregister)

    def tick(self, lane: Lane) -> float:
        """Enqueue what is due now. Returns for how many seconds nothing further is."""
        began = time.monotonic()
        now, stored = self._read(lane)
        self._outages.over()
        settled, failures = list[bool](), list[Exception]()
        for entry in self.entries:
            if self._is_stopping or len(failures) > 1:
                break
            try:
                settled.append(self._fire(lane, entry, stored.get(entry.key), now))
            except Exception as error:  # of the database: met by one entry alone, it keeps nothing from the others
                failures.append(error)
        if failures:
            raise failures[0]
        pause = self._until_next(now) if all(settled) else AGAIN
        return max(0.0, pause - (time.monotonic() - began))

    def _live(self) -> None:
        lane: Lane | None = None
        while not self._is_stopping:
            try:
                lane = lane or open_lane(self._source, private=True)
                pause = self.tick(lane)
            except BaseException as error:  # the thread is started once: it has to last
                self._outages.failed(error)
                pause = AGAIN * random.uniform(0.5, 1.5)  # noqa: S311 - jitter is no secret
            self._wait(pause)
        if lane is not None:
            lane.close()

    def _wait(self, seconds: float) -> None:
        """For that long, or until `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping, seconds)

    def _read(self, lane: Lane) -> tuple[dt.datetime, dict[str, StoredEntry]]:
        """The time, and the entries as the database knows them; those that are new to it are written down."""
        about = json.dumps({"entries": len(self.entries), "version": __version__})
        tick = partial(occurrences.beat_and_read, self._table, self.name, about)
        now, stored = lane.run(lambda: tick(lane.engine))
        self._has_ticked.set()
        changed = [one for one in self.entries if one.key not in self._adopted and _is_new(one, stored)]
        for entry in changed:
            lane.run(partial(occurrences.adopt, lane.engine, self._table, entry))
        # Once: while a release is rolled out, clocks with two rules would take turns to change the row.
        self._adopted.update(one.key for one in self.entries)
        return lane.run(lambda: tick(lane.engine)) if changed else (now, stored)

    def _fire(self, lane: Lane, entry: Entry, stored: StoredEntry | None, now: dt.datetime) -> bool:
        """Whether the entry need not be looked at before its next time: not while another clock writes it, which may be
        killed before it commits."""
        if stored is None:  # somebody has deleted its row
            self._adopted.discard(entry.key)
            return False
        try:
            decided = decide(entry, stored.state, now, partial(self._conditions.allows, entry))
            written = self._write(lane, entry, stored, decided, now) if decided else None
        except Exception as error:
            if is_unavailable(error):
                raise
            self._tell(entry, describe(error).summary)
            return True  # until the next tick
        if written:
            self._told.pop(entry.key, None)
            self._note(entry, written)
        return not decided or written is not None

    def _write(
        self, lane: Lane, entry: Entry, stored: StoredEntry, decided: Sequence[Decided], now: dt.datetime
    ) -> list[Decided] | None:
        def write() -> list[Decided] | None:
            with self._source.session(lane.engine) as session, session.begin():
                return occurrences.write(session, self._model, entry, stored.state, decided, now)

        # A deadlock is no outage.
        return lane.run(lambda: retry_transient(write, PATIENCE))

    def _until_next(self, now: dt.datetime) -> float:
        """Seconds from `now` to the next tick."""
        ahead = [one for entry in self.entries for one in next_times(entry.rule, now, 1)]
        seconds = (min(ahead) - now).total_seconds() + SLACK if ahead else TICK
        return min(seconds, TICK)

    def _note(self, entry: Entry, written: Sequence[Decided]) -> None:
        self.tally.update(one.status for one in written)
        for (status, reason), alike in groupby(written, lambda one: (one.status, one.reason)):
            times = [f"{one.fire_at:%Y-%m-%dT%H:%M:%SZ}" for one in alike]
            span = times[0] if len(times) == 1 else f"{len(times)} times from {times[0]} to {times[-1]}"
            level = logging.WARNING if status == "missed" else logging.INFO
            logger.log(level, "schedule %s: %s %s%s", entry.key, span, status, f": {reason}" if reason else "")

    def _tell(self, entry: Entry, words: str) -> None:
        """Log an error of an entry, but not at each tick again."""
        before, at = self._told.get(entry.key, ("", 0.0))
        if words != before or time.monotonic() - at >= TOLD_EVERY:
            self._told[entry.key] = (words, time.monotonic())
            logger.error("schedule %s: nothing was enqueued, it is tried again: %s", entry.key, words)

    def _deregister(self) -> None:
        with open_lane(self._source, private=True) as lane:
            lane.run(lambda: workers.deregister(lane.engine, self._table, self.name))


def _is_new(entry: Entry, stored: dict[str, StoredEntry]) -> bool:
    """Whether the database knows no such entry, or by another rule."""
    return entry.key not in stored or stored[entry.key].rule != str(entry.rule)
