"""`Processing`: how the rows of one class are processed."""

from async_task.attempts.attempt import Attempt, BaseAttempt
from async_task.errors import ConfigurationError
from async_task.targets.policies import Mode, check_priority, check_queue
from async_task.targets.retry import DAY, HOUR, Duration, duration


class Processing:
    """How the rows of an `Asyncable` are processed. Durations are seconds or a timedelta.

        class Review(Asyncable, Base):
            processing = Processing(interval=12 * 3600, window=timedelta(days=30))

    `interval`: the wait after a failed try, and how long a row rests before a sweep gives it a job. `window`: how long
    after it was last submitted a row is processed; then it is expired. `mode`: "locked" calls `process` in the
    transaction that commits with its success; "leased" calls it while no transaction is open, for what takes long.
    `name`: of the target in rows of attempts; left out, "module:qualname" of the class. `queue`, `priority`: where the
    attempts wait, and how urgent they are. `model`: the model of the attempts. Raises ConfigurationError.
    """

    def __init__(
        self,
        *,
        interval: Duration = 3 * HOUR,
        window: Duration = 4 * DAY,
        mode: Mode = "locked",
        name: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        model: type[BaseAttempt] = Attempt,
    ) -> None:
        self.interval = duration(interval, name="interval")
        self.window = duration(window, name="window")
        if not self.interval:
            raise ConfigurationError("interval is longer than 0 s: it is the wait after a failed try")
        if self.window < self.interval:
            raise ConfigurationError(
                f"window is at least as long as the interval, {self.interval}, and was {self.window}: no sweep would "
                "ever find a row"
            )
        if mode not in ("locked", "leased"):
            raise ConfigurationError(f"mode is 'locked' or 'leased', not {mode!r}")
        check_queue(queue)
        check_priority(priority)
        self.mode, self.name, self.queue, self.priority, self.model = mode, name, queue, priority, model

    @property
    def window_in_words(self) -> str:
        """`4 days`, or `4 days, 6:00:00`."""
        return str(self.window).removesuffix(", 0:00:00")
