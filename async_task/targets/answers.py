"""What a target may answer besides returning: look again later, try again after, give up."""

import datetime as dt

from async_task.targets.retry import Duration, duration


class Again:
    """`return Again(after=...)`: not finished, look again after a timedelta or seconds; no error counted (a poll)."""

    __slots__ = ("after",)

    def __init__(self, *, after: Duration) -> None:
        self.after: dt.timedelta = duration(after, name="Again(after=)")

    def __repr__(self) -> str:
        return f"Again(after={self.after.total_seconds():g})"


class RetryAfter(Exception):
    """`raise RetryAfter(after=...)`: an error, tried again after its own timedelta or seconds instead of the policy's.

    The policy still says how often: `max_attempts`, `until`, the end of a schedule, `never`."""

    def __init__(self, message: str = "", *, after: Duration) -> None:
        self.after: dt.timedelta = duration(after, name="RetryAfter(after=)")
        super().__init__(message or f"asked to be tried again after {self.after.total_seconds():g} s")


class Discard(Exception):
    """`raise Discard(reason)`: `failed` at once, whatever the policy says."""

    def __init__(self, reason: str = "discarded by its target") -> None:
        self.reason = reason
        super().__init__(reason)
