"""What becomes of the calls that a test writes: manual, inline or off.

- manual: they wait for `perform_all`. This is the default.
- inline: they are performed when the session commits that wrote them, also where its commit is a SAVEPOINT's. Attempts
  that waited before wait for `perform_all`.
- off: they are checked, and not written. The test needs no tables.
"""

import contextlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Mapper, Session, SessionTransaction

from async_task.attempts import unwritten
from async_task.database.sessions import write_arguments
from async_task.errors import ConfigurationError
from async_task.testing.performing import perform_on
from async_task.testing.sessions import session_class_of
from async_task.wakeup.commit_hooks import new_attempts

MODES = ("manual", "inline", "off")
_KEY = "async_task.inline"
_mode = ["manual"]
_performing = [False]


@contextmanager
def mode(name: str, /) -> Iterator[None]:
    """Inside of this, calls are written and performed in this mode, in the whole process: "manual", "inline" or "off".

        with mode("inline"):
            client.post("/orders", json={"number": 17})

    inline: what a call raises is raised by the `commit()`, after its outcome is written. These wait for `perform_all`,
    and no later commit performs them: calls that are due later, retries, calls that were not performed because one
    before them raised, those that another thread or task commits while calls are performed, and those that
    `create_many` writes on a Core connection. Raises ConfigurationError for an unknown mode.
    """
    check_mode(name)
    before = _mode[0]
    _enter(name)
    try:
        yield
    finally:
        _enter(before)


def check_mode(name: object) -> None:
    """Raise ConfigurationError unless it is the name of a mode."""
    if name not in MODES:
        raise ConfigurationError(f"mode is one of {', '.join(map(repr, MODES))}, not {name!r}")


def _enter(name: str) -> None:
    _mode[0] = name
    unwritten.is_off = name == "off"
    for point, listener in (("after_commit", _note), ("after_transaction_end", _perform)):
        if name == "inline" and not event.contains(Session, point, listener):
            event.listen(Session, point, listener, insert=True)  # before the counts of commit hooks are forgotten
        elif name != "inline" and event.contains(Session, point, listener):
            event.remove(Session, point, listener)


def _note(session: Session) -> None:
    if not session.in_nested_transaction() and not _performing[0]:
        session.info[_KEY] = new_attempts(session)


def _perform(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None:
        return
    for mapper, written in session.info.pop(_KEY, {}).items():
        _performing[0] = True  # what these calls write is performed with them
        try:
            _perform_model(session, mapper, written)
        finally:
            _performing[0] = False


def _perform_model(session: Session, mapper: Mapper[Any], written: frozenset[uuid.UUID]) -> None:
    bind: Any = session.get_bind(**write_arguments(mapper))
    if isinstance(bind, Connection) and bind.in_transaction():
        _perform_on(bind, session, mapper, written)
        return
    with contextlib.nullcontext(bind) if isinstance(bind, Connection) else bind.connect() as connection:
        own = connection.begin()
        try:
            _perform_on(connection, session, mapper, written)
        finally:  # also if a call raised: its outcome is written
            own.commit()


def _perform_on(connection: Connection, session: Session, mapper: Mapper[Any], written: frozenset[uuid.UUID]) -> None:
    options = {"autoflush": session.autoflush, "expire_on_commit": session.expire_on_commit}
    perform_on(connection, [mapper.class_], session_class_of(session), options, raises=True, written=written)
