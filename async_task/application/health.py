"""The health of an application: what monitoring, probes and pages ask."""

import contextvars
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError

from async_task.application.database import refuse_loop
from async_task.application.failure_retry import FailureRetry
from async_task.application.validation import at_least, check_text, flag, scope_of
from async_task.database.driver_errors import is_unavailable
from async_task.error_text import describe
from async_task.errors import AsyncTaskError, ConfigurationError, ReadTimeout, SchemaMismatch
from async_task.queue.workers import CLOCK, WORKER, WorkerInfo, given_name
from async_task.reading.health import (
    Expected,
    Health,
    HealthCheck,
    HealthState,
    database_answered,
    database_failed,
    judge_age,
    judge_clock,
    judge_process,
    judge_workers,
    process_unknown,
)
from async_task.reading.metrics import Gauge, gauges_of
from async_task.reading.oldest_due import OldestDue, oldest_due_of
from async_task.schema.tables import table_of
from async_task.targets.retry import Duration, duration


class ApplicationHealth(FailureRetry):
    """What is asked every few seconds, of a database that may be away."""

    def health(
        self, *, queues: Iterable[str] = (), warn_age: Duration = 120, critical_age: Duration = 900, workers: int = 0,
        clock: bool | None = None, timeout: Duration = 5,
    ) -> Health:  # fmt: skip
        """Check the database and its tables, for how long the oldest attempt has been due, the workers, and the clocks.

            health = outbox.health(workers=1)
            if health.state != "ok":
                print([check.words for check in health.checks])

        `queues`: only what waits in these, and the workers that serve one of them. `warn_age`, `critical_age`: from
        which age of the oldest due attempt on it is a warning, and critical; paused queues do not count. `workers`: how
        many should run; fewer are a warning, and none is critical. If none should, it is a warning that none runs while
        the oldest due attempt is too old. `clock`: whether a clock must tick; left out, if the
        application has a schedule. `timeout`: within which all must be answered.

        It raises nothing about the database: that cannot be used, and its tables do not fit, are critical. Raises
        ConfigurationError for an invalid argument and inside of an event loop.
        """
        expected = Expected(
            queues=scope_of(queues, ()).queues,
            warn_age=duration(warn_age, name="warn_age"),
            critical_age=duration(critical_age, name="critical_age"),
            workers=at_least(0, workers, "workers"),
            clock=len(self._schedule) > 0 if clock is None else flag(clock, "clock"),
        )
        if expected.warn_age > expected.critical_age:
            raise ConfigurationError("warn_age is not greater than critical_age")
        refuse_loop("health")
        seconds = duration(timeout, name="timeout").total_seconds()
        found = _answer_within(seconds, lambda: self._checks(expected))
        return Health((database_failed(found),) if isinstance(found, str) else tuple(found))

    def process_health(self, name: str | None = None, *, timeout: Duration = 5) -> Health:
        """Check the heartbeat of a worker or clock: of this host, or of this `name` (whole, or as it was given to a
        worker). At least one of them must live.

        For the probe that restarts a process. If the database cannot be used, the state is "unknown" and not
        "critical", since no restart mends that. Raises ConfigurationError as `health`.
        """
        check_text(name, "name")
        if name == "":
            raise ConfigurationError("name is the name of a worker or clock: it was empty")
        refuse_loop("process_health")
        seconds = duration(timeout, name="timeout").total_seconds()
        found = _answer_within(seconds, lambda: [self._process_check(name)])
        return Health((process_unknown(found),) if isinstance(found, str) else tuple(found))

    def gauges(self) -> tuple[Gauge, ...]:
        """Return the figures for monitoring: those of `/metrics` and `async-task metrics`, from a few bounded queries.

            with outbox.reading(within=2):
                text = prometheus_text(outbox.gauges())

        Raises as `run_batch`, and ReadTimeout inside of `reading`.
        """
        refuse_loop("gauges")
        attempts = self.attempts
        return gauges_of(attempts.depths(), attempts.rates(), attempts.oldest_due(), self.workers())

    def _checks(self, expected: Expected) -> list[HealthCheck]:
        began = time.monotonic()
        self.check_schema()
        answered = database_answered(time.monotonic() - began)
        table = table_of(self._model)
        oldest = self._read("health", lambda session: oldest_due_of(session, table, expected.queues))
        found = self.workers()
        return [
            answered,
            judge_age(oldest, expected),
            _unless_work_waits(judge_workers(found, expected, self._lease), oldest, expected),
            judge_clock(found, expected, self._lease),
        ]

    def _process_check(self, name: str | None) -> HealthCheck:
        found = [one for one in self.workers() if one.kind in (WORKER, CLOCK) and _is_meant(one, name)]
        return judge_process(found, "of this host" if name is None else f"named {name}", self._lease)


def _unless_work_waits(workers: HealthCheck, oldest: OldestDue, expected: Expected) -> HealthCheck:
    """The check of the workers; a warning if none runs, none is expected, and what is due has waited for too long:
    a batch would have performed it."""
    is_late = oldest.queue is not None and oldest.age >= expected.warn_age
    if workers.state is not HealthState.OK or workers.value or not is_late:
        return workers
    words = f"{workers.words}: `async-task worker` or the next `async-task run-batch` performs what is due"
    return replace(workers, state=HealthState.WARNING, words=words)


def _is_meant(one: WorkerInfo, name: str | None) -> bool:
    return one.host == socket.gethostname() if name is None else name in (one.name, given_name(one.name))


def _answer_within(seconds: float, ask: Callable[[], Sequence[HealthCheck]]) -> Sequence[HealthCheck] | str:
    """What `ask` returns; or in words why the database cannot be used. It is asked on a thread, which ends with its
    wait for the database, or with the process."""
    answers: list[Sequence[HealthCheck] | str | BaseException] = []

    def live() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            answers.append(_words(error) if _is_of_the_database(error) else error)

    context = contextvars.copy_context()  # of `reading`
    thread = threading.Thread(target=context.run, args=(live,), name="async-task-health", daemon=True)
    thread.start()
    thread.join(seconds)
    answer = answers[0] if answers else f"it has not answered within {seconds:g} s"
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _words(error: BaseException) -> str:
    """The sentence of an error of ours stands for itself."""
    return str(error) if isinstance(error, AsyncTaskError) else describe(error).summary


def _is_of_the_database(error: BaseException) -> bool:
    """A ConfigurationError is about the server's version here."""
    kinds = (SQLAlchemyError, SchemaMismatch, ReadTimeout, ConfigurationError, OSError)
    return is_unavailable(error) or isinstance(error, kinds)
