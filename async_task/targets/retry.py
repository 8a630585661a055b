"""When a failed call is tried again. Pure: no clock, no session; randomness is handed in."""

import datetime as dt
import random
from collections.abc import Callable
from dataclasses import dataclass

from async_task.errors import ConfigurationError

Duration = dt.timedelta | float
"""A timedelta, or a number of seconds."""

HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
LONGEST = 365_000 * DAY  # beyond, a database's clock has no year for the instant


def duration(value: Duration, *, name: str) -> dt.timedelta:
    """`value` as a timedelta. Raises ConfigurationError, naming `name`, for what is no duration, negative, or longer
    than a thousand years."""
    if isinstance(value, bool) or not isinstance(value, (int, float, dt.timedelta)):
        raise ConfigurationError(f"{name} takes a timedelta or seconds, not a {type(value).__name__}")
    try:
        length = value if isinstance(value, dt.timedelta) else dt.timedelta(seconds=value)
    except (OverflowError, ValueError):
        raise ConfigurationError(f"{name} takes a finite number of seconds, at most a thousand years") from None
    if length < dt.timedelta(0):
        raise ConfigurationError(f"{name} cannot be negative: it was {length.total_seconds():g} s")
    if length > LONGEST:
        raise ConfigurationError(f"{name} is at most a thousand years: it was {length.days} days")
    return length


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy. Make one with `exponential`, `every`, `schedule` or `never`.

    `delays(n)` is the longest wait after the n-th error (n from 1), None when there is no further try; `jitter` is the
    share of it (0 to 1) that is random. `max_attempts` bounds the errors; `until` bounds the age of the attempt, from
    `scheduled_at` or else `created_at`, at which a retry may start.
    """

    delays: Callable[[int], dt.timedelta | None]
    jitter: float = 0.0
    max_attempts: int | None = None
    until: dt.timedelta | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        if not (_is_number(self.jitter) and 0 <= self.jitter <= 1):
            raise ConfigurationError(f"jitter is the random share of the delay, 0 to 1: it was {self.jitter!r}")
        if self.max_attempts is not None and (type(self.max_attempts) is not int or self.max_attempts < 1):
            raise ConfigurationError(f"max_attempts is a whole number, at least 1: it was {self.max_attempts!r}")

    @classmethod
    def exponential(
        cls,
        *,
        first: Duration = 15,
        factor: float = 2,
        cap: Duration = 3 * HOUR,
        jitter: float = 1.0,
        max_attempts: int | None = None,
        until: Duration | None = 4 * DAY,
    ) -> "Retry":
        """Wait `first`, then `factor` times as long after each further error, never longer than `cap`.

        The defaults are the default policy: from 15 s, cap 3 h, full jitter (the wait is drawn between 0 and its
        length, so that a herd spreads out), until 4 days.
        """
        start, most = duration(first, name="first"), duration(cap, name="cap")
        if not (_is_number(factor) and factor >= 1):
            raise ConfigurationError(f"factor is a number, at least 1: it was {factor!r}")

        def delays(errors: int) -> dt.timedelta:
            try:
                return min(most, start * float(factor) ** (errors - 1)) if start else start
            except OverflowError:
                return most

        return cls(
            delays, jitter, max_attempts, None if until is None else duration(until, name="until"), "exponential"
        )

    @classmethod
    def every(cls, interval: Duration, *, max_attempts: int | None = None, until: Duration | None = None) -> "Retry":
        """Wait `interval` after each error; for ever, unless `max_attempts` or `until` ends it."""
        wait = duration(interval, name="interval")
        limit = None if until is None else duration(until, name="until")
        return cls(lambda errors: wait, 0.0, max_attempts, limit, "every")

    @classmethod
    def schedule(cls, *delays: Duration) -> "Retry":
        """Wait as listed, one entry after each error; the error after the last entry ends `failed`."""
        waits = [duration(delay, name="schedule") for delay in delays]
        return cls(lambda errors: waits[errors - 1] if errors <= len(waits) else None, name="schedule")

    @classmethod
    def never(cls) -> "Retry":
        """The first error ends `failed`."""
        return cls(lambda errors: None, name="never")

    def delay(self, errors: int, draw: Callable[[], float] = random.random) -> dt.timedelta | None:
        """The wait after the `errors`-th error, or None when the policy's list is at its end.

        `draw` answers a number in [0, 1), as `random.random` does.
        """
        longest = self.delays(errors)
        return None if longest is None else longest * (1 - self.jitter * (1 - draw() if self.jitter else 0))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


DEFAULT_RETRY = Retry.exponential()
