"""Lanes: where attempts are performed. A lane is a thread with an engine; on an AsyncEngine it also has an event loop,
and all that touches the database runs in a greenlet on it, so that there is one body of code for both."""

import asyncio
import contextlib
import contextvars
import datetime as dt
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.util import await_only, greenlet_spawn  # wants greenlet only when used

from async_task.database.dialects import disconnect, limit_session, unlimit_session
from async_task.database.engines import Source

T = TypeVar("T")


class Raised:
    """What a call raised, kept apart from an exception that it returned."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Severable(Protocol):
    """What can be ended from outside of its thread."""

    def sever(self) -> None: ...


class Lane:
    """On a synchronous engine. `engine` may be used inside of `run` only."""

    is_async = False
    """Whether its thread runs a loop while it works."""

    def __init__(self, source: Source, *, private: bool = False) -> None:
        self.engine: Engine = source.private() if private else source.shared()
        self._owns = private or self.engine.pool is not source.pool
        self._runner: asyncio.Runner | None = None
        self._connection: Connection | None = None
        self._lent_with: Any = None
        self.transaction: Severable | None = None
        """The transaction of the call that is being performed alone."""

    def run(self, work: Callable[[], T]) -> T:
        """Do `work`, which may use the database."""
        return work()

    @property
    def connection(self) -> Connection:
        """One that stays open, for what is done again and again. Inside of `run`, or of `meanwhile`."""
        if self._connection is None:
            self._connection = self.engine.connect()
            limit_session(self._connection, LOCKED_LIMIT.total_seconds())
            self._connection.rollback()  # what it began with that
        return self._connection

    @property
    def autocommit(self) -> Connection:
        """The same for single statements, each of which is a transaction by itself. A lane has one of the two."""
        if self._connection is None:
            # Of the connection: an option of the engine would come before the one that the engine has already.
            self._connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return self._connection

    def lend(self) -> Connection:
        """A connection for the transaction of a call that is performed alone, until `take_back`: the one that stays
        open if there is one, else one of the pool. Inside of `run`."""
        if self._connection is None:
            return self.engine.connect()
        self._lent_with = self._connection.get_execution_options()
        return self._connection

    def limit(self, connection: Connection, seconds: float) -> None:
        """What was lent may idle, and its statements run, for so long: see `limit_session`. In its transaction."""
        if connection is not self._connection or seconds != LOCKED_LIMIT.total_seconds():
            limit_session(connection, seconds)

    def take_back(self, connection: Connection, seconds: float, *, is_sound: bool) -> None:
        """What was lent, and limited to so many seconds, is in no transaction now; unless it is not sound."""
        if connection is not self._connection:
            try:
                if is_sound:
                    unlimit_session(connection)
                    connection.rollback()
            finally:
                connection.close()
        elif not is_sound:
            self.drop_connection()
        elif self._must_return():
            self._end_connection()
        elif seconds != LOCKED_LIMIT.total_seconds():
            limit_session(connection, LOCKED_LIMIT.total_seconds())
            connection.rollback()

    def _must_return(self) -> bool:
        """Whether what was lent must not stay open: its target gave it other options, which would be those of all that
        follows; or somebody listens to what returns to the pool, most likely to clear what was set on it."""
        assert self._connection is not None
        pool: Any = self.engine.pool.dispatch
        is_changed = self._connection.get_execution_options() is not self._lent_with
        return is_changed or bool(pool.checkout or pool.checkin or pool.reset)

    def drop_connection(self) -> None:
        """It met an error: end it, with whatever it had begun, and open another one when it is asked for."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.invalidate()
            with contextlib.suppress(Exception):
                connection.close()

    def sever(self) -> None:
        """Cut off the transaction of the call that this lane performs alone, from another thread: its locks are free as
        soon as the server notices, and nothing about the call is written."""
        transaction = self.transaction
        if transaction is not None:
            transaction.sever()

    def hang_up(self) -> None:
        """End what `connection` does at the database, from another thread, perhaps waiting for somebody's lock."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(Exception):
                disconnect(connection)

    def meanwhile(self, work: Callable[[], T]) -> T:
        """Do `work`, which may use `connection`, on another thread while this lane makes a `call`."""
        return work()

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine returned, or `Raised`. Inside of `run`."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        runner = self._runner
        return _uncanceled(lambda: runner.run(kept(work), context=contextvars.copy_context()))

    @contextlib.contextmanager
    def guarded(self, guard: threading.Lock) -> Iterator[None]:
        """Hold a lock that whoever does something `meanwhile` holds too. Inside of `run`."""
        # On a loop it would block what the other waits for.
        while not guard.acquire(blocking=not self.is_async):
            rest(0.001)
        try:
            yield
        finally:
            guard.release()

    def call(self, function: Callable[[], Any]) -> Any:
        """What a plain function that uses no session of ours returned, or `Raised`. Inside of `run`."""
        return _tried(function)

    def call_here(self, function: Callable[[], Any]) -> Any:
        """The same for one that uses a session of ours, where the connection of that lives. Inside of `run`."""
        return _tried(function)

    def close(self) -> None:
        """End the loop, and the connections that are this lane's own."""
        if self._runner is not None:
            self._runner.close()
        self._end_connection()
        if self._owns:
            self.engine.dispose()

    def _end_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncLane(Lane):
    """On an AsyncEngine: with a loop, and connections of its own, which no other loop may touch."""

    is_async = True

    def __init__(self, source: Source) -> None:
        super().__init__(source, private=True)
        self._loop = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1, "async-task-call")

    def run(self, work: Callable[[], T]) -> T:
        if has_loop_running():  # inside of another `run` of this lane
            return work()
        return self._loop.run(_spawned(work), context=contextvars.copy_context())

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        # In a task of its own, as in `Lane.wait`: what the target does to its task must not befall the lane.
        return _uncanceled(lambda: await_only(asyncio.get_running_loop().create_task(kept(work))))

    def call(self, function: Callable[[], Any]) -> Any:
        # In a thread without a running loop: a plain function may want to start one.
        context = contextvars.copy_context()
        return await_only(self._loop.get_loop().run_in_executor(self._thread, lambda: context.run(_tried, function)))

    def meanwhile(self, work: Callable[[], T]) -> T:
        # The call has left the loop, which waits for it: there, and nowhere else, the connection may be used.
        return asyncio.run_coroutine_threadsafe(_spawned(work), self._loop.get_loop()).result()

    def close(self) -> None:
        self.run(self._end_connection)
        self.run(self.engine.dispose)
        self._thread.shutdown()
        self._loop.close()


