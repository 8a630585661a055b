"""Transactions that are savepoints in the transaction of somebody else's connection.

`SavepointEngine` is an engine for the library's own code. Each of its connections is on the borrowed driver connection:
BEGIN sets a savepoint there, COMMIT releases it, and ROLLBACK rolls back to it. Nothing is ever committed.
"""

import itertools
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import RootTransaction

_numbers = itertools.count(1)


class SavepointEngine(Engine):
    """An engine on a connection that is in a transaction, and stays in it."""

    def __init__(self, borrowed: Connection) -> None:
        given: Any = borrowed.engine
        super().__init__(given.pool, given.dialect, given.url, hide_parameters=given.hide_parameters)
        options = {name: value for name, value in borrowed.get_execution_options().items() if name != "isolation_level"}
        self.update_execution_options(**options)
        self._compiled_cache = given._compiled_cache
        self._borrowed = borrowed
        # With a listener, no statement bypasses SQLAlchemy in a pipeline, in which a COMMIT would be sent.
        event.listen(self, "before_execute", _hear)
        _begin(borrowed)

    def connect(self) -> Connection:
        return SavepointConnection(self, self._borrowed)

    def dispose(self, close: bool = True) -> None:
        """Nothing is disposed of: the pool is somebody else's."""


class SavepointConnection(Connection):
    """A connection whose outermost transaction is a savepoint on `borrowed`. Closing it leaves that open."""

    def __init__(self, engine: SavepointEngine, borrowed: Connection) -> None:
        super().__init__(engine, borrowed.connection, _allow_revalidate=False)
        self._savepoint = ""

    def close(self) -> None:
        transaction = self.get_transaction()
        try:
            if transaction is not None:
                transaction.close()
        finally:
            self._dbapi_connection = None

    def _begin_impl(self, transaction: RootTransaction) -> None:
        self._savepoint = f"async_task_{next(_numbers)}"
        self._send(f"SAVEPOINT {self._savepoint}")

    def _commit_impl(self) -> None:
        self._send(f"RELEASE SAVEPOINT {self._savepoint}")

    def _rollback_impl(self) -> None:
        self._send(f"ROLLBACK TO SAVEPOINT {self._savepoint}")
        self._send(f"RELEASE SAVEPOINT {self._savepoint}")

    def _savepoint_impl(self, name: str | None = None) -> str:
        # Each connection counts its own savepoints, and MySQL deletes one of the same name that is further out.
        return super()._savepoint_impl(name or f"sa_savepoint_{1_000_000 + next(_numbers)}")

    def _send(self, text: str) -> None:
        try:
            _execute(self, text)
        except BaseException as error:
            handle: Any = self._handle_dbapi_exception
            handle(error, text, None, None, None)


def _begin(borrowed: Connection) -> None:
    """Let the driver begin the transaction that SQLAlchemy believes to be in. sqlite3 begins only before it writes, and
    a savepoint that is the outermost of all would be committed by its release."""
    driver = borrowed.connection.driver_connection
    if not getattr(driver, "in_transaction", True):
        _execute(borrowed, "BEGIN")


def _execute(connection: Connection, text: str) -> None:
    cursor = connection.connection.cursor()
    try:
        cursor.execute(text)
    finally:
        cursor.close()


def _hear(*_given: Any, **_more: Any) -> None:
    return None
