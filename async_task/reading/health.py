"""Health: whether the database, the backlog, the workers and the clocks of an application are as they should be.

What is expected and what was found are judged without I/O, each part by one function.
"""

import datetime as dt
import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from async_task.queue.workers import CLOCK, LONGEST_SILENCE, WORKER, WorkerInfo
from async_task.reading.oldest_due import OldestDue

DATABASE, OLDEST_DUE, WORKERS, CLOCKS, PROCESS = "database", "oldest_due", "workers", "clock", "process"


class HealthState(enum.StrEnum):
    """How bad it is. `UNKNOWN`: it could not be found out."""

    OK = "ok"
    WARNING = "warning"
    UNKNOWN = "unknown"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One part of the health. `name`: "database", "oldest_due", "workers", "clock" or "process". `words`: the result as
    a sentence.

    `value`: the number of "workers"; of the others seconds: until the database has answered, for which the oldest
    attempt has been due, since the last heartbeat. None where it is not known. `warning`, `critical`: the limits of the
    value, where there are any; of "workers" they are the least numbers that are no warning, and not critical.
    """

    name: str
    state: HealthState
    words: str
    value: float | None = None
    warning: float | None = None
    critical: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """The checks that were made. `state`: the worst of them."""

    checks: tuple[HealthCheck, ...]

    @property
    def state(self) -> HealthState:
        return max((one.state for one in self.checks), key=list(HealthState).index)

    def check(self, name: str) -> HealthCheck | None:
        """The check of this name, if it was made: where the database does not answer, nothing else is known."""
        return next((one for one in self.checks if one.name == name), None)


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected. `queues`: only of these; empty: of all."""

    queues: tuple[str, ...]
    warn_age: dt.timedelta
    critical_age: dt.timedelta
    workers: int
    clock: bool


def database_answered(seconds: float) -> HealthCheck:
    words = f"the database answers in {seconds * 1000:.0f} ms, and its tables fit"
    return HealthCheck(DATABASE, HealthState.OK, words, seconds)


def database_failed(why: str) -> HealthCheck:
    return HealthCheck(DATABASE, HealthState.CRITICAL, f"the database cannot be used: {why}")


def judge_age(oldest: OldestDue, expected: Expected) -> HealthCheck:
    """Whether anything has been due for too long."""
    state = HealthState.OK
    if oldest.age >= expected.critical_age:
        state = HealthState.CRITICAL
    elif oldest.age >= expected.warn_age:
        state = HealthState.WARNING
    words = f"the oldest attempt has been due for {_span(oldest.age)}, in queue {oldest.queue}"
    if oldest.queue is None:
        words = f"nothing is due{_in_queues(expected.queues)}"
    if not oldest.is_complete:
        words += ", among the first 1,000 queues"
    limits = expected.warn_age.total_seconds(), expected.critical_age.total_seconds()
    return HealthCheck(OLDEST_DUE, state, words, oldest.age.total_seconds(), *limits)


def judge_workers(found: Iterable[WorkerInfo], expected: Expected, lease: dt.timedelta) -> HealthCheck:
    """Whether enough workers run. Fewer than expected are a warning, and none is critical."""
    serving = [one for one in found if one.kind == WORKER and _serves(one, expected.queues)]
    number = sum(_lives(one, lease) for one in serving)
    words = f"{number or 'no'} worker{'s run' if number != 1 else ' runs'}{_in_queues(expected.queues)}"
    if not expected.workers:
        return HealthCheck(WORKERS, HealthState.OK, words, number)
    state = HealthState.OK if number >= expected.workers else HealthState.WARNING if number else HealthState.CRITICAL
    if state is not HealthState.OK:
        words += f", and at least {expected.workers} should"
    return HealthCheck(WORKERS, state, words, number, expected.workers, 1)


def judge_clock(found: Iterable[WorkerInfo], expected: Expected, lease: dt.timedelta) -> HealthCheck:
    """Whether a clock ticks, where one is expected."""
    clocks = [one for one in found if one.kind == CLOCK]
    last = min((one.silent_for for one in clocks), default=None)
    value = None if last is None else last.total_seconds()
    if any(_lives(one, lease) for one in clocks):
        return HealthCheck(CLOCKS, HealthState.OK, f"a clock has ticked {_ago(last)}", value)
    words = "no clock runs" if last is None else f"no clock runs, and the last one has ticked {_ago(last)}"
    return HealthCheck(CLOCKS, HealthState.CRITICAL if expected.clock else HealthState.OK, words, value)


def judge_process(found: Sequence[WorkerInfo], whose: str, lease: dt.timedelta) -> HealthCheck:
    """Whether any of these processes lives. `whose`: how the words name them."""
    last = min((one.silent_for for one in found), default=None)
    value = None if last is None else last.total_seconds()
    alive = [one for one in found if _lives(one, lease)]
    if alive:
        return HealthCheck(PROCESS, HealthState.OK, f"{alive[0].name} had a heartbeat {_ago(last)}", value)
    words = f"no worker or clock {whose} runs" + ("" if last is None else f": the last heartbeat was {_ago(last)}")
    return HealthCheck(PROCESS, HealthState.CRITICAL, words, value)


def process_unknown(why: str) -> HealthCheck:
    """Heartbeats are in the database: without it nothing is known, and a restart of the process mends nothing."""
    return HealthCheck(PROCESS, HealthState.UNKNOWN, f"heartbeats cannot be read: the database cannot be used: {why}")


def _lives(one: WorkerInfo, lease: dt.timedelta) -> bool:
    """Not if its process runs here and has no heartbeat: it is frozen, or cut off from the database."""
    return not one.is_dead and one.silent_for <= max(lease, LONGEST_SILENCE)


def _serves(one: WorkerInfo, queues: Sequence[str]) -> bool:
    own = one.about.get("queues")
    return not queues or not own or any(name in own for name in queues)


def _in_queues(queues: Sequence[str]) -> str:
    return f" in queue {' or '.join(queues)}" if queues else ""


def _ago(length: dt.timedelta | None) -> str:
    return "" if length is None else f"{_span(length)} ago"


def _span(length: dt.timedelta) -> str:
    seconds = length.total_seconds()
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds:.0f} s"
