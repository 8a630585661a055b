"""The live view of `async-task top`, of all processes, and of `worker --top`, of one: from bounded statements."""

import datetime as dt
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import NoReturn, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from async_task import MOST_COUNTED, AsyncTask, Depth, EventInfo, Rates
from async_task_cli import figures
from async_task_cli.columns import Column, table_lines
from async_task_cli.commands import workers
from async_task_cli.faults import verdict
from async_task_cli.terminal import moment, plain, span

EVERY = 1.0
QUEUES_EVERY = 10
"""How many times a worker's view is drawn until new queues are looked up."""
RATES_EVERY = dt.timedelta(seconds=10)
"""Until they are read again: a rate is one over a minute, and costs more than all other figures."""
MOST_QUEUES, MOST_TARGETS, MOST_WORKERS, NUM_ERRORS = 20, 10, 20, 5
QUEUE_COLUMNS = (
    Column("QUEUE", shortest=12), Column("DUE", is_number=True), Column("LATER", is_number=True),
    Column("CLAIMED", is_number=True),
)  # fmt: skip
ERROR_COLUMNS = Column("WHEN"), Column("ATTEMPT"), Column("LAST ERRORS", shortest=12)
Own = Callable[[], tuple[str, Mapping[str, int]]]
"""The name of the worker in this process, and its tally so far."""


class Top:
    """`own`: for the view of the worker in this process, drawn each second by a thread of its own from `begin` on.
    Without it all processes are shown, by `draw_until_stopped`."""

    def __init__(self, app: AsyncTask, own: Own | None = None) -> None:
        self._app = app
        self._own = own
        self._rate = Rate()
        self._rates: Rates | None = None
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
        head, said = self._head(), []
        try:
            self._parts = self._of_all() if self._own is None else self._beside_the_worker()
        except Exception as error:  # the last figures stay
            said = [plain(verdict(error)[1])]
        lines = [line for part in (head, said, *self._parts) if part for line in (*part, Text())]
        self._live.update(Group(*lines[:-1]), refresh=True)

    def _head(self) -> list[Text]:
        if self._own is None:
            return [plain(self._app.address)]
        name, tally = self._own()
        up = span(time.monotonic() - self._began)
        rate = self._rate.note(sum(tally.values()), time.monotonic())
        said = ", ".join(f"{number:,} {word}" for word, number in tally.items() if number) or "nothing was due"
        return [plain(f"{name} on {self._app.address}, up {up}"), plain(f"{rate:,.0f} a second; {said}")]

    def _of_all(self) -> list[list[Text]]:
        if self._rates is None or self._rates.read_at + RATES_EVERY < self._app.now():
            self._rates = self._app.attempts.rates()
        found = figures.busiest(figures.figures_of(self._app, self._rates), MOST_QUEUES, MOST_TARGETS)
        return [
            [Text(line) for line in (f"Read at {moment(found.read_at)}.", *figures.headlines(found))],
            self._lines(figures.QUEUE_COLUMNS, figures.queue_rows(found)),
            self._lines(figures.TARGET_COLUMNS, figures.target_rows(found)),
            *self._workers_and_errors(),
        ]

    def _beside_the_worker(self) -> list[list[Text]]:
        return [self._lines(QUEUE_COLUMNS, [_queue_row(one) for one in self._depths()]), *self._workers_and_errors()]

    def _workers_and_errors(self) -> list[list[Text]]:
        running = self._app.workers()[:MOST_WORKERS]
        errors = self._app.attempts.errors(NUM_ERRORS)
        return [
            self._lines(workers.COLUMNS, workers.rows(running)),
            self._lines(ERROR_COLUMNS, [_error_row(one) for one in errors]),
        ]

    def _lines(self, columns: Sequence[Column], rows: Sequence[Sequence[Text | str]]) -> list[Text]:
        lines = list(table_lines(columns, rows, self._console.width)) if rows else []
        for line in lines:  # on a terminal too narrow for the numbers
            line.no_wrap, line.overflow = True, "crop"
        return lines

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


def _error_row(one: EventInfo) -> Sequence[Text | str]:
    return f"{one.created_at:%H:%M:%S}", one.attempt_id.hex[-8:], (one.message or "").partition("\n")[0]


def _counted(number: int) -> str:
    return f"{number:,}{' or more' if number >= MOST_COUNTED else ''}"
