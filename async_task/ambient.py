"""Which transaction is open here: begun by this thread and this asyncio task, and by nobody else."""

import asyncio
import sys
import threading
import warnings
import weakref
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from async_task.errors import AmbiguousTransaction, LostAttemptWarning, NoTransaction

# Keyed by thread and asyncio task. A contextvar would not do: child tasks and worker threads inherit it.
_Here = tuple[int, int]
_begun: dict[_Here, list["_Begun"]] = {}
_where, _held = "async_task.where", "async_task.held"


class _Begun:
    """One root transaction that is open; weak, because a session that is dropped tells nobody."""

    __slots__ = ("session", "task")

    def __init__(self, session: Session, task: "asyncio.Task[Any] | None") -> None:
        self.session = weakref.ref(session)
        self.task = None if task is None else weakref.ref(task)

    def is_of(self, task: "asyncio.Task[Any] | None") -> bool:
        """Whether it was begun by `task` itself: ids of tasks are used again."""
        return (self.task() if self.task else None) is task and self.session() is not None


def ambient_session() -> Session:
    """The session of the one transaction begun by this thread and this asyncio task.

    Raises NoTransaction when there is none, AmbiguousTransaction when there are several. Never a guess.
    """
    task = _current_task()
    found = [begun.session() for begun in _begun.get(_place(task), ()) if begun.is_of(task)]
    sessions = [session for session in found if session is not None and session.in_transaction()]
    if len(sessions) == 1:
        return sessions[0]
    if not sessions:
        raise NoTransaction(
            "no transaction is open in this thread and asyncio task, so nothing says when the call shall exist: "
            "create the attempt inside `with session.begin():`, or give session="
        )
    raise AmbiguousTransaction(
        f"{len(sessions)} transactions are open in this thread and asyncio task: say which one with session="
    )


def hold(session: Session) -> None:
    """Remember that `session` holds an attempt created without `session=`, to warn if it closes without a commit."""
    session.info[_held] = session.info.get(_held, 0) + 1


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _place(task: "asyncio.Task[Any] | None") -> _Here:
    return threading.get_ident(), id(task)


@event.listens_for(Session, "after_transaction_create")
def _note_begin(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        task = _current_task()
        here = session.info[_where] = _place(task)
        still_open = [begun for begun in _begun.get(here, ()) if begun.is_of(task)]
        _begun[here] = [*still_open, _Begun(session, task)]


@event.listens_for(Session, "after_transaction_end")
def _note_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None:
        return
    here = session.info.pop(_where, None)
    if here is not None:
        rest = [begun for begun in _begun.pop(here, ()) if begun.session() not in (session, None)]
        if rest:
            _begun[here] = rest
    _warn_if_lost(session)


@event.listens_for(Session, "after_commit")
@event.listens_for(Session, "after_rollback")
def _settled(session: Session) -> None:
    # The release of a SAVEPOINT comes here too, and is no commit.
    if not session.in_nested_transaction():
        session.info.pop(_held, None)


def _warn_if_lost(session: Session) -> None:
    held = session.info.pop(_held, 0)
    if held and sys.exc_info()[0] is None:
        warnings.warn(
            f"a session was closed without a commit while it held {held} attempt(s): these calls will never be made",
            LostAttemptWarning,
            stacklevel=2,
        )
