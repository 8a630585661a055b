"""Limits of queues: how many of their calls run at a time, and how many start in a second."""

import datetime as dt
import re
from dataclasses import dataclass
from typing import Any

from async_task.errors import ConfigurationError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
PAUSE = dt.timedelta(seconds=1)
"""When to look again where only the end of a call, or a person, can change the answer."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`max_running`: calls at a time, on all machines together. `rate`: starts in a second, in the long run; a second's
    worth of them, and at least one, may start at once. None: no such limit."""

    max_running: int | None = None
    rate: float | None = None

    @property
    def burst(self) -> int | None:
        return None if self.rate is None else max(1, int(self.rate))

    def __bool__(self) -> bool:
        return self.max_running is not None or self.rate is not None


@dataclass(frozen=True, slots=True)
class Allowance:
    """`number` may be started now (None: as many as there are); `tokens` is what the rate has saved up by now; more may
    be allowed `after` so long."""

    number: int | None
    tokens: float | None
    after: dt.timedelta


def allowance(limit: Limit, *, running: int, tokens: float | None, since: dt.timedelta) -> Allowance:
    """What a limit allows while so many are `running`, when there were so many `tokens` (None: never asked before) so
    long ago."""
    free = None if limit.max_running is None else max(0, limit.max_running - running)
    if limit.rate is None or limit.burst is None:
        return Allowance(free, None, PAUSE)
    saved = limit.burst if tokens is None else tokens + max(0.0, since.total_seconds()) * limit.rate
    saved = min(float(limit.burst), saved)
    number = int(saved) if free is None else min(free, int(saved))
    next_token = dt.timedelta(seconds=max(0.001, (1 - saved % 1) / limit.rate))
    return Allowance(number, saved, PAUSE if free == 0 else next_token)


def rate_of(given: Any) -> float:
    """Starts in a second, from "10/s", "100/m", "500/h", or a number of them. Raises ConfigurationError."""
    if isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given < float("inf"):
        return float(given)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*/\s*([smh])\s*", given) if isinstance(given, str) else None
    if found is None or not float(found[1]):
        raise ConfigurationError(f'rate is "10/s", "100/m", "500/h" or a number of starts in a second, not {given!r}')
    return float(found[1]) / UNITS[found[2]]
