"""The ambient transaction: the one that this thread, this asyncio task and this context have begun."""

import asyncio
import inspect
import sys
import threading
import warnings
import weakref
from contextvars import ContextVar
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from async_task.errors import AmbiguousTransaction, LostAttemptWarning, NoTransaction

_Task = asyncio.Task[Any]
_Place = dict["weakref.ref[Session]", None]
"""The sessions with a transaction that was begun in one thread or asyncio task. Weak, because nothing is called when a
session is dropped."""


class _Thread(threading.local):
    def __init__(self) -> None:
        self.place: _Place = {}


# Not a contextvar, which child tasks and worker threads inherit; nor ids, which later threads and tasks get again.
_thread = _Thread()
_tasks: weakref.WeakKeyDictionary[_Task, _Place] = weakref.WeakKeyDictionary()
_OPEN = "async_task.open"
# The context is compared too: a web framework runs a request's dependency in one thread of its pool and its endpoint in
# another, in which the dependency of a third request may have left its transaction open. With the thread alone, 90 of
# 92 calls were written into the transaction of another request.
_begun: ContextVar[frozenset["weakref.ref[_Open]"]] = ContextVar("async_task_begun", default=frozenset())


class _Open:
    """A session's open root transaction: where it was begun, and how many new attempts each SAVEPOINT in it has."""

    __slots__ = ("__weakref__", "has_ended", "place", "task", "unsaved")

    def __init__(self, task: _Task | None) -> None:
        self.place = _thread.place if task is None else _tasks.setdefault(task, {})
        self.task = None if task is None else weakref.ref(task)
        self.unsaved: dict[SessionTransaction | None, int] = {}
        self.has_ended = False
        # Pruned here, not at the transaction's end, which is in another context for an AsyncSession.
        still_open = (ref for ref in _begun.get() if (one := ref()) is not None and not one.has_ended)
        _begun.set(frozenset((*still_open, weakref.ref(self))))


def ambient_session() -> Session:
    """The session of the one transaction begun by this thread and this asyncio task.

    Raises NoTransaction where there is none, AmbiguousTransaction where there are several. One that was begun in
    another context, as by a dependency of a web framework, does not count.
    """
    task = _current_task()
    place = _thread.place if task is None else _tasks.get(task, {})
    found = [begun() for begun in list(place)]
    open_here = [session for session in found if session is not None and session.in_transaction()]
    mine = _begun.get()
    sessions = [session for session in open_here if weakref.ref(session.info[_OPEN]) in mine]
    if len(sessions) == 1:
        return sessions[0]
    if not sessions:
        raise NoTransaction(
            "no transaction is open in this thread and asyncio task, with which the call could commit: "
            "create the attempt inside `with session.begin():`, or give session= (where a framework begins it, say)"
        )
    raise AmbiguousTransaction(
        f"{len(sessions)} transactions are open in this thread and asyncio task: say which one with session="
    )


def note_created(session: Session) -> None:
    """Remember that an attempt was created in `session` without `session=`, to warn if that closes without a commit."""
    opened = session.info.get(_OPEN)
    if opened is not None:
        _count(opened, _innermost(session), 1)


def _current_task() -> _Task | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@event.listens_for(Session, "after_transaction_create")
def _note_begin(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        opened = session.info[_OPEN] = _Open(_current_task())
        place = opened.place
        place[weakref.ref(session, lambda gone: place.pop(gone, None))] = None


@event.listens_for(Session, "after_transaction_end")
def _note_end(session: Session, transaction: SessionTransaction) -> None:
    opened = session.info.get(_OPEN)
    if opened is None:
        return
    if transaction.parent is not None:
        # The attempts of a SAVEPOINT that ends are its parent's; of one that was rolled back there are none.
        _count(opened, _innermost(session), opened.unsaved.pop(transaction, 0))
        return
    del session.info[_OPEN]
    opened.has_ended = True
    opened.place.pop(weakref.ref(session), None)
    if opened.unsaved and not _is_raising(opened):
        _warn_of_loss(sum(opened.unsaved.values()))


@event.listens_for(Session, "after_commit")
def _note_commit(session: Session) -> None:
    # The release of a SAVEPOINT comes here too, but is not a commit.
    if not session.in_nested_transaction() and (opened := session.info.get(_OPEN)):
        opened.unsaved.clear()


@event.listens_for(Session, "after_rollback")
def _note_rollback(session: Session) -> None:
    if opened := session.info.get(_OPEN):
        opened.unsaved.pop(_innermost(session), None)


def _innermost(session: Session) -> SessionTransaction | None:
    return session.get_nested_transaction() or session.get_transaction()


def _count(opened: _Open, transaction: SessionTransaction | None, number: int) -> None:
    if number:
        opened.unsaved[transaction] = opened.unsaved.get(transaction, 0) + number


def _is_raising(opened: _Open) -> bool:
    """Whether an exception is being raised, which says more than a warning could.

    An AsyncSession closes in a task of its own, which does not see the exception. It is then among the arguments of the
    `__aexit__` that the task awaits which began the transaction.
    """
    if sys.exc_info()[0] is not None:
        return True
    task = opened.task() if opened.task else None
    awaited: Any = task.get_coro() if task else None
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        if frame.f_code.co_name == "__aexit__" and any(_is_exception(value) for value in frame.f_locals.values()):
            return True
        awaited = awaited.cr_await
    return False


def _is_exception(value: object) -> bool:
    return isinstance(value, BaseException) or (isinstance(value, tuple) and any(map(_is_exception, value)))


def _warn_of_loss(number: int) -> None:
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"a session was closed without a commit while it had {number} new attempt(s): these calls will never be made",
        LostAttemptWarning,
        stacklevel=level,
    )


# Python shows a warning once for each line, so it must be the line that closed the session.
_BETWEEN = {"async_task", "sqlalchemy", "sqlmodel", "contextlib", "greenlet", "asyncio"}
