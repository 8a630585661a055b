"""`when=`, the one piece of application code that a clock calls: on a thread of its own, for a limited time."""

import datetime as dt
import threading

from async_task.database.answers import Raised
from async_task.error_text import describe
from async_task.errors import AsyncTaskError
from async_task.schedule.entry import Entry, When
from async_task.targets.answers import checked_answer

LONGEST = 5.0
"""Seconds for which the clock waits for an answer."""


class WhenFailed(AsyncTaskError):
    """`when=` raised an error, or has not answered in time. The time is not decided, and asked about again."""


class Conditions:
    """Asks the `when=` of entries. One that has not answered is not called again until it has: it blocks no others."""

    def __init__(self) -> None:
        self._running: dict[str, threading.Thread] = {}

    def allows(self, entry: Entry, fire_at: dt.datetime) -> bool:
        """Whether the entry's `when=` says yes to this time. Raises WhenFailed."""
        if entry.when is None:
            return True
        before = self._running.get(entry.key)
        if before is not None and before.is_alive():
            raise WhenFailed(f"when= has not answered yet, after {LONGEST:g} s")
        asked = _Question(entry.when, fire_at.astimezone(entry.rule.zone))
        thread = threading.Thread(target=asked.ask, name="async-task-when", daemon=True)
        self._running[entry.key] = thread
        thread.start()
        thread.join(LONGEST)
        if asked.answer is None:
            raise WhenFailed(asked.problem or f"when= did not answer within {LONGEST:g} s")
        return asked.answer


class _Question:
    def __init__(self, when: When, fire_at: dt.datetime) -> None:
        self._when, self._fire_at = when, fire_at
        self.answer: bool | None = None
        self.problem: str | None = None

    def ask(self) -> None:
        try:
            answer = checked_answer(self._when(self._fire_at), "when=")
            if isinstance(answer, Raised):
                raise answer.error
            self.answer = bool(answer)
        except BaseException as error:  # SystemExit too: it is the application's code
            self.problem = f"when= raised {describe(error).summary}"
