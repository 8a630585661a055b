"""Which child process performs a call: an idle one, or another one."""

import threading

from async_task.outcomes import Outcome
from async_task.queue.claim import Claim
from async_task.worker.processes.parent import Child, Children, Gone, NotPerformed

TRIES = 3


class Isolation:
    """Performs each call in a child, any number at once. The child that was busy last is used first: children that are
    not needed for long end by themselves."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._idle: list[Child] = []
        self._is_closed = False
        self._guard = threading.Lock()

    def perform_isolated(self, claim: Claim, limit: float | None, longest_silence: float | None = None) -> Outcome:
        """Returns the outcome of a claim; `limit`: seconds that its call may take, `longest_silence`: for which it may
        hold the GIL. May be called from several threads.

        Raises TookTooLong when the call was ended for that, Died when it killed the child, else NotPerformed.
        """
        how = ""
        for _ in range(TRIES):
            child = self._take()
            try:
                return child.request(claim, limit, longest_silence)
            except Gone as gone:
                how = str(gone)
            finally:
                self._put_back(child)
        raise NotPerformed(f"no process for its call stays alive: {how}", started=False)

    def close(self) -> None:
        """Let idle children end, and busy ones when they have answered."""
        with self._guard:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.leave()

    def _take(self) -> Child:
        while (child := self._waiting()) is not None:
            if child.is_idle:
                return child
            child.end()
        return self._children.start()

    def _waiting(self) -> Child | None:
        with self._guard:
            return self._idle.pop() if self._idle else None

    def _put_back(self, child: Child) -> None:
        if child.is_over:
            return
        with self._guard:
            if not self._is_closed:
                self._idle.append(child)
                return
        child.leave()


MARGIN = 5.0
"""Seconds past its limit after which a suspect's process is ended: before that the server has ended its transaction, or
asyncio its coroutine, which is gentler."""


LONGEST_SILENCE = 8.0
"""Seconds for which the call of a suspect may hold the GIL. That is what a supervised worker process allows, too."""


class Quarantine:
    """Performs suspects, each in a child that performs nothing else meanwhile, for any number of threads."""

    def __init__(self, children: Children) -> None:
        self._child = Isolation(children)

    def perform_suspect(self, claim: Claim, limit: float | None) -> Outcome:
        """As `Isolation.perform_isolated`; without a limit the call may take any time, or until `Children.close`. A
        call that holds the GIL for too long has died: nothing else could end it."""
        return self._child.perform_isolated(claim, None if limit is None else limit + MARGIN, LONGEST_SILENCE)

    def close(self) -> None:
        self._child.close()
