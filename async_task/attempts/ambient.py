"""The ambient transaction: the one that this thread, this asyncio task and this context have begun."""

import asyncio
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.session import SessionTransactionState as _State

from async_task.attempts.callers import warn_caller
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
_handed: ContextVar[tuple[Session, int, _Task | None, bool] | None] = ContextVar("async_task_handed", default=None)
"""The session that a target was handed, where it is called, and whether the session may have begun elsewhere."""
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

    Within a target, also the session that it was handed, which begins now if it has not. Raises NoTransaction where
    there is none, AmbiguousTransaction where there are several. One that was begun in another context, as by a
    dependency of a web framework, does not count.
    """
    task = _current_task()
    place = _thread.place if task is None else _tasks.get(task, {})
    found = [begun() for begun in list(place)]
    known = [session for session in found if session is not None and _OPEN in session.info]  # a user may clear that
    open_here = [session for session in known if session.in_transaction()]
    mine = _begun.get()
    begun_here = [session for session in open_here if weakref.ref(session.info[_OPEN]) in mine]
    sessions = [session for session in begun_here if _ended(session) is None]
    if len(sessions) == 1:
        return sessions[0]
    if sessions:
        raise AmbiguousTransaction(
            f"{len(sessions)} transactions are open in this thread and asyncio task: say which one with session=, "
            "in Attempt.create(...) or in Attempt.options(...).call(...)"
        )
    for session in begun_here:
        check_writable(session)
    if (handed := _handed_session(task)) is not None:
        if not handed.in_transaction():
            handed.begin()
        return handed
    raise NoTransaction(
        "give session=, with whose transaction the call is to commit, in Attempt.create(...) or "
        "Attempt.options(...).call(...): this thread and asyncio task has begun none. A session begins when it is "
        "first used (`add`, a query), or by `with session.begin():`"
    )


def check_writable(session: Session) -> None:
    """Raise NoTransaction if the session's transaction has ended and can write nothing more, as in a listener to
    `after_commit`: what is added to the session then is not in that transaction."""
    if (ended := _ended(session)) is not None:
        raise NoTransaction(
            f"this session's transaction is {ended} already, so that the call cannot commit with it: create the "
            "attempt before that (in a listener to before_commit, say), or in a transaction of another session, "
            "session="
        )


def _ended(session: Session) -> str | None:
    """How the session's transaction has ended, if it has and is still there; a SAVEPOINT may have been rolled back."""
    root: Any = session.get_transaction()
    if root is None:
        return None
    inner: Any = _innermost(session)
    # `is_active` is False too while a connection is being provided, in a listener to after_begin.
    states = [transaction._state for transaction in (root, inner)]
    if _State.DEACTIVE in states:
        return "rolled back"
    return {_State.PREPARED: "prepared", _State.COMMITTED: "committed", _State.CLOSED: "closed"}.get(states[0])


@contextmanager
def handed(session: Session, *, has_begun: bool = False) -> Iterator[None]:
    """Inside of this, in this thread and asyncio task, `session` is ambient, also before it has begun; and with
    `has_begun` also if it has begun in another one."""
    token = _handed.set((session, threading.get_ident(), _current_task(), has_begun))
    try:
        yield
    finally:
        _handed.reset(token)


@contextmanager
def nothing_handed() -> Iterator[None]:
    """Inside of this, no session counts as handed: a call is written down in a transaction that is begun here, or in
    none."""
    token = _handed.set(None)
    try:
        yield
    finally:
        _handed.reset(token)


@contextmanager
def none_begun() -> Iterator[None]:
    """Inside of this, no transaction that was begun before is ambient, and no session counts as handed: as in a thread
    of its own."""
    token = _begun.set(frozenset())
    try:
        with nothing_handed():
            yield
    finally:
        _begun.reset(token)


def _handed_session(task: _Task | None) -> Session | None:
    session, thread, own_task, has_begun = _handed.get() or (None, None, None, False)
    is_here = thread == threading.get_ident() and own_task is task  # a child task or thread inherits the context
    return session if session is not None and is_here and (has_begun or not session.in_transaction()) else None


def note_created(session: Session) -> None:
    """Remember that an attempt was created in `session` without `session=`, to warn if that closes without a commit."""
    opened = session.info.get(_OPEN)
    if opened is not None:
        _count(opened, _innermost(session), 1)


def forget_created(session: Session) -> None:
    """Give no warning of the attempts that were created in `session` so far: a test rolls them back on purpose."""
    opened = session.info.get(_OPEN)
    if opened is not None:
        opened.unsaved.clear()


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
        number = sum(opened.unsaved.values())
        words = "a session was closed without a commit while it had"
        warn_caller(
            f"{words} {number} new attempt(s): these calls will never be made",
            LostAttemptWarning,
            running=_current_task(),
            waiting=opened.task() if opened.task else None,
        )


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
