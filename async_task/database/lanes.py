"""Lanes: the threads in which attempts are performed, each with an engine.

On an AsyncEngine a lane also has an event loop, and all code that uses the database runs there in a greenlet. So the
same synchronous code serves both kinds of engine.
"""

import asyncio
import contextlib
import contextvars
import datetime as dt
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn  # they need greenlet only when called

from async_task.database.answers import called, returned_or_raised, run_to_end, uncanceled
from async_task.database.disconnection import disconnect
from async_task.database.engines import Source, keep_opened
from async_task.database.greenlets import has_loop_running, run_in_greenlet
from async_task.database.server_sessions import limit_session, unlimit_session

T = TypeVar("T")
_LANE = "async_task.lane"
OURS_ON_POOLS: set[Any] = set()
"""Our own listeners to a pool, which clear nothing."""


class LaneTransaction(Protocol):
    """The transaction of a call on a lane."""

    def disconnect(self) -> None:
        """Cut it off from the server, from another thread."""

    def close(self) -> None:
        """Roll it back unless it is committed."""


class Lane:
    """A lane on a synchronous engine. `engine` may be used inside of `run` only."""

    is_async = False
    """Whether its thread runs an event loop while it works."""
    limits_transactions = True
    """Whether the server may be told to end a transaction that takes too long."""

    def __init__(self, source: Source, *, private: bool = False) -> None:
        self.engine: Engine = source.private() if private else source.shared()
        self._owns = private or self.engine.pool is not source.pool
        self._runner: asyncio.Runner | None = None
        self._connection: Connection | None = None
        self._options_when_lent: Any = None
        self.transaction: LaneTransaction | None = None
        """The transaction of the call that is now performed by itself, or of the next call."""

    def run(self, work: Callable[[], T]) -> T:
        """Do `work`, which may use the database, and return its result."""
        return work()

    @property
    def connection(self) -> Connection:
        """The lane's own connection, which stays open. Inside of `run` or `run_during_call`."""
        if self._connection is None:
            self._connection = self.engine.connect()
            limit_session(self._connection, LOCKED_LIMIT.total_seconds())
            self._connection.rollback()  # the transaction that setting the limit began
        return self._connection

    @property
    def autocommit(self) -> Connection:
        """The lane's own connection in AUTOCOMMIT, for single statements: in a transaction that idles, the rows that
        they wrote would stay locked. A lane uses either this or `connection`."""
        if self._connection is None:
            # An option of the connection: the engine's own isolation level would win over another option of the engine.
            self._connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return self._connection

    def lend_connection(self, isolation: str | None = None) -> Connection:
        """A connection for the transaction of a call that is performed by itself: the lane's own if that is open, else
        one of the pool. `isolation`: the level of its transaction, if not READ COMMITTED. Give it to
        `return_connection` afterwards. Inside of `run`."""
        connection = self._connection or self.engine.connect()
        self._options_when_lent = connection.get_execution_options()
        if isolation is not None:  # reset when it returns to the pool: the lane's own is then closed
            connection.execution_options(isolation_level=isolation)
        return connection

    def limit(self, connection: Connection, seconds: float) -> None:
        """Limit a lent connection, in its transaction, to `seconds`: see `limit_session`."""
        if connection is not self._connection or seconds != LOCKED_LIMIT.total_seconds():
            limit_session(connection, seconds)

    def return_connection(self, connection: Connection, seconds: float, *, is_sound: bool) -> None:
        """Take back a lent connection that was limited to `seconds`. `is_sound`: it can be used again, and has no
        transaction open."""
        if connection is not self._connection:
            try:
                if is_sound:
                    unlimit_session(connection)
                    connection.rollback()
                else:
                    connection.invalidate()  # else the pool would hand it out with what is set on it
            finally:
                connection.close()
        elif not is_sound:
            self.drop_connection()
        elif self._must_close():
            self._close_connection()
        elif seconds != LOCKED_LIMIT.total_seconds():
            limit_session(connection, LOCKED_LIMIT.total_seconds())
            connection.rollback()

    def may_go_on(self, connection: Connection) -> bool:
        """Whether the next call may use a lent connection that is not returned before."""
        return connection is self._connection and not self._must_close()

    def _must_close(self) -> bool:
        """Whether the lane's own connection must not be used for another call: the target changed its options, or the
        user listens to the pool, probably to clear what a call has set on the connection."""
        assert self._connection is not None
        pool: Any = self.engine.pool.dispatch
        is_changed = self._connection.get_execution_options() is not self._options_when_lent
        if not (is_changed or pool.checkout or pool.checkin or pool.reset):
            return False
        return is_changed or any(one not in OURS_ON_POOLS for one in (*pool.checkout, *pool.checkin, *pool.reset))

    def drop_connection(self) -> None:
        """After an error, invalidate the lane's own connection and its transaction; the next use opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.invalidate()
            with contextlib.suppress(Exception):
                connection.close()

    def disconnect_call(self) -> None:
        """Cut off the transaction of the call that this lane performs by itself, from another thread: the server frees
        its locks once it notices, and nothing is written about the call."""
        transaction = self.transaction
        if transaction is not None:
            transaction.disconnect()

    def disconnect(self) -> None:
        """Cut off the lane's own connection, from another thread; it may be waiting for a lock."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(Exception):
                disconnect(connection)

    def run_during_call(self, work: Callable[[], T]) -> T:
        """Do `work`, which may use `connection`, on another thread, while this lane is in `call`."""
        return work()

    def run_coroutine(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine: what it returned, or `Raised`. Inside of `run`."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        runner = self._runner
        run: Any = partial(runner.run, context=contextvars.copy_context())
        return uncanceled(lambda: run_to_end(run, returned_or_raised(work)))

    def run_from_call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The same inside of `call` or `call_with_session`, on its thread."""
        return self.run_coroutine(work)

    def run_in_place(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine returns in which synchronous code may use the database. Raises what it raises. Inside of
        `run` or `run_during_call`."""
        with asyncio.Runner() as runner:  # the lane's own may be running a call, on its thread
            return runner.run(work)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a plain function that uses no session of ours: what it returned, or `Raised`. Inside of `run`."""
        return called(function)

    def call_with_session(self, function: Callable[[], Any]) -> Any:
        """The same for a function that uses a session of ours: on the thread of its connection. Inside of `run`."""
        return called(function)

    def close(self) -> None:
        """Close the event loop, and the lane's own connections."""
        if self._runner is not None:
            self._runner.close()
        self._close_connection()
        if self._owns:
            self.engine.dispose()

    def _close_connection(self) -> None:
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
    """A lane on an AsyncEngine, with an event loop and connections of its own: a connection belongs to its loop."""

    is_async = True

    def __init__(self, source: Source) -> None:
        super().__init__(source, private=True)
        self._loop = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1, "async-task-call")

    def run(self, work: Callable[[], T]) -> T:
        if has_loop_running():  # inside of another `run` of this lane
            return work()
        run: Any = partial(self._loop.run, context=contextvars.copy_context())
        return run_to_end(run, _spawned(work))

    def run_coroutine(self, work: Coroutine[Any, Any, Any]) -> Any:
        # In a task of its own, as in `Lane`: what the target does to its task must not happen to the lane.
        return uncanceled(lambda: await_only(asyncio.get_running_loop().create_task(returned_or_raised(work))))

    def run_from_call(self, work: Coroutine[Any, Any, Any]) -> Any:
        if has_loop_running():
            return self.run_coroutine(work)
        return asyncio.run_coroutine_threadsafe(returned_or_raised(work), self._loop.get_loop()).result()

    def run_in_place(self, work: Coroutine[Any, Any, Any]) -> Any:
        return run_in_greenlet(work)

    def call(self, function: Callable[[], Any]) -> Any:
        # On a thread without a running loop: a plain function may start one.
        context = contextvars.copy_context()
        return await_only(self._loop.get_loop().run_in_executor(self._thread, lambda: context.run(called, function)))

    def run_during_call(self, work: Callable[[], T]) -> T:
        # The loop waits for the call, and is free: the connection may be used there, and nowhere else.
        return asyncio.run_coroutine_threadsafe(_spawned(work), self._loop.get_loop()).result()

    def close(self) -> None:
        self.run(self._close_connection)
        self.run(self.engine.dispose)
        self._thread.shutdown()
        self._loop.close()


