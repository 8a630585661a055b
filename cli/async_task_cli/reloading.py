"""`worker --reload`: a worker that begins anew when a file of its application changes, for development."""

import atexit
import logging
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from async_task import AsyncTaskError
from async_task_cli.faults import CONFIGURATION, Refusal, one_line, verdict

logger = logging.getLogger("async_task")
EVERY = 0.25
"""Seconds between two looks at the files."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
_ENDING = (signal.SIGINT, signal.SIGTERM)
State = tuple[int, int, int] | None
"""What differs once a file is saved: its inode, size and time of change. None: there is no such file."""


class Reload:
    """Notices changes of the files that this process has imported and that are the application's: no installed ones,
    and none of the standard library. To be made before the application is imported.

    `changed`: the file that has changed; None so far.
    """

    def __init__(self) -> None:
        self.changed: Path | None = None
        self._folder = Path.cwd()
        self._began = time.time_ns()
        self._seen: set[str] = set()
        self._known: dict[Path, State] = {}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)  # the handlers are there; a signal may wait for them

    def load(self, load: Callable[[], object]) -> None:
        """Call `load`, which imports the application. If it cannot be imported, log why, wait for a change, and begin
        anew. Raises what `load` raises about the options."""
        try:
            load()
        except (Refusal, AsyncTaskError, OSError) as error:
            code, words = (error.exit_code, str(error)) if isinstance(error, Refusal) else verdict(error)
            if code != CONFIGURATION:
                raise
            logger.error("%s; waiting for a change", one_line(words))
            near = {file.parent for file in _files_in(error)} | {self._folder}
            self._wait(lambda: self._look(near))
            self.begin_anew()

    def watch(self, stop: Callable[[], object]) -> None:
        """From now on call `stop` once a file has changed: on a thread, which ends with the process."""

        def live() -> None:
            self._wait(self._look)
            logger.info("%s has changed: starting again", self.changed)
            stop()

        threading.Thread(target=live, name="async-task-reload", daemon=True).start()

    def begin_anew(self) -> NoReturn:
        """Run this command again in a new interpreter. It keeps the process id, and hears the signals that a terminal
        or a supervisor sends to that."""
        atexit._run_exitfuncs()  # which `exec` leaves out: it writes what is buffered
        sys.stdout.flush()
        sys.stderr.flush()
        os.chdir(self._folder)
        # Until the new interpreter has its handlers, a signal waits: it would end the process without an exit code.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606

    def _wait(self, look: Callable[[], Path | None]) -> None:
        while (changed := look()) is None:
            time.sleep(EVERY)
        self.changed = changed

    def _look(self, folders: Iterable[Path] = ()) -> Path | None:
        """The first file that has changed, of those that are imported and the Python files in `folders`."""
        for file in (*self._newly_imported(), *(one for folder in folders for one in _python_files(folder))):
            if file not in self._known:
                self._known[file] = state = _state(file)
                # It may have changed between its import and this first look at it. A time that is yet to come is of
                # another machine's clock, and says nothing.
                if state is not None and self._began < state[2] <= time.time_ns():
                    return file
        return next((file for file, state in self._known.items() if _state(file) != state), None)

    def _newly_imported(self) -> Iterator[Path]:
        new = sys.modules.keys() - self._seen
        self._seen |= new
        for name in new:
            file = getattr(sys.modules.get(name), "__dict__", {}).get("__file__")
            if isinstance(file, str) and file.endswith(".py") and _is_own(Path(file)):
                yield Path(file)


def _is_own(file: Path) -> bool:
    """Whether it is neither installed nor of the standard library."""
    return _INSTALLED.isdisjoint(file.parts) and not any(file.is_relative_to(one) for one in _STANDARD)


def _state(file: Path) -> State:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _files_in(error: BaseException | None) -> Iterator[Path]:
    """The files of the application that an error about its import names."""
    while error is not None:
        names = [error.filename] if isinstance(error, SyntaxError) else []
        trace = error.__traceback__
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        yield from (Path(name) for name in names if name and Path(name).is_file() and _is_own(Path(name)))
        error = error.__cause__ or error.__context__


def _python_files(folder: Path) -> Iterator[Path]:
    """Those in a folder, and the packages in it."""
    yield from folder.glob("*.py")
    yield from folder.glob("*/__init__.py")
