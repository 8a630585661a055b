"""What calls answer: what they returned, or `Raised`. Nothing that a call raises ends its thread or its event loop."""

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from typing import Any


class Raised:
    """The exception that a call raised; a bare exception is one that it returned."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def returned_or_raised(work: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine: what it returned, or `Raised`."""
    # It must be caught inside of the loop: SystemExit and KeyboardInterrupt would end the loop.
    try:
        return await work
    except BaseException as error:
        return _raised(error)


def uncanceled(wait: Callable[[], Any]) -> Any:
    """What `wait` returns, or `Raised`: a coroutine that cancels its own task and returns at once is canceled only when
    the task has ended."""
    try:
        return wait()
    except asyncio.CancelledError as error:
        return _raised(error)


def called(function: Callable[[], Any]) -> Any:
    """Call a plain function here: what it returned, or `Raised`."""
    try:
        return function()
    except BaseException as error:
        return _raised(error)


def _raised(error: BaseException) -> Raised:
    if isinstance(error, MemoryError):
        # Free what the call has allocated: we need memory to write its failure.
        traceback.clear_frames(error.__traceback__)
    return Raised(error)
