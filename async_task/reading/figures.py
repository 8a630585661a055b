"""Figures about all attempts: how many wait, how many end, and how long that takes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from async_task.errors import ConfigurationError
from async_task.reading.depths import Depths, depths_of
from async_task.reading.failures import FailureReport, failures_of
from async_task.reading.history import History, Span, check_span, history_of
from async_task.reading.oldest_due import OldestDue, oldest_due_of
from async_task.reading.rates import Rates, rates_of
from async_task.reading.stuck_groups import StuckSource
from async_task.reading.timings import Durations, Lags, durations_of, lags_of
from async_task.schema.tables import table_of

T = TypeVar("T")


class AttemptFigures:
    """The verbs of `outbox.attempts` that count and measure: see `Attempts`."""

    def __init__(
        self, model: type[Any], read: Callable[[str, Callable[[Session], Any]], Any],
        sources: Sequence[StuckSource] = (),
    ) -> None:  # fmt: skip
        self._model = model
        self._read = read
        self._sources = sources

    def failures(self) -> FailureReport:
        """Group the errors and crashes among the newest 10,000 events: by fingerprint, which is made of target,
        exception, message without numbers, UUIDs and quoted texts, and the places in your code. The most frequent group
        is first."""
        return self._ask("failures", lambda session: failures_of(session, table_of(self._model)))

    def depths(self) -> Depths:
        """Count what is due, what waits to be due, and what is claimed, by queue and by target, and for how long the
        oldest has been due."""
        return self._ask("depths", lambda session: depths_of(session, table_of(self._model)))

    def oldest_due(self, queue: str | None = None) -> OldestDue:
        """Tell for how long the oldest attempt has been due, in all queues or in this one: the figure to alarm on.

        It takes milliseconds, however many attempts wait. Paused queues do not count.
        """
        _check_queue(queue)
        names = () if queue is None else (queue,)
        return self._ask("oldest_due", lambda session: oldest_due_of(session, table_of(self._model), names))

    def rates(self) -> Rates:
        """Tell how many attempts end a second, and how many of these fail, over the last minute and the last 15: by
        queue and by target.

        It reads the newest 10,000 attempts, and about 10,000 before those that are due: see `Rates`.
        """
        return self._ask("rates", lambda session: rates_of(session, table_of(self._model)))

    def history(self, span: Span) -> History:
        """Tell what has become of the attempts that were created in the last "1h", "6h", "24h" or "7d": in about 30
        buckets of time, how many succeeded, at the first try or later, failed, were canceled, and still wait.

            for bucket in outbox.attempts.history("24h").buckets:
                print(bucket.begin, bucket.succeeded, bucket.failed, "about" if bucket.is_estimate else "")

        Up to 10,000 attempts are all counted. Of more, a bounded number is read of each bucket: see `History`.
        """
        chosen = check_span(span)
        return self._ask("history", lambda session: history_of(session, table_of(self._model), chosen))

    def lags(self) -> Lags:
        """Tell how long attempts wait from when they were written until their first try: p50 and p95 of the last
        10,000 starts, among the attempts that `rates` reads. See `Lags`."""
        return self._ask("lags", lambda session: lags_of(session, table_of(self._model)))

    def durations(self) -> Durations:
        """Tell how long calls take, and which share of them fails, by target and method: number, p50, p95 and p99 of
        the last 10,000 ends, among the attempts that `rates` reads. See `CallDurations`."""
        return self._ask("durations", lambda session: durations_of(session, table_of(self._model)))

    def _ask(self, verb: str, work: Callable[[Session], T]) -> T:
        answer: T = self._read(f"attempts.{verb}", work)
        return answer


def _check_queue(queue: object) -> None:
    if queue is not None and not isinstance(queue, str):
        raise ConfigurationError(f"queue is a text, not {queue!r}")
