"""What calls answer: what they returned, or `Raised`. Nothing that a call raises ends its thread or its event loop. A
process that a call forks ends where the call does."""

import asyncio
import logging
import os
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger("async_task")


class Raised:
    """The exception that a call raised; a bare exception is one that it returned."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def returned_or_raised(work: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine: what it returned, or `Raised`."""
    # It must be caught inside of the loop: SystemExit and KeyboardInterrupt would end the loop.
    process = os.getpid()
    try:
        return await work
    except BaseException as error:
        return _raised(error)
    finally:
        _end_forked(process)


def uncanceled(wait: Callable[[], Any]) -> Any:
    """What `wait` returns, or `Raised`: a coroutine that cancels its own task and returns at once is canceled only when
    the task has ended."""
    try:
        return wait()
    except asyncio.CancelledError as error:
        return _raised(error)


def called(function: Callable[[], Any]) -> Any:
    """Call a plain function here: what it returned, or `Raised`."""
    process = os.getpid()
    try:
        return function()
    except BaseException as error:
        return _raised(error)
    finally:
        _end_forked(process)


def _end_forked(process: int) -> None:
    """End this process if it was forked from `process`: both would write the outcome, through one connection."""
    if (own := os.getpid()) != process:
        logger.error("process %d was forked by a call, and ends where the call does: end it with os._exit", own)
        os._exit(1)


def _raised(error: BaseException) -> Raised:
    if isinstance(error, MemoryError):
        # Free what the call has allocated: we need memory to write its failure.
        traceback.clear_frames(error.__traceback__)
    return Raised(error)
