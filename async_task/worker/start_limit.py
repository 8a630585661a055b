"""How many attempts a batch may start: what its lanes claim is reserved, and restored if it is not started."""

import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Set

from async_task.queue.claim import Claim


class StartLimit:
    """`most`: how many; None: no limit. Its methods may be called by several threads.

    Queues that were denied because nothing was left are returned by what restores something: they are to be asked
    again.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._left = most or 0
        self._num_started = 0
        self._reserved: set[tuple[uuid.UUID, uuid.UUID]] = set()
        """By claim: what one lane has released, another one may have claimed before the first is done."""
        self._denied: set[str] = set()
        self._guard = threading.Lock()

    @property
    def is_spent(self) -> bool:
        """Whether as many have been started as it allows."""
        return self._most is not None and self._num_started >= self._most

    def at_most(self, number: int) -> int:
        """How many of `number` it allows."""
        return number if self._most is None else min(number, self._most)

    def grant(self, queue: str, number: int) -> int:
        """How many of `number` may be claimed from this queue."""
        if self._most is None:
            return number
        with self._guard:
            granted = min(number, self._left)
            self._left -= granted
            if not granted:
                self._denied.add(queue)
            return granted

    def reserve(self, claims: Collection[Claim], granted: int) -> Set[str]:
        """Reserve a start for each of these, out of what was granted for them; restore the others."""
        if self._most is None:
            return frozenset()
        with self._guard:
            self._reserved.update(_keys(claims))
            return self._restore(granted - len(claims))

    def note_started(self, claims: Collection[Claim]) -> None:
        if self._most is not None:
            with self._guard:
                self._reserved.difference_update(_keys(claims))
                self._num_started += len(claims)

    def restore_unstarted(self, claims: Collection[Claim]) -> Set[str]:
        """Restore the starts of those among these claims that were not started."""
        if self._most is None:
            return frozenset()
        with self._guard:
            unstarted = self._reserved.intersection(_keys(claims))
            self._reserved -= unstarted
            return self._restore(len(unstarted))

    def _restore(self, number: int) -> Set[str]:
        if not number:
            return frozenset()
        self._left += number
        denied, self._denied = self._denied, set()
        return denied


def _keys(claims: Iterable[Claim]) -> Iterator[tuple[uuid.UUID, uuid.UUID]]:
    return ((claim.id, claim.claim_id) for claim in claims)
