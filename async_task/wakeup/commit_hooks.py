"""Arrivals: attempts that a transaction has made and that are due at once. When it commits, whoever waits is woken: in
this process by the bell, elsewhere by a notice."""

import contextlib
import functools
import weakref
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.orm import Mapper, Session, SessionTransaction

from async_task.wakeup import notify
from async_task.wakeup.in_process import Notifier, found_notifier, hangs_anywhere

Counts = dict[str, int]
"""How many, by queue."""
_KEY = "async_task.arrivals"


def arrive(session: Session, mapper: Mapper[Any], counts: Mapping[str, int]) -> None:
    """So many attempts of this model are made in the session's transaction, and due when it commits."""
    arrivals = session.info.get(_KEY)
    if arrivals is None:
        arrivals = session.info[_KEY] = _Arrivals()
    arrivals.add(_innermost(session), mapper.base_mapper, counts)


def arrive_by(connection: Connection, table: Table, counts: Mapping[str, int]) -> None:
    """The same on a Core connection, where they are written already."""
    notify.notify_sleepers(connection, table, counts)
    _ring_with(connection, table, counts)


class _Arrivals:
    """Of a session's root transaction, by SAVEPOINT."""

    __slots__ = ("held", "is_committing", "told")

    def __init__(self) -> None:
        self.held: dict[SessionTransaction | None, dict[Mapper[Any], Counts]] = {}
        self.told: set[Mapper[Any]] = set()
        self.is_committing = False

    def add(self, transaction: SessionTransaction | None, model: Mapper[Any], counts: Mapping[str, int]) -> None:
        held = self.held.setdefault(transaction, {}).setdefault(model, {})
        for queue, number in counts.items():
            held[queue] = held.get(queue, 0) + number

    def promote(self, transaction: SessionTransaction) -> None:
        """What a SAVEPOINT holds that is released, its parent holds."""
        for model, counts in self.held.pop(transaction, {}).items():
            self.add(transaction.parent, model, counts)


@event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    if session.in_nested_transaction():
        return
    arrivals = session.info.get(_KEY)
    if arrivals is None:
        arrivals = session.info[_KEY] = _Arrivals()  # what listens to the flush may still make some
    arrivals.is_committing = True
    # Told as late as possible, so that who falls asleep meanwhile is seen: after the flush, where there is one. It is
    # not flushed here: other listeners to this event want to see what is new.
    if arrivals.held and not session.new:
        _tell(session, arrivals)


@event.listens_for(Session, "after_flush")
def _after_flush(session: Session, _context: Any) -> None:
    arrivals = session.info.get(_KEY)
    if arrivals is not None and arrivals.is_committing and arrivals.held:
        _tell(session, arrivals)


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    arrivals = session.info.get(_KEY)
    if arrivals is None or not arrivals.held:
        return
    nested = session.get_nested_transaction()
    if nested is not None:
        arrivals.promote(nested)
    elif hangs_anywhere():
        # It is committed: nothing may now tell the caller otherwise. At the worst, polling finds the rows.
        with contextlib.suppress(Exception):
            _ring(session, arrivals)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_KEY, None)
    elif (arrivals := session.info.get(_KEY)) is not None:
        arrivals.held.pop(transaction, None)  # a SAVEPOINT that was rolled back


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _root(session: Session, arrivals: _Arrivals) -> dict[Mapper[Any], Counts]:
    return arrivals.held.get(session.get_transaction(), {})


def _tell(session: Session, arrivals: _Arrivals) -> None:
    for model, counts in _root(session, arrivals).items():
        if model not in arrivals.told:
            arrivals.told.add(model)
            bind = session.get_bind(**_where(model))
            if notify.may_notify(bind.engine, _table(model)):
                connection = session.connection(bind_arguments=_where(model))
                # On somebody else's connection it is somebody else's transaction, and goes on.
                notify.notify_sleepers(connection, _table(model), counts, ends=isinstance(bind, Engine))


def _ring(session: Session, arrivals: _Arrivals) -> None:
    for model, counts in _root(session, arrivals).items():
        bind = session.get_bind(**_where(model))
        if isinstance(bind, Engine):
            _ring_at(found_notifier(_table(model), bind.url), counts)
        else:
            _ring_with(bind, _table(model), counts)


@functools.lru_cache(maxsize=64)
def _where(model: Mapper[Any]) -> dict[str, Any]:
    """The bind for a statement that writes: a session may read elsewhere."""
    return {"mapper": model, "clause": _table(model).insert()}


def _table(model: Mapper[Any]) -> Table:
    table = model.local_table
    assert isinstance(table, Table)
    return table


def _ring_at(notifier: Notifier | None, counts: Mapping[str, int]) -> None:
    if notifier is not None:
        for queue, number in counts.items():
            notifier.notify(queue, number)


# A Core connection says only that it is about to commit. The bell is rung a moment too early, and again by nobody: who
# was woken looks often for a while.


_expected: "weakref.WeakKeyDictionary[Connection, list[tuple[Notifier, Counts]]]" = weakref.WeakKeyDictionary()
"""What is rung when a connection commits."""


def _ring_with(connection: Connection, table: Table, counts: Mapping[str, int]) -> None:
    notifier = found_notifier(table, connection.engine.url)
    if notifier is None:
        return
    if not connection.in_transaction():
        _ring_at(notifier, counts)
        return
    if connection not in _expected:
        _expected[connection] = []
    if not event.contains(connection, "commit", _ring_expected):
        event.listen(connection, "commit", _ring_expected)
        event.listen(connection, "rollback", _forget_expected)
    _expected[connection].append((notifier, dict(counts)))


def _ring_expected(connection: Connection) -> None:
    for notifier, counts in _expected.pop(connection, ()):
        _ring_at(notifier, counts)


def _forget_expected(connection: Connection) -> None:
    _expected.pop(connection, None)
