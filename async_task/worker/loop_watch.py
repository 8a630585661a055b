"""Watches whether an event loop answers. A coroutine that blocks it, with `time.sleep` or a synchronous client, holds
up all others of its process."""

import asyncio
import logging
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from pathlib import PurePath

logger = logging.getLogger("async_task")
EVERY = 1.0
"""Seconds between two questions to the loop."""
PATIENCE = 2.0
"""Seconds in which the loop must answer."""
_INSTALLED = (*{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}, "<")


class LoopWatch:
    """A thread that asks the loop of `thread` whether it answers, while `num_running()` calls run on it. `freed` is
    called when a blocked loop answers again."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: threading.Thread,
        num_running: Callable[[], int],
        freed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._thread = thread
        self._num_running = num_running
        self._freed = freed
        self._is_over = threading.Event()
        self.is_blocked = False
        threading.Thread(target=self._live, name="async-task-loop-watch", daemon=True).start()

    def close(self) -> None:
        self._is_over.set()

    def _live(self) -> None:
        while not self._is_over.wait(EVERY):
            if self._num_running():
                self._ask()

    def _ask(self) -> None:
        answered = threading.Event()
        try:
            self._loop.call_soon_threadsafe(answered.set)
        except RuntimeError:  # it is closed
            return
        if answered.wait(PATIENCE) or self._is_over.is_set():
            return
        task = asyncio.current_task(self._loop)
        if task is None:  # no coroutine runs: the loop waits for its turn on a busy machine
            return
        self.is_blocked = True
        logger.warning(
            "the event loop of this process has not answered for %g s: %s blocks it, and all other coroutines wait; "
            "await something, use asyncio.to_thread(), or make the target a plain def", PATIENCE, self._place_of(task),
        )  # fmt: skip
        while not (answered.wait(EVERY) or self._is_over.is_set()):
            pass
        self.is_blocked = False
        self._freed()

    def _place_of(self, task: "asyncio.Task[object]") -> str:
        """The task that runs now, and where: the innermost line of no installed package."""
        frame = sys._current_frames().get(self._thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
        frames = traceback.extract_stack(frame)
        own = [one for one in frames if not one.filename.startswith(_INSTALLED)] or frames
        if not own:
            return task.get_name()
        return f"{task.get_name()}, in {own[-1].name}, {PurePath(own[-1].filename).name}:{own[-1].lineno},"
