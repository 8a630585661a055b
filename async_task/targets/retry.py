"""When a failed call is tried again. Pure: no clock and no session; a caller may give the randomness."""

import datetime as dt
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from async_task.errors import ConfigurationError

Duration = dt.timedelta | float
"""A timedelta, or a number of seconds."""

HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
LONGEST = 365_000 * DAY  # an instant so far ahead may be past the last year of a database


def duration(value: Duration, *, name: str) -> dt.timedelta:
    """`value` as a timedelta.

    Raises ConfigurationError, naming `name`, for another type, a negative one, and one over a thousand years."""
    if isinstance(value, bool) or not isinstance(value, (int, float, dt.timedelta)):
        raise ConfigurationError(f"{name} takes a timedelta or seconds, not a {type(value).__name__}")
    try:
        length = value if isinstance(value, dt.timedelta) else dt.timedelta(seconds=value)
    except (OverflowError, ValueError):
        raise ConfigurationError(f"{name} takes a finite number of seconds, at most a thousand years") from None
    if length < dt.timedelta(0):
        raise ConfigurationError(f"{name} cannot be negative, and was {length.total_seconds():g} s")
    if length > LONGEST:
        raise ConfigurationError(f"{name} is at most a thousand years, and was {length.days} days")
    return length


# The delays of the policies that this library makes. They are values, because a row may hold them.


@dataclass(frozen=True, slots=True)
class Exponential:
    """`first`, then `factor` times as long after each further error, never longer than `cap`."""

    first: dt.timedelta
    factor: float
    cap: dt.timedelta

    def __post_init__(self) -> None:
        if not (_is_number(self.factor) and self.factor >= 1):
            raise ConfigurationError(f"factor is a number of at least 1, not {self.factor!r}")

    def __call__(self, errors: int) -> dt.timedelta:
        try:
            return min(self.cap, self.first * float(self.factor) ** (errors - 1)) if self.first else self.first
        except OverflowError:
            return self.cap


@dataclass(frozen=True, slots=True)
class Every:
    """The same after each error."""

    interval: dt.timedelta

    def __call__(self, errors: int) -> dt.timedelta:
        return self.interval


@dataclass(frozen=True, slots=True)
class Listed:
    """One of `waits` after each error; none after the last one."""

    waits: tuple[dt.timedelta, ...]

    def __call__(self, errors: int) -> dt.timedelta | None:
        return self.waits[errors - 1] if errors <= len(self.waits) else None


@dataclass(frozen=True, slots=True)
class Never:
    """None at all."""

    def __call__(self, errors: int) -> None:
        return None


Delays: TypeAlias = Exponential | Every | Listed | Never


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy: when a call that raised an error is tried again, and when it fails for good.

    Make one with `exponential`, `every`, `schedule` or `never`. Durations are seconds or a timedelta.

        @target(retry=Retry.exponential(first=60, max_attempts=8))
        class OrderClient: ...

    `delays(n)`: the longest wait after the n-th error (n from 1), in seconds or as a timedelta; None ends the attempt
    `failed`. If it raises, or answers anything else, the default policy decides, and `last_error` says so.
    `jitter`: the random share of the wait, 0 to 1. `max_attempts`: the number of errors that ends it `failed`. `until`:
    the age, counted from `scheduled_at`, else from `created_at`, past which no retry may start; the attempt ends
    `failed`.
    """

    delays: Callable[[int], Duration | None]
    jitter: float = 0.0
    max_attempts: int | None = None
    until: dt.timedelta | None = None
    name: str = "custom"

    def __post_init__(self) -> None:
        if not callable(self.delays):
            raise ConfigurationError("delays is a function of the number of errors: delays=lambda errors: 60 * errors")
        if self.until is not None:
            object.__setattr__(self, "until", duration(self.until, name="until"))
        if not (_is_number(self.jitter) and 0 <= self.jitter <= 1):
            raise ConfigurationError(f"jitter is the random share of the delay, 0 to 1, not {self.jitter!r}")
        if self.max_attempts is not None and (type(self.max_attempts) is not int or self.max_attempts < 1):
            raise ConfigurationError(f"max_attempts is a whole number of at least 1, not {self.max_attempts!r}")

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

        The defaults are the default policy: from 15 s to 3 h, until 4 days, with full jitter. Full jitter draws each
        wait between 0 and its length, so that many failed calls do not come back at the same moment.
        """
        delays = Exponential(duration(first, name="first"), factor, duration(cap, name="cap"))
        limit = None if until is None else duration(until, name="until")
        return cls(delays, jitter, max_attempts, limit, "exponential")

    @classmethod
    def every(cls, interval: Duration, *, max_attempts: int | None = None, until: Duration | None = None) -> "Retry":
        """Wait `interval` after each error, for ever unless `max_attempts` or `until` ends it; an interval of 0 needs
        one of these."""
        wait = duration(interval, name="interval")
        limit = None if until is None else duration(until, name="until")
        if not wait and max_attempts is None and limit is None:
            raise ConfigurationError("Retry.every(0) would try for ever, without a pause: give max_attempts or until")
        return cls(Every(wait), 0.0, max_attempts, limit, "every")

    @classmethod
    def schedule(cls, *delays: Duration) -> "Retry":
        """Wait as listed, one entry after each error. The error after the last entry ends it `failed`."""
        return cls(Listed(tuple(duration(delay, name="schedule") for delay in delays)), name="schedule")

    @classmethod
    def never(cls) -> "Retry":
        """Try once: the first error ends it `failed`."""
        return cls(Never(), name="never")

    def delay(self, errors: int, draw: Callable[[], float] = random.random) -> dt.timedelta | None:
        """The wait after the `errors`-th error; None for no further try. `draw` returns a number in [0, 1).

        Raises ConfigurationError if `delays` answers something else than a duration, and what it raises."""
        answer = self.delays(errors)
        if answer is None:
            return None
        longest = duration(answer, name="its delay")
        return longest * (1 - self.jitter * (1 - draw() if self.jitter else 0))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


DEFAULT_RETRY = Retry.exponential()
