"""Coroutines in greenlets: where synchronous code may use the connections of an AsyncEngine, and must not block."""

import asyncio
import contextlib
import functools
import threading
import time
import types
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.util import await_only  # it needs greenlet only when called
from sqlalchemy.util.concurrency import in_greenlet


def may_load(bind: Engine | Connection) -> bool:
    """Whether a statement may be executed here. On an AsyncEngine only inside of `run_sync`: elsewhere it would raise,
    and leave a coroutine that nobody awaits."""
    return not bind.dialect.is_async or in_greenlet()


def run_in_greenlet(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that runs in this greenlet, as synchronous code does; only what it waits for is awaited
    by the event loop. A task of its own would be no greenlet, and could not use the connections."""
    resume = functools.partial(work.send, None)
    while True:
        try:
            awaited = resume()
        except StopIteration as stop:
            return stop.value
        try:
            await_only(_passed_on(awaited))
            resume = functools.partial(work.send, None)
        except BaseException as error:
            resume = functools.partial(work.throw, error)


@types.coroutine
def _passed_on(awaited: Any) -> Generator[Any, Any, None]:
    yield awaited


def sleep(seconds: float) -> None:
    """Sleep, without blocking the event loop if this is a greenlet on one."""
    if has_loop_running():
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


@contextlib.contextmanager
def holding(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock, without blocking the event loop on which whoever has it may need to come to an end."""
    while not lock.acquire(blocking=not has_loop_running()):
        sleep(0.001)
    try:
        yield
    finally:
        lock.release()


def has_loop_running() -> bool:
    """Whether this thread runs an event loop now, which a synchronous call would block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
