"""A progress bar of a batch: on a terminal only, and only from the first second on."""

import sys
import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from async_task import MOST_COUNTED, BatchReport

PATIENCE = 1.0
COLUMNS = ("retried", "to be retried"), ("failed", "failed"), ("parked", "parked")


class Bar:
    """`bar(report)` moves it. It disappears at the end of the batch, when the line of figures is printed."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        # Drawn on standard error; what targets print meanwhile goes there too, above the bar.
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=None)
        self._begin = threading.Timer(PATIENCE, self._bar.start)
        self._begin.daemon = True

    def __call__(self, report: BatchReport) -> None:
        # What was not counted to its end has no total.
        total = None if report.left == MOST_COUNTED else report.claimed + report.left
        if self._bar.tasks[0].total is None and total is not None and report.claimed == 0:
            self._bar.update(self._task, total=total)
        self._bar.update(self._task, completed=report.claimed, description=_also(report))

    def __enter__(self) -> Self:
        if not self._bar.console.is_dumb_terminal:
            self._begin.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begin.cancel()
        if self._begin.ident is not None:
            self._begin.join()
        if self._bar.live.is_started:
            self._bar.stop()


def _also(report: BatchReport) -> str:
    numbers = ((getattr(report, name), words) for name, words in COLUMNS)
    return ", ".join(f"{number:,} {words}" for number, words in numbers if number)
