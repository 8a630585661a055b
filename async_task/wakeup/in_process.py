"""The notifier: wakes waiting threads of this process when attempts have become due."""

import os
import threading
import weakref
from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import URL, Table

MAX_REMEMBERED = 1_000
"""The maximum of queues for which notifications are kept; what waits in others is found by polling."""


class Notifier:
    """Wakes the threads of this process that wait for rows of one attempts table; see `notifier_of`.

    A notification is for as many threads as there are new rows: first those that wait now, then those that wait next.
    Each thread gets a notification once. So what arrives while a thread polls ends its next `wait`.
    """

    def __init__(self) -> None:
        # Reentrant: a signal may arrive in a thread that has the lock, and its handler calls `wake`.
        self._lock = threading.RLock()
        self._mine = threading.local()
        self._waiting: dict[_Waiter, None] = {}
        self._kept: dict[str, _Notification] = {}
        self._number = 0
        self._woken = 0

    def notify(self, queue: str, number: int = 1) -> None:
        """`number` rows of this queue are due: wake at most as many threads, those first that came to wait last."""
        woken: list[_Waiter] = []
        with self._lock:
            self._number += 1
            for waiter in reversed(list(self._waiting)):
                if len(woken) >= number:
                    break
                if waiter.wants(queue):
                    self._wake(waiter, queue)
                    woken.append(waiter)
            if number > len(woken):
                self._keep(queue, number - len(woken))
        # Without the lock: it may take another one, whose holder may want to wake somebody.
        for waiter in woken:
            waiter.tell(queue)

    def wake(self) -> None:
        """Wake every thread, once, for no queue: for another reason, such as the end of the worker."""
        with self._lock:
            self._number += 1
            self._woken = self._number
            for waiter in list(self._waiting):
                self._wake(waiter, None)

    def wait(
        self, timeout: float, queues: Collection[str] | None = None, tell: Callable[[str], object] | None = None
    ) -> frozenset[str]:
        """Wait for a notification: the queues notified since this thread's last wait; only of `queues`, if given.
        `tell` is called for each of them, by the thread that notifies, which need not wait until this thread runs.

        Empty after `timeout` seconds, and after a `wake`. Poll often for a while after a notification: a row that was
        written on a Core connection may be committed a moment later.
        """
        waiter = self._waiter()
        with self._lock:
            waiter.begin(queues, tell)
            # Before it takes what was kept: a signal handler may wake it in between.
            self._waiting[waiter] = None
            self._take_kept(waiter)
            kept = tuple(waiter.queues)
        for queue in kept:
            waiter.tell(queue)
        waiter.woken.wait(timeout)
        with self._lock:
            if self._waiting.pop(waiter, waiter) is None:
                waiter.last_seen = self._number
        return frozenset(waiter.queues)

    def _take_kept(self, waiter: "_Waiter") -> None:
        """Wake it at once for the notifications that it missed since its last wait."""
        since = waiter.last_seen
        missed = [queue for queue, kept in self._kept.items() if kept.number > since and waiter.wants(queue)]
        for queue in missed:
            self._kept[queue].left -= 1
            if self._kept[queue].left < 1:
                del self._kept[queue]
            self._wake(waiter, queue)
        if self._woken > since:
            self._wake(waiter, None)

    def _wake(self, waiter: "_Waiter", queue: str | None) -> None:
        self._waiting.pop(waiter, None)
        waiter.last_seen = self._number
        if queue is not None:
            waiter.queues.add(queue)
        waiter.woken.set()

    def _keep(self, queue: str, number: int) -> None:
        before = self._kept.pop(queue, None)
        self._kept[queue] = _Notification(self._number, number + (before.left if before else 0))
        if len(self._kept) > MAX_REMEMBERED:
            del self._kept[next(iter(self._kept))]

    def _waiter(self) -> "_Waiter":
        waiter: _Waiter | None = getattr(self._mine, "waiter", None)
        if waiter is None:
            waiter = self._mine.waiter = _Waiter()
        return waiter


class _Waiter:
    """A thread that waits, or has waited. `queues`: for which it was woken. `last_seen`: the number of the last
    notification by then."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.queues: set[str] = set()
        self.last_seen = 0
        self.tell: Callable[[str], object] = _nothing
        self._wanted: Collection[str] | None = None

    def begin(self, wanted: Collection[str] | None, tell: Callable[[str], object] | None) -> None:
        self._wanted = wanted
        self.tell = tell or _nothing
        self.queues = set()
        self.woken.clear()

    def wants(self, queue: str) -> bool:
        return self._wanted is None or queue in self._wanted


def _nothing(_queue: str) -> None:
    """The `tell` of a waiter that gave none."""


class _Notification:
    """The last notification of a queue, and for how many rows no thread was woken yet (`left`)."""

    __slots__ = ("left", "number")

    def __init__(self, number: int, left: int) -> None:
        self.number = number
        self.left = left


TableKey = tuple[Table, str, Any, Any, Any]
_notifiers: "weakref.WeakValueDictionary[TableKey, Notifier]" = weakref.WeakValueDictionary()
_making = threading.Lock()


def notifier_of(table: Table, url: URL) -> Notifier:
    """The notifier of this process for this table in this database. It lives as long as somebody refers to it."""
    with _making:
        key = table_key(table, url)
        notifier = _notifiers.get(key)
        if notifier is None:
            notifier = _notifiers[key] = Notifier()
        return notifier


def find_notifier(table: Table, url: URL) -> Notifier | None:
    """The same, if it exists: if a worker for this table runs in this process."""
    return _notifiers.get(table_key(table, url)) if _notifiers else None


def has_notifiers() -> bool:
    """Whether any notifier exists in this process."""
    return bool(_notifiers)


def table_key(table: Table, url: URL) -> TableKey:
    """A table in a database, through any driver. If two URLs of one database differ, that costs only wake-ups."""
    return table, url.get_backend_name(), url.host, url.port, url.database


def _forget_all() -> None:
    global _making  # noqa: PLW0603 - another thread may have had it at the fork
    _making = threading.Lock()
    _notifiers.clear()


if hasattr(os, "register_at_fork"):
    # The child has no worker threads, and a lock that one had at the fork would never be released.
    os.register_at_fork(after_in_child=_forget_all)
