"""Where suspects are performed: one after the other, in a child process that does nothing else, so that a poison call
takes no neighbour along, and blame is exact."""

import threading

from async_task.outcomes import Outcome
from async_task.queue.claim import Claim
from async_task.worker.processes.parent import Children
from async_task.worker.processes.pool import Isolation

MARGIN = 5.0
"""Seconds past its limit after which a suspect's process is ended: before that the server has ended its transaction, or
asyncio its coroutine, which is gentler."""


class Quarantine:
    """Performs one suspect at a time, whoever asks."""

    def __init__(self, children: Children) -> None:
        self._child = Isolation(children)
        self._one = threading.Lock()

    def perform(self, claim: Claim, limit: float | None) -> Outcome:
        """As `Isolation.perform`; without a limit it may take as long as it wants, or until `Children.close`."""
        with self._one:
            return self._child.perform(claim, None if limit is None else limit + MARGIN)

    def close(self) -> None:
        self._child.close()