class LoopLane(Lane):
    """A lane on the running event loop, for many pieces of work at a time, each in a greenlet of the loop. Its
    connections are used by this loop alone."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, private=True)
        keep_opened(self.engine.pool)

    def run_coroutine(self, work: Coroutine[Any, Any, Any]) -> Any:
        return uncanceled(lambda: await_only(asyncio.get_running_loop().create_task(returned_or_raised(work))))

    def run_in_place(self, work: Coroutine[Any, Any, Any]) -> Any:
        return run_in_greenlet(work)

    def call(self, function: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()
        return await_only(asyncio.get_running_loop().run_in_executor(None, lambda: context.run(called, function)))


def lend_lane(session: Session, lane: Lane) -> None:
    """Let `lane_of` find the lane on which the call runs that `session` is made for."""
    session.info[_LANE] = lane


def lane_of(session: Session) -> Lane:
    """The lane of the call that was handed this session: for transactions of its own beside that of its outcome, and
    for functions that must run without one. Inside of that call."""
    lane: Lane = session.info[_LANE]
    return lane


def has_lane(session: Session) -> bool:
    """Whether it is made for a call on a lane."""
    return _LANE in session.info


def open_lane(source: Source, *, private: bool = False) -> Lane:
    """A lane of the kind that `source` needs. `private`: no other lane or process shares its connections."""
    lane = AsyncLane(source) if source.is_async else Lane(source, private=private)
    try:
        source.initialize_dialect(lambda: lane.run(lambda: lane.engine.connect().close()))
    except BaseException:
        lane.close()
        raise
    return lane


async def _spawned(work: Callable[[], T]) -> T:
    return await greenlet_spawn(work)


LOCKED_LIMIT = dt.timedelta(seconds=60)
"""How long the transaction of a locked call may last by default."""
