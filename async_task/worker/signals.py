"""SIGINT and SIGTERM in the main thread, where the program leaves them at their defaults: they stop a worker, and wait
while something is finished."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

DEFAULTS = (signal.default_int_handler, signal.SIG_DFL)


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Meanwhile SIGINT and SIGTERM call `stop`, in the main thread. Handlers of the program's own stay."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    ours = {number: handler for number, handler in before.items() if handler in DEFAULTS}
    for number in ours:
        signal.signal(number, lambda number, frame: stop())
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """In the main thread: the first SIGINT is raised as KeyboardInterrupt when the work is done, a second one at once.

    Only where Python's own handler is in place: whoever has installed another one knows better.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
