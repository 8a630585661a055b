"""`worker --reload`: a worker that begins anew when a file of its application changes, for development."""

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import NoReturn

from async_task import AsyncTaskError
from async_task_cli.application import project_file, where_raised
from async_task_cli.faults import CONFIGURATION, UNEXPECTED, Refusal, first_line, one_line, verdict
from async_task_cli.own_files import folders_near, is_own, python_files
from async_task_cli.signals import Leave, end

logger = logging.getLogger("async_task")
EVERY = 0.25
"""Seconds between two looks at the files."""
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
        before = python_files([self._folder])
        try:
            load()
        except (Refusal, AsyncTaskError, OSError) as error:
            code, words = _verdict(error)
            if code != CONFIGURATION:
                raise
            logger.error("%s; waiting for a change", one_line(words))
            self._wait_near(error, before)
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
        # Python prints what an exit function raises, and goes on: a signal that raised would be forgotten.
        with Leave(lambda: None, lambda words: words, words=("",)).listening() as leave:
            atexit._run_exitfuncs()  # which `exec` leaves out: it writes what is buffered
            sys.stdout.flush()
            sys.stderr.flush()
            os.chdir(self._folder)
            # Until the new interpreter has its handlers, a signal waits: it would end the process without an exit code.
            signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
            if leave.exit_code is not None:
                sys.exit(end(leave.exit_code))
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606

    def _wait_near(self, error: BaseException, before: frozenset[Path]) -> None:
        """Wait for a change of what is imported, of pyproject.toml, and of each Python file that may have to do with
        `error`. `before`: the Python files below the current folder before the import."""
        folders = [self._folder, *sorted(folders_near(error))]
        there = python_files(folders)
        project = project_file()
        watched = there if project is None else there | {project}
        # A file that is new here has changed, however old it is: `mv` and `rsync` bring files of any age.
        if not python_files([self._folder]) - before:
            self._wait(lambda: self._look(watched) or next(iter(python_files(folders) - there), None))

    def _wait(self, look: Callable[[], Path | None]) -> None:
        while (changed := look()) is None:
            time.sleep(EVERY)
        self.changed = changed

    def _look(self, others: Iterable[Path] = ()) -> Path | None:
        """The first file that has changed, of those that are imported and `others`."""
        for file in (*self._newly_imported(), *others):
            if file not in self._known:
                self._known[file] = _state(file)
                # It may have changed between its import and this first look at it. A time that is yet to come is of
                # another machine's clock, and says nothing.
                if self._known[file] is None or any(
                    self._began < moment <= time.time_ns() for moment in _moments(file)
                ):
                    return file
        return next((file for file, state in self._known.items() if _state(file) != state), None)

    def _newly_imported(self) -> Iterator[Path]:
        new = sys.modules.keys() - self._seen
        self._seen |= new
        for name in new:
            names = getattr(sys.modules.get(name), "__dict__", {})
            file = names.get("__file__")
            if not (isinstance(file, str) and file.endswith(".py") and is_own(Path(file))):
                continue
            # Without a file it has gone since then; but for some loaders, of zip files for one, there never was one.
            if isinstance(names.get("__loader__"), SourceFileLoader) or Path(file).is_file():
                yield Path(file)


def _verdict(error: Refusal | AsyncTaskError | OSError) -> tuple[int, str]:
    """The exit code, and what is wrong, with the line of the application if there is one: then it is its fault."""
    if isinstance(error, Refusal):
        return error.exit_code, str(error)
    code, words = verdict(error)
    where = where_raised(error)
    if not where or code not in (CONFIGURATION, UNEXPECTED):
        return code, words
    if code == UNEXPECTED:
        words = f"importing the application raised {type(error).__name__}: {first_line(str(error))}"
    return CONFIGURATION, f"{words} ({where})"


def _state(file: Path) -> State:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _moments(file: Path) -> tuple[int, ...]:
    """When its content was written, and when it came to this place or was changed otherwise: `mv` keeps the first."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ctime_ns
