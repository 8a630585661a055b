"""SIGINT and SIGTERM: most commands end at once; one with running calls finishes those first."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

_ERASE_LINE, _SHOW_CURSOR = "\r\x1b[K", "\x1b[?25h"
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Terminated(BaseException):
    """A signal asked this process to end."""

    exit_code = TERMINATED


@contextlib.contextmanager
def terminable(*, is_last: bool) -> Iterator[None]:
    """SIGTERM raises Terminated, so that open connections are closed; SIGINT raises KeyboardInterrupt anyway.

    `is_last`: the process ends afterwards. Then SIGTERM is ignored: all is done, and the exit code says how it ended.
    """
    with _handling({signal.SIGTERM: _terminate}, afterwards=signal.SIG_IGN if is_last else None):
        yield


class Stop:
    """For a command with running calls. The first signal sets `event`; the second one ends the process at once. With
    `abandons` the second one raises KeyboardInterrupt in the main thread, where running calls on other threads are
    then abandoned, and the third one ends the process.

    `exit_code`: 130 or 143 after a signal, None without one.
    """

    def __init__(self, words: str, *, abandons: bool = False) -> None:
        self.event = threading.Event()
        self.exit_code: int | None = None
        self._words = words
        self._abandons = abandons

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        with _handling({signal.SIGINT: self._take, signal.SIGTERM: self._take}):
            yield self

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = self.exit_code or 128 + number
        if self.event.is_set():
            _write(on_terminal=_SHOW_CURSOR)  # a progress bar has hidden it
            if not self._abandons:
                # A thread in a call cannot be ended in any other way.
                os._exit(self.exit_code)
            self._abandons = False
            raise KeyboardInterrupt
        self.event.set()
        _write(f"{self._words}\n", on_terminal=_ERASE_LINE)


class Leave:
    """For a command that performs until it is stopped. Each of the first two signals calls `stop()`, which finishes
    the running calls, and then abandons them; the third ends the process at once. `spell(words)`: the line that says
    it. `words`: what is said at each signal; the one after these ends the process at once.

    `exit_code`: 130 or 143 after a signal, None without one.
    """

    WORDS = "stopping: running calls are finished; a second signal abandons them", "abandoning the running calls"

    def __init__(self, stop: Callable[[], object], spell: Callable[[str], str], words: Sequence[str] = WORDS) -> None:
        self.exit_code: int | None = None
        self._words = words
        self._stop = stop
        self._spell = spell
        self._times = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator["Leave"]:
        with _handling({signal.SIGINT: self._take, signal.SIGTERM: self._take}):
            yield self

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = self.exit_code or 128 + number
        self._times += 1
        if self._times > len(self._words):
            _write(on_terminal=_SHOW_CURSOR)
            os._exit(self.exit_code)
        self._stop()
        _write(self._spell(self._words[self._times - 1]), on_terminal=_ERASE_LINE)


def end(code: int) -> int:
    """End this process now if anything is left that Python would wait for at its exit. Else returns `code`."""
    if not (_has_threads_left() or _has_processes_left()):
        return code
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _has_threads_left() -> bool:
    """Whether abandoned calls still run, or targets left threads behind: nothing else can end them."""
    own = ("async-task-lane", "async-task-call")
    others = [one for one in threading.enumerate() if one is not threading.main_thread()]
    return any(not one.daemon or one.name.startswith(own) for one in others)


def _has_processes_left() -> bool:
    """Whether targets left child processes of `multiprocessing` behind, whose end Python would wait for. Daemonic ones
    are killed here, as Python would terminate them."""
    if "multiprocessing.process" not in sys.modules:
        return False
    import multiprocessing

    left = multiprocessing.active_children()
    for one in left:
        if one.daemon:
            one.kill()
    return bool(left)


def _write(words: str = "", *, on_terminal: str) -> None:
    """Write to standard error, on a terminal with `on_terminal` before. Not through sys.stderr, which may be in the
    middle of a write."""
    with contextlib.suppress(OSError):
        stderr = sys.__stderr__.fileno() if sys.__stderr__ else 2
        os.write(stderr, f"{on_terminal if os.isatty(stderr) else ''}{words}".encode())


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, object], *, afterwards: signal.Handlers | None = None) -> Iterator[None]:
    """`afterwards`: the handler behind it; None: those that were there before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if afterwards is None else afterwards)
