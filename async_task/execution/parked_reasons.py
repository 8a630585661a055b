"""Which reasons for parking were logged lately: a missing key would else write a line for each of a million rows."""

import threading
import time
from collections.abc import Callable

from async_task.queue.claim import Claim
from async_task.queue.fingerprints import normalised

AGAIN_AFTER = 3600.0
"""Seconds after which a reason that goes on is logged again."""
MOST_REASONS = 1_000
"""How many reasons are remembered. When there are more, all are forgotten."""


class ParkedReasons:
    """The reasons of one worker or batch. `clock`: seconds, of a clock that is never set. From any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged: dict[tuple[str, str, str], float] = {}
        self._guard = threading.Lock()

    def is_new(self, claim: Claim, reason: str) -> bool:
        """Whether this reason was not logged for this call within AGAIN_AFTER; it counts as logged now."""
        key = (claim.target, claim.method_name, normalised(reason))
        now = self._clock()
        with self._guard:
            if now - self._logged.get(key, now - AGAIN_AFTER) < AGAIN_AFTER:
                return False
            if len(self._logged) >= MOST_REASONS:
                self._logged.clear()
            self._logged[key] = now
            return True
