"""Lanes on the connection of a test's session: calls are performed as a worker does, in savepoints."""

import asyncio
import contextvars
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

from sqlalchemy import Connection, Engine

from async_task.database.answers import returned_or_raised
from async_task.database.driver_errors import note_faults
from async_task.database.engines import Source
from async_task.database.greenlets import has_loop_running
from async_task.database.lanes import Lane, LaneTransaction, LoopLane
from async_task.database.reading import explain_refusals
from async_task.database.savepoints import prepare_to_lend
from async_task.testing.savepoint_connection import SavepointEngine


class _Borrowed(Lane):
    limits_transactions = False  # they would end the test's own transaction, while somebody debugs a call

    def __init__(self, engine: SavepointEngine) -> None:
        self.engine: Engine = engine
        self._owns = False
        self._runner = None
        self._connection = None
        self._options_when_lent = None
        self.transaction: LaneTransaction | None = None

    def lend_connection(self, isolation: str | None = None) -> Connection:
        return self.engine.connect()  # its isolation level is that of the test's transaction

    def limit(self, connection: Connection, seconds: float) -> None:
        """The limits of the test's session are its own."""

    def return_connection(self, connection: Connection, seconds: float, *, is_sound: bool) -> None:
        connection.close()


class BorrowedLane(_Borrowed):
    """On the connection of a synchronous session."""

    def run_coroutine(self, work: Coroutine[Any, Any, Any]) -> Any:
        if not has_loop_running():
            return super().run_coroutine(work)
        # The test is a coroutine itself. No loop may be started inside of its own.
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1, "async-task-call") as thread:
            return thread.submit(context.run, asyncio.run, returned_or_raised(work)).result()


class BorrowedLoopLane(_Borrowed, LoopLane):
    """On the connection of an AsyncSession: coroutines run on the test's own loop."""


class BorrowedSource(Source):
    """The database of a session, and how it makes sessions: as the session itself was made."""

    def __init__(self, connection: Connection, session_class: type[Any], session_options: dict[str, Any]) -> None:
        self.session_class = session_class
        self.session_options = session_options
        self.context = nullcontext
        self.is_async = connection.dialect.is_async
        self._is_ours = False
        self._find = None
        self._found = connection.engine
        self._is_initialized = True
        note_faults(connection.dialect)
        explain_refusals(connection.dialect)
        prepare_to_lend(connection.dialect)

    @property
    def isolation(self) -> str | None:
        return None
