"""The bell: rung in this process when attempts have come to be due, so that a lane that waits looks at once."""

import os
import threading
import weakref
from collections.abc import Collection
from typing import Any

from sqlalchemy import URL, Table

MOST_REMEMBERED = 1_000
"""So many queues are remembered as rung; polling finds what waits in further ones."""


class Notifier:
    """One for an attempts table in this process, however many lanes wait for it; see `bell_of`.

    A ring is for as many lanes as there are new rows: of those that wait, else of those that come to wait. A lane is a
    thread, and hears a ring once. What is rung while a lane looks is therefore heard by its next `wait`.
    """

    def __init__(self) -> None:
        # Reentrant: a signal may arrive in a thread that holds it, and the handler calls `wake`.
        self._lock = threading.RLock()
        self._mine = threading.local()
        self._waiting: dict[_Ear, None] = {}
        self._rung: dict[str, _Ring] = {}
        self._number = 0
        self._woken = 0

    def notify(self, queue: str, number: int = 1) -> None:
        """So many rows of this queue are due: wake at most as many lanes, those first that came to wait last."""
        with self._lock:
            self._number += 1
            for ear in reversed(list(self._waiting)):
                if number < 1:
                    break
                if ear.listens_to(queue):
                    self._wake(ear, queue)
                    number -= 1
            if number > 0:
                self._remember(queue, number)

    def wake(self) -> None:
        """Wake every lane, once, for no queue: something else is to be looked at, such as the end."""
        with self._lock:
            self._number += 1
            self._woken = self._number
            for ear in list(self._waiting):
                self._wake(ear, None)

    def wait(self, timeout: float, queues: Collection[str] | None = None) -> frozenset[str]:
        """The queues rung since this thread's last wait, as soon as there is one; of `queues`, where they are given.

        Empty after `timeout` seconds, and after a `wake`. Begin anew to look often after a ring: the row may be
        committed a moment later, where it was written on a Core connection.
        """
        ear = self._ear()
        with self._lock:
            ear.begin(queues)
            # Before it asks: a signal's handler may wake it in between.
            self._waiting[ear] = None
            self._hear_what_was_rung(ear)
        ear.called.wait(timeout)
        with self._lock:
            if self._waiting.pop(ear, ear) is None:
                ear.last_heard = self._number
        return frozenset(ear.rung)

    def _hear_what_was_rung(self, ear: "_Ear") -> None:
        """Call it at once for what was rung, for it too, while it was away."""
        since = ear.last_heard
        heard = [queue for queue, ring in self._rung.items() if ring.number > since and ear.listens_to(queue)]
        for queue in heard:
            self._rung[queue].left -= 1
            if self._rung[queue].left < 1:
                del self._rung[queue]
            self._wake(ear, queue)
        if self._woken > since:
            self._wake(ear, None)

    def _wake(self, ear: "_Ear", queue: str | None) -> None:
        self._waiting.pop(ear, None)
        ear.last_heard = self._number
        if queue is not None:
            ear.rung.add(queue)
        ear.called.set()

    def _remember(self, queue: str, number: int) -> None:
        before = self._rung.pop(queue, None)
        self._rung[queue] = _Ring(self._number, number + (before.left if before else 0))
        if len(self._rung) > MOST_REMEMBERED:
            del self._rung[next(iter(self._rung))]

    def _ear(self) -> "_Ear":
        ear: _Ear | None = getattr(self._mine, "ear", None)
        if ear is None:
            ear = self._mine.ear = _Ear()
        return ear


class _Ear:
    """One thread's."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.rung: set[str] = set()
        self.last_heard = 0
        self._queues: Collection[str] | None = None

    def begin(self, queues: Collection[str] | None) -> None:
        self._queues = queues
        self.rung = set()
        self.called.clear()

    def listens_to(self, queue: str) -> bool:
        return self._queues is None or queue in self._queues


class _Ring:
    """The last ring for a queue that not enough lanes have heard."""

    __slots__ = ("left", "number")

    def __init__(self, number: int, left: int) -> None:
        self.number = number
        self.left = left


_Place = tuple[Table, str, Any, Any, Any]
_bells: "weakref.WeakValueDictionary[_Place, Notifier]" = weakref.WeakValueDictionary()
_making = threading.Lock()


def notifier_of(table: Table, url: URL) -> Notifier:
    """This process's bell for this table in this database. It hangs there for as long as somebody keeps it."""
    with _making:
        place = place_of(table, url)
        notifier = _bells.get(place)
        if notifier is None:
            notifier = _bells[place] = Notifier()
        return notifier


def found_notifier(table: Table, url: URL) -> Notifier | None:
    """The same, where there is one: where a worker lives in this process."""
    return _bells.get(place_of(table, url)) if _bells else None


def hangs_anywhere() -> bool:
    """Whether there is any bell in this process."""
    return bool(_bells)


def place_of(table: Table, url: URL) -> _Place:
    """A table in a database, by whatever driver: what differs otherwise costs no more than a look in vain."""
    return table, url.get_backend_name(), url.host, url.port, url.database


def _forget_all() -> None:
    global _making  # noqa: PLW0603 - another thread may have held it at the fork
    _making = threading.Lock()
    _bells.clear()


if hasattr(os, "register_at_fork"):
    # The lanes are in the parent, and a lock of theirs may have been held: it would never be free in the child.
    os.register_at_fork(after_in_child=_forget_all)