class LoopLane(Lane):
    """On the event loop that runs, for work in its greenlets, many at a time, with connections of this loop alone."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, private=True)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return _uncanceled(lambda: await_only(asyncio.get_running_loop().create_task(kept(work))))

    def call(self, function: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()
        return await_only(asyncio.get_running_loop().run_in_executor(None, lambda: context.run(_tried, function)))


def open_lane(source: Source, *, private: bool = False) -> Lane:
    """A lane of the kind that `source` needs; `private`: with connections that no other lane or process shares."""
    lane = AsyncLane(source) if source.is_async else Lane(source, private=private)
    try:
        source.introduce(lambda: lane.run(lambda: lane.engine.connect().close()))
    except BaseException:
        lane.close()
        raise
    return lane


async def _spawned(work: Callable[[], T]) -> T:
    return await greenlet_spawn(work)


async def kept(work: Coroutine[Any, Any, Any]) -> Any:
    """What it returned, or `Raised`."""
    # Here, inside of the loop: SystemExit and KeyboardInterrupt would tear the loop down.
    try:
        return await work
    except BaseException as error:
        return _raised(error)


def _uncanceled(wait: Callable[[], Any]) -> Any:
    """A target that cancels its task and returns at once is seen to be canceled only when the task has ended."""
    try:
        return wait()
    except asyncio.CancelledError as error:
        return _raised(error)


def _tried(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except BaseException as error:
        return _raised(error)


def _raised(error: BaseException) -> Raised:
    if isinstance(error, MemoryError):
        # What the call has taken is needed to write down that it failed.
        traceback.clear_frames(error.__traceback__)
    return Raised(error)


def rest(seconds: float) -> None:
    """Sleep, and let others run meanwhile: a thread, or the loop of this greenlet."""
    if has_loop_running():
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def has_loop_running() -> bool:
    """Whether this thread runs an event loop now, which a synchronous verb would block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


LOCKED_LIMIT = dt.timedelta(seconds=60)
