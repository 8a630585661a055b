"""The live view of `async-task worker --top`: drawn each second from a few bounded statements."""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from async_task import MOST_COUNTED, AsyncTask, Depth, EventInfo, WorkerInfo
from async_task_cli.commands.workers import sheet
from async_task_cli.faults import verdict
from async_task_cli.terminal import plain, span, table

EVERY = 1.0
QUEUES_EVERY = 10
"""How many times it is drawn until new queues are looked up."""
MOST_QUEUES, NUM_ERRORS = 20, 5


class Top:
    """`own()`: the name of the worker in this process, and its tally so far."""

    def __init__(self, app: AsyncTask, own: Callable[[], tuple[str, Mapping[str, int]]]) -> None:
        self._app = app
        self._own = own
        self._rate = Rate()
        self._queues: list[str] = []
        self._times = 0
        self._began = time.monotonic()
        self._is_over = threading.Event()
        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=True, redirect_stderr=True)
        self._thread = threading.Thread(target=self._draw_often, name="async-task-top", daemon=True)

    def _draw_often(self) -> None:
        while not self._is_over.wait(EVERY):
            self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> RenderableType:
        name, tally = self._own()
        up = span(time.monotonic() - self._began)
        rate = self._rate.note(sum(tally.values()), time.monotonic())
        said = ", ".join(f"{number:,} {word}" for word, number in tally.items() if number) or "nothing was due"
        head = [plain(f"{name} on {self._app.address}, up {up}"), plain(f"{rate:,.0f} a second; {said}"), Text()]
        try:
            return Group(*head, *self._of_the_database())
        except Exception as error:
            return Group(*head, plain(verdict(error)[1]))

    def _of_the_database(self) -> list[RenderableType]:
        depths = self._depths()
        errors = self._app.attempts.errors(NUM_ERRORS)
        workers: list[WorkerInfo] = self._app.workers()
        parts: list[RenderableType] = [queue_table(depths), Text(), sheet(workers)]
        return parts if not errors else [*parts, Text(), error_table(errors)]

    def _depths(self) -> list[Depth]:
        is_known = self._queues and self._times % QUEUES_EVERY
        self._times += 1
        found = self._app.backlog(self._queues if is_known else ())
        self._queues = [one.queue for one in found][:MOST_QUEUES]
        return found[:MOST_QUEUES]

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def begin(self) -> None:
        """Start to draw, on a thread of its own."""
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * EVERY)
        self._live.stop()


class Rate:
    """How many a second, between the last two calls."""

    def __init__(self) -> None:
        self._before: tuple[int, float] | None = None

    def note(self, number: int, now: float) -> float:
        """`number`: how many there are now."""
        before, self._before = self._before, (number, now)
        return 0.0 if before is None or now <= before[1] else (number - before[0]) / (now - before[1])


def queue_table(depths: list[Depth]) -> Any:
    numbers = ["DUE", "LATER", "CLAIMED"]
    made = table(["QUEUE", *numbers], numbers=numbers)
    for one in depths:
        made.add_row(plain(one.queue), *(Text(_counted(number)) for number in (one.due, one.later, one.claimed)))
    return made


def error_table(errors: Sequence[EventInfo]) -> Any:
    made = table(["WHEN", "ATTEMPT", "LAST ERRORS"], whole=["WHEN"])
    for one in errors:
        message = (one.message or "").partition("\n")[0]
        made.add_row(Text(f"{one.created_at:%H:%M:%S}"), plain(one.attempt_id), plain(message))
    return made


def _counted(number: int) -> str:
    return f"{number:,}{' or more' if number >= MOST_COUNTED else ''}"
