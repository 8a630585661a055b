"""The line of the user's code that caused something: where a warning belongs."""

import asyncio
import gc
import inspect
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeAlias

Task: TypeAlias = asyncio.Task[Any]
_BETWEEN = {"async_task", "sqlalchemy", "sqlmodel", "contextlib", "greenlet", "asyncio"}
"""The packages between the user's code and this library."""


def warn_caller(message: str, category: type[Warning], running: Task | None, waiting: Task | None) -> None:
    """Warn at the innermost line of the user's code: of those that called this function in the task that is `running`,
    else of those at which the task `waiting` waits. An AsyncSession closes in a greenlet, or in a task of its own."""
    frames = (*_callers(running), *reversed([*_awaiting(waiting)]))
    frame = next(filter(_is_users, frames), None)
    if frame is None:
        warnings.warn(message, category, stacklevel=1)
        return
    # Python shows a warning once for each line, and remembers the lines in their module.
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__")
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)


def _is_users(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _BETWEEN


def _callers(running: Task | None) -> Iterator[FrameType]:
    """The frames that are being executed, the innermost first, also those outside of this greenlet; but not those of
    the event loop around this asyncio task, and of the program that runs the loop."""
    frame = inspect.currentframe()
    first = None if running is None else getattr(running.get_coro(), "cr_frame", None)
    greenlet: Any = sys.modules["greenlet"].getcurrent() if "greenlet" in sys.modules else None
    while frame is not None:
        yield frame
        if frame is first:
            return
        frame = frame.f_back
        while frame is None and (greenlet := getattr(greenlet, "parent", None)) is not None:
            frame = greenlet.gr_frame


def _awaiting(task: Task | None) -> Iterator[FrameType]:
    """The frames of the coroutines and asynchronous generators of a task that waits, the outermost first."""
    awaited: Any = None if task is None else task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            yield frame
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
        else:  # what waits for the next item of a generator has no attribute that names it
            awaited = next(filter(inspect.isasyncgen, gc.get_referents(awaited)), None)
