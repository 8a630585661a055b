"""The clock of an application."""

from contextlib import AbstractContextManager
from functools import partial

from async_task.application.dashboard import ApplicationDashboard
from async_task.errors import ConfigurationError
from async_task.schedule.clock import Clock


class ApplicationClock(ApplicationDashboard):
    """What enqueues the calls of the schedule."""

    def clock(self) -> Clock:
        """A clock, which enqueues the calls of the schedule at their times until it is stopped: `outbox.clock().run()`.

        Any number of clocks may run, on any machines. Raises ConfigurationError without a schedule, and for an entry
        that cannot be written. `run` raises as `run_batch` does.
        """
        self._check_clock()
        # It executes few statements, and may be behind a pooler in transaction mode: prepared ones are lost there.
        self._source.stop_preparing()
        return self._made_clock()

    def _clock_beside(self) -> AbstractContextManager[object]:
        return self._made_clock().running()

    def _made_clock(self) -> Clock:
        check = partial(self._check_before_change, "clock")
        return Clock(self._source, self._model, tuple(self._schedule), check=check)

    def _check_clock(self) -> None:
        if not len(self._schedule):
            raise ConfigurationError("this application has no schedule: give it one, AsyncTask(..., schedule=schedule)")
        self._check_schedule()  # entries may have been added

    def _check_schedule(self) -> None:
        for entry in self._schedule:
            entry.check(self._model)
