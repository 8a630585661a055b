"""Objects whose row a statement of ours has changed. A rollback takes that back in the object too.

SQLAlchemy expires what its own flush has written after a SAVEPOINT, once that is rolled back, and does not know of our
statements. An object that was new in what is rolled back leaves the session, with the values that it has: with ours it
could not be written again.
"""

import weakref
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import event, inspect
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.attributes import instance_dict

_KEY = "async_task.changed_objects"


class _Change(NamedTuple):
    """`before`: the values of its attributes `names` that were loaded before the change."""

    changed: "weakref.ref[Any]"
    names: Collection[str]
    before: dict[str, Any]


_Changes = dict[SessionTransaction | None, list[_Change]]
"""By the transaction or SAVEPOINT in which they were made."""


def refresh_changed(
    session: Session, changed: Any, names: Collection[str], *, only: Sequence[str] | None = None
) -> None:
    """Read an object again whose attributes `names` a statement has just changed in the session's transaction; of its
    attributes `only` these, or all."""
    known = instance_dict(changed)
    change = _Change(weakref.ref(changed), names, {name: known[name] for name in names if name in known})
    session.refresh(changed, only)
    changes: _Changes = session.info.setdefault(_KEY, {})
    changes.setdefault(session.get_nested_transaction() or session.get_transaction(), []).append(change)


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    changes: _Changes = session.info.get(_KEY, {})
    nested = session.get_nested_transaction()
    if nested is None:
        changes.clear()
    elif released := changes.pop(nested, None):
        changes.setdefault(nested.parent, []).extend(released)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    changes: _Changes = session.info.get(_KEY, {})
    for change in reversed(changes.pop(transaction, [])):  # it was not committed
        changed = change.changed()
        if changed is not None:
            _take_back(session, changed, change)


def _take_back(session: Session, changed: Any, change: _Change) -> None:
    """Give it the values from before, and not those of the row: it may be about to leave the session, as it is new in a
    transaction that is rolled back too."""
    values = instance_dict(changed)
    for name in change.names:
        values.pop(name, None)
    values.update(change.before)
    state, unknown = inspect(changed), [name for name in change.names if name not in change.before]
    if unknown and state.persistent and state.session is session:
        session.expire(changed, unknown)
