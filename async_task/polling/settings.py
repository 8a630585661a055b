"""`Polling`: how the operations of one class are polled."""

import datetime as dt
from collections.abc import Sequence
from typing import TypeVar

from async_task.attempts.attempt import Attempt, BaseAttempt
from async_task.errors import ConfigurationError
from async_task.targets.policies import check_priority, check_queue
from async_task.targets.retry import Duration, duration

T = TypeVar("T")
SCHEDULE: Sequence[Duration] = (60, 120, 300, 600, 1800)


class Polling:
    """How the operations of a `Pollable` are polled. Durations are seconds or a timedelta.

        class CompletionBatch(Pollable, Base):
            polling = Polling(schedule=(30, 60, 300), max_age=48 * 3600, transient_errors=(httpx.TransportError,))

    `schedule`: the waits between polls; the last one repeats. `max_age`: how long after it was submitted an operation
    is given up. `grace`: by how much a poll must be late before a sweep looks for its attempt. `resume_every`,
    `expire_every`: how often a worker sweeps for lost polls, and for operations that are too old. `transient_errors`:
    classes of errors after which it is polled again later, without an error being counted. `name`: of the target in
    rows of attempts; left out, "module:qualname" of the class. `queue`, `priority`: where the polls wait, and how
    urgent they are. `model`: the model of the attempts. Raises ConfigurationError.
    """

    def __init__(
        self,
        *,
        schedule: Sequence[Duration] = SCHEDULE,
        max_age: Duration = dt.timedelta(hours=26),
        grace: Duration = dt.timedelta(minutes=5),
        resume_every: Duration = dt.timedelta(minutes=5),
        expire_every: Duration = dt.timedelta(hours=1),
        transient_errors: Sequence[type[Exception]] = (),
        name: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        model: type[BaseAttempt] = Attempt,
    ) -> None:
        self.waits = tuple(duration(one, name="schedule") for one in _listed(schedule, "schedule lists waits"))
        if not self.waits or not all(self.waits):
            raise ConfigurationError("schedule lists at least one wait, and each is longer than 0 s")
        self.max_age = duration(max_age, name="max_age")
        self.grace = duration(grace, name="grace")
        self.resume_every = duration(resume_every, name="resume_every")
        self.expire_every = duration(expire_every, name="expire_every")
        self.transient_errors = _listed(transient_errors, "transient_errors lists classes of exceptions")
        if not all(map(_is_exception, self.transient_errors)):
            raise ConfigurationError("transient_errors lists classes of exceptions")
        check_queue(queue)
        check_priority(priority)
        self.name, self.queue, self.priority, self.model = name, queue, priority, model

    def wait(self, age: dt.timedelta) -> dt.timedelta:
        """The wait after a poll of an operation that was submitted `age` ago. It depends on the age alone, so that
        nothing that happens to the attempt begins the schedule anew."""
        until = dt.timedelta(0)
        for one in self.waits:
            until += one
            if age < until:
                return one
        return self.waits[-1]

    def wait_after_error(self, errors: int) -> dt.timedelta:
        """The wait after the `errors`-th error that is not transient."""
        return self.waits[min(errors, len(self.waits)) - 1]


def _listed(given: Sequence[T], words: str) -> tuple[T, ...]:
    try:
        return tuple(given)
    except TypeError:
        raise ConfigurationError(f"{words}, as a tuple, and was {given!r}") from None


def _is_exception(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, Exception)
