"""Messages about the tries of rows that are their own jobs, to the users of these rows.

They are decided in the transaction that has written how a try has ended. It has changed the row, and so locked it: only
one such transaction of a row is open at a time.
"""

import datetime as dt
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, inspect, select
from sqlalchemy.orm import Session

from async_task.asyncable.verbs import read
from async_task.attempts.chain import with_key
from async_task.attempts.messages import FAILING_AFTER, has_message_hook, message_about_outcome
from async_task.database.lanes import Lane, lend_lane
from async_task.database.sessions import routed_as_writes
from async_task.error_text import describe
from async_task.schema.tables import table_of

logger = logging.getLogger("async_task")


def tell_of_error(connection: Connection, lane: Lane, model: type[Any], key: Any) -> None:
    """A try of the row with this key has raised. What goes wrong here is logged, and undoes nothing else."""
    age = _age(connection, model, key)
    if age is None:
        return
    with _logged(model, key), Session(connection, join_transaction_mode="create_savepoint") as session:
        lend_lane(session, lane)
        with session.begin():
            _tell(session, model, key, age, has_failed=True)


def tell_of_success(session: Session, model: type[Any], key: Any) -> None:
    """The row with this key is processed; else as `tell_of_error`."""
    with routed_as_writes(session, inspect(model)) as connection:
        age = _age(connection, model, key)
    if age is None:
        return
    with _logged(model, key), session.begin_nested():
        _tell(session, model, key, age, has_failed=False)


def _age(connection: Connection, model: type[Any], key: Any) -> dt.timedelta | None:
    """Since the row was last submitted; None if that is too short for a message, or if this process has no hook."""
    if not has_message_hook(table_of(model.processing.model)):
        return None
    found = read(connection, model, key, is_locked=True)
    if found is None or found.last_submitted_at.is_null() or found.last_submitted_at.is_after(FAILING_AFTER):
        return None
    age: dt.timedelta = found.last_submitted_at.now - found.last_submitted_at.value
    return age


def _tell(session: Session, model: type[Any], key: Any, age: dt.timedelta, *, has_failed: bool) -> None:
    row = session.scalars(with_key(model, select(model), key)).first()
    if row is not None:
        message_about_outcome(session, row, age, has_failed=has_failed)


@contextmanager
def _logged(model: type[Any], key: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        logger.error("%s %s: no message is sent: %s", model.__name__, key, describe(error).summary)
