"""The live view of `async-task top`, of all processes, and of `worker --top`, of one: from bounded statements."""

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import NoReturn, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from async_task import MOST_COUNTED, AsyncTask, Depth
from async_task_cli import overview
from async_task_cli.columns import Column, fitting_lines
from async_task_cli.faults import verdict
from async_task_cli.overview import MOST_QUEUES, NUM_ERRORS, Overview, OverviewReader
from async_task_cli.terminal import plain, span

EVERY = 1.0
QUEUES_EVERY = 10
"""How many times a worker's view is drawn until new queues are looked up."""
QUEUE_COLUMNS = (
    Column("QUEUE", shortest=12), Column("DUE", is_number=True), Column("LATER", is_number=True),
    Column("CLAIMED", is_number=True),
)  # fmt: skip
Own = Callable[[], tuple[str, Mapping[str, int]]]
"""The name of the worker in this process, and its tally so far."""


class Top:
    """`own`: for the view of the worker in this process, drawn each second by a thread of its own from `begin` on.
    Without it all processes are shown, by `draw_until_stopped`."""

    def __init__(self, app: AsyncTask, own: Own | None = None) -> None:
        self._app = app
        self._own = own
        self._rate = Rate()
        self._reader = OverviewReader(app)
        self._overview: Overview | None = None
        self._parts: list[list[Text]] = []
        self._queues: list[str] = []
        self._times = 0
        self._began = time.monotonic()
        self._is_over = threading.Event()
        self._console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=True, redirect_stderr=True)
        self._thread = threading.Thread(target=self._draw_often, name="async-task-top", daemon=True)

    def draw_until_stopped(self, every: float) -> NoReturn:
        """Draw in this thread, until a signal ends it."""
        while True:
            self._draw()
            time.sleep(every)

    def begin(self) -> None:
        """Start to draw, on a thread of its own."""
        self._thread.start()

    def _draw_often(self) -> None:
        while not self._is_over.wait(EVERY):
            self._draw()

    def _draw(self) -> None:
        said = []
        try:
            self._parts = self._of_all() if self._own is None else self._beside_the_worker()
        except Exception as error:  # the last figures stay
            said = [plain(verdict(error)[1])]
        lines = [line for part in (self._head(), said, *self._parts) if part for line in (*part, Text())]
        self._live.update(Group(*lines[:-1]), refresh=True)

    def _head(self) -> list[Text]:
        if self._own is None:
            found = self._overview
            return [plain(self._app.address)] if found is None else overview.head(found, self._app.address)
        name, tally = self._own()
        up = span(time.monotonic() - self._began)
        rate = self._rate.note(sum(tally.values()), time.monotonic())
        said = ", ".join(f"{number:,} {word}" for word, number in tally.items() if number) or "nothing was due"
        return [plain(f"{name} on {self._app.address}, up {up}"), plain(f"{rate:,.0f} a second; {said}")]

    def _of_all(self) -> list[list[Text]]:
        self._overview = self._reader.read()
        return overview.parts(self._overview, self._console.width)

    def _beside_the_worker(self) -> list[list[Text]]:
        width = self._console.width
        return [
            fitting_lines(QUEUE_COLUMNS, [_queue_row(one) for one in self._depths()], width),
            overview.worker_lines(self._app.workers(), width),
            overview.error_lines(self._app.attempts.errors(NUM_ERRORS), width),
        ]

    def _depths(self) -> list[Depth]:
        is_known = self._queues and self._times % QUEUES_EVERY
        self._times += 1
        found = self._app.backlog(self._queues if is_known else ())
        self._queues = [one.queue for one in found][:MOST_QUEUES]
        return found[:MOST_QUEUES]

    def __enter__(self) -> Self:
        self._live.start()
        return self

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


def _queue_row(one: Depth) -> Sequence[Text | str]:
    return one.queue, _counted(one.due), _counted(one.later), _counted(one.claimed)


def _counted(number: int) -> str:
    return f"{number:,}{' or more' if number >= MOST_COUNTED else ''}"
