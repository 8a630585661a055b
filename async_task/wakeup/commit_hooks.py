"""Commit hooks: after a commit with new due attempts, wake waiting threads here and NOTIFY other processes.

1. A session counts its new attempts by SAVEPOINT, so that those that are rolled back are not counted.
2. `before_commit`, and `after_flush` within a commit, send the NOTIFY, in the same transaction.
3. `after_commit` of the outermost transaction wakes the threads of this process.
"""

import contextlib
import uuid
import weakref
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.orm import Mapper, Session, SessionTransaction

from async_task.database.dialects import CALLED_AFTER_COMMIT
from async_task.database.sessions import write_arguments
from async_task.wakeup import notify
from async_task.wakeup.in_process import Notifier, find_notifier, has_notifiers

Counts = dict[str, int]
"""The number of new due attempts, by queue."""
_KEY = "async_task.new_attempts"


def wake_after_commit(
    session: Session, mapper: Mapper[Any], counts: Mapping[str, int], ids: Collection[uuid.UUID]
) -> None:
    """When the session's transaction commits, notify of this model's new due attempts in it; `counts` is by queue."""
    _new_attempts(session).add(_innermost(session), mapper.base_mapper, counts, ids)


def wake_after_connection_commit(connection: Connection, table: Table, counts: Mapping[str, int]) -> None:
    """The same for a Core connection on which the attempts are already written."""
    notify.notify_sleepers(connection, table, counts)
    _wake_with(connection, table, counts)


def new_attempts(session: Session) -> dict[Mapper[Any], frozenset[uuid.UUID]]:
    """The ids of the new due attempts of the session's outermost transaction, by model."""
    attempts: _NewAttempts | None = session.info.get(_KEY)
    found = {} if attempts is None else attempts.ids.get(session.get_transaction(), {})
    return {model: frozenset(ids) for model, ids in found.items() if ids}


class _NewAttempts:
    """The new due attempts of a session's outermost transaction, by SAVEPOINT, model and queue."""

    __slots__ = ("by_transaction", "ids", "is_committing", "notified")

    def __init__(self) -> None:
        self.by_transaction: dict[SessionTransaction | None, dict[Mapper[Any], Counts]] = {}
        self.ids: dict[SessionTransaction | None, dict[Mapper[Any], list[uuid.UUID]]] = {}
        self.notified: set[Mapper[Any]] = set()
        """Models for which a NOTIFY was sent."""
        self.is_committing = False

    def add(
        self, transaction: SessionTransaction | None, model: Mapper[Any], counts: Mapping[str, int],
        ids: Collection[uuid.UUID],
    ) -> None:  # fmt: skip
        self.ids.setdefault(transaction, {}).setdefault(model, []).extend(ids)
        sums = self.by_transaction.setdefault(transaction, {}).setdefault(model, {})
        for queue, number in counts.items():
            sums[queue] = sums.get(queue, 0) + number

    def add_to_parent(self, transaction: SessionTransaction) -> None:
        """Move what a released SAVEPOINT has made to the transaction around it."""
        ids = self.ids.pop(transaction, {})
        for model, counts in self.by_transaction.pop(transaction, {}).items():
            self.add(transaction.parent, model, counts, ids.get(model, ()))

    def forget(self, transaction: SessionTransaction) -> None:
        """Forget what a SAVEPOINT has made that was rolled back."""
        self.by_transaction.pop(transaction, None)
        self.ids.pop(transaction, None)


@event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    if session.in_nested_transaction():
        return
    attempts = _new_attempts(session)  # also if there are none yet: listeners to the flush may still make some
    attempts.is_committing = True
    # The NOTIFY is sent as late as possible, to reach workers that fall asleep now: after the flush, if there is one.
    # We do not flush here: other listeners to this event want to see what is new in the session.
    if attempts.by_transaction and not session.new:
        _notify(session, attempts)


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _context: Any) -> None:
    attempts = session.info.get(_KEY)
    if attempts is not None and attempts.is_committing and attempts.by_transaction:
        _notify(session, attempts)


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    attempts = session.info.get(_KEY)
    if attempts is None or not attempts.by_transaction:
        return
    nested = session.get_nested_transaction()
    if nested is not None:
        attempts.add_to_parent(nested)
    elif has_notifiers():
        # The commit is done: an error here must not look like a failed commit. Polling finds the rows anyway.
        with contextlib.suppress(Exception):
            _wake(session, attempts)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_KEY, None)
    elif (attempts := session.info.get(_KEY)) is not None:
        attempts.forget(transaction)


def _new_attempts(session: Session) -> _NewAttempts:
    attempts: _NewAttempts | None = session.info.get(_KEY)
    if attempts is None:
        attempts = session.info[_KEY] = _NewAttempts()
    return attempts


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _outermost_counts(session: Session, attempts: _NewAttempts) -> dict[Mapper[Any], Counts]:
    return attempts.by_transaction.get(session.get_transaction(), {})


def _notify(session: Session, attempts: _NewAttempts) -> None:
    for model, counts in _outermost_counts(session, attempts).items():
        if model not in attempts.notified:
            attempts.notified.add(model)
            bind = session.get_bind(**write_arguments(model))
            if notify.may_notify(bind.engine, _table(model)):
                connection = session.connection(bind_arguments=write_arguments(model))
                # A session on a connection joins a transaction of somebody else, which continues after this commit.
                notify.notify_sleepers(connection, _table(model), counts, ends=isinstance(bind, Engine))


def _wake(session: Session, attempts: _NewAttempts) -> None:
    for model, counts in _outermost_counts(session, attempts).items():
        bind = session.get_bind(**write_arguments(model))
        if isinstance(bind, Engine):
            _wake_threads(find_notifier(_table(model), bind.url), counts)
        else:
            _wake_with(bind, _table(model), counts)


def _table(model: Mapper[Any]) -> Table:
    table = model.local_table
    assert isinstance(table, Table)
    return table


def _wake_threads(notifier: Notifier | None, counts: Mapping[str, int]) -> None:
    if notifier is not None:
        for queue, number in counts.items():
            notifier.notify(queue, number)


# A Core connection has an event just before its COMMIT, and none after it. So threads are woken a moment too early, and
# only once: a thread that was woken polls often for a while.


_uncommitted: "weakref.WeakKeyDictionary[Connection, list[tuple[Notifier, Counts]]]" = weakref.WeakKeyDictionary()
"""The notifiers to call when a connection commits."""


def _wake_with(connection: Connection, table: Table, counts: Mapping[str, int]) -> None:
    notifier = find_notifier(table, connection.engine.url)
    if notifier is None:
        return
    if not connection.in_transaction():
        _wake_threads(notifier, counts)
        return
    if connection not in _uncommitted:
        _uncommitted[connection] = []
    if not event.contains(connection, "commit", _on_commit):
        event.listen(connection, "commit", _on_commit)
        event.listen(connection, "rollback", _on_rollback)
    _uncommitted[connection].append((notifier, dict(counts)))


def _on_commit(connection: Connection) -> None:
    for notifier, counts in _uncommitted.pop(connection, ()):
        _wake_threads(notifier, counts)


CALLED_AFTER_COMMIT.add(_on_commit)


def _on_rollback(connection: Connection) -> None:
    _uncommitted.pop(connection, None)
