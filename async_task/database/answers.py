"""What calls answer: what they returned, or `Raised`. Nothing that a call raises ends its thread or its event loop, and
all that it answers can be read. A process that a call forks ends where the call does."""

import asyncio
import logging
import os
import threading
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from async_task.error_text import readable

T = TypeVar("T")
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
        return _readable_answer(await work)
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
        return _readable_answer(function())
    except BaseException as error:
        return _raised(error)
    finally:
        _end_forked(process)


def _end_forked(process: int) -> None:
    """End this process if it was forked from `process`: both would write the outcome, through one connection."""
    if (own := os.getpid()) != process:
        logger.error("process %d was forked by a call, and ends where the call does: end it with os._exit", own)
        os._exit(1)


def run_to_end(run: Callable[[Coroutine[Any, Any, T]], T], work: Coroutine[Any, Any, T]) -> T:
    """`run(work)`, to the end of `work`, where `run` returns what a coroutine returns: also if another task leaves the
    event loop by SystemExit, as asyncio lets it, or stops the loop."""
    tasks: list[asyncio.Task[T]] = []

    async def noted() -> T:
        task: asyncio.Task[T] | None = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        return await work

    following = noted()
    while True:
        try:
            return run(following)
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            is_of_work = not tasks or tasks[0].done() or tasks[0].get_loop().is_closed()
            is_pressed = isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
            if is_of_work or is_pressed:
                raise
            following = _result_of(tasks[0])


async def _result_of(task: "asyncio.Task[T]") -> T:
    return await task


def _readable_answer(answer: Any) -> Any:
    """None in the place of what cannot even be asked for its class, like a weak reference to what is gone."""
    if answer is not None:
        try:
            answer.__class__  # noqa: B018 - it may raise
        except BaseException:
            return None
    return answer


def _raised(error: BaseException) -> Raised:
    error = readable(error)
    if isinstance(error, MemoryError):
        # Free what the call has allocated: we need memory to write its failure.
        traceback.clear_frames(error.__traceback__)
    return Raised(error)
