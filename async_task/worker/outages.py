"""Outages of the database, as a worker or a clock logs them: a line when one begins, one a minute, one when it ends."""

import datetime as dt
import logging
import threading
import time

from async_task.database.driver_errors import is_unavailable
from async_task.error_text import describe

logger = logging.getLogger("async_task")
TOLD_EVERY = 60.0
"""Seconds between two lines about the same outage."""
APART = 10.0
"""Seconds between the lines of two outages: of what comes and goes all the time, not every one is told."""


class Outages:
    """Of one worker, or of another `kind` of process; thread-safe. An outage begins when a poll or a heartbeat fails,
    and ends when a poll succeeds."""

    def __init__(self, worker: str, kind: str = "worker") -> None:
        self._worker = f"{kind} {worker}"
        self._guard = threading.Lock()
        self._since: dt.datetime | None = None
        self._began, self._told_at = 0.0, -TOLD_EVERY
        self._is_told = False

    @property
    def is_on(self) -> bool:
        return self._since is not None

    def failed(self, error: BaseException) -> None:
        """A poll or a heartbeat has failed. Any error is told: without them a worker does nothing."""
        with self._guard:
            now, is_first = time.monotonic(), self._since is None
            if is_first:
                self._since, self._began = dt.datetime.now(dt.UTC), now
                self._is_told = False
            if now - self._told_at < (TOLD_EVERY if self._is_told else APART):
                return
            self._told_at, self._is_told = now, True
            since = f"{self._since:%Y-%m-%dT%H:%M:%SZ}"
        summary = describe(error).summary
        away = "the database is away" if is_unavailable(error) else "the database cannot be used"
        logger.warning("%s: %s since %s: %s", self._worker, away, since, summary)

    def belongs(self, error: BaseException) -> bool:
        """Whether an error of a worker thread is the outage that was told already."""
        return self._is_told and self.is_on and is_unavailable(error)

    def over(self) -> None:
        """A poll has succeeded."""
        with self._guard:
            since, self._since = self._since, None
            lasted = time.monotonic() - self._began
        if since is not None and self._is_told:
            logger.warning("%s: the database is back after %.0f s", self._worker, lasted)
