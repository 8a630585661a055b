"""The claims of one process. Each is made under a fresh id, by which it is found when its COMMIT got no answer."""

import datetime as dt
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Engine, Table

from async_task.database.clock import UnreadInstant
from async_task.database.dialects import probes_laterally
from async_task.database.lanes import Lane
from async_task.database.transactions import PATIENCE, retry_transient
from async_task.outcomes import Outcome, Superseded
from async_task.queue import fetch, limits
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.fenced_writes import release_claims
from async_task.queue.heavy_arguments import is_loaded, load_arguments
from async_task.queue.hooks import NO_HOOKS, Hooks
from async_task.queue.left_out import NOTHING, LeftOut
from async_task.targets.registry import limits as target_limits
from async_task.worker.heartbeat import Heartbeat
from async_task.worker.start_marks import StartMarks

T = TypeVar("T")
Claimed = tuple[list[Claim], dt.timedelta | None]
"""The claims, most urgent first, and how long to wait before the next claim where something was held back."""


class Claimer:
    """Claims for `worker`. Its methods are called inside of `lane.run`, on any number of lanes at once."""

    def __init__(
        self, table: Table, worker: str, lease: dt.timedelta, heartbeat: Heartbeat, hooks: Hooks = NO_HOOKS
    ) -> None:
        self._table = table
        self._worker = worker
        self._lease = lease
        self._heartbeat = heartbeat
        self._hooks = hooks
        self._marks: defaultdict[str, StartMarks] = defaultdict(StartMarks)

    def request(
        self,
        queue: str,
        limit: int,
        *,
        began: dt.datetime | None = None,
        suspects: bool = False,
        targets: tuple[str, ...] = (),
        besides: Sequence[tuple[str, str]] = (),
        unknown: LeftOut = NOTHING,
    ) -> ClaimRequest:
        """A request of this worker under a fresh claim id; see ClaimRequest for the rest."""
        given = (self._worker, self._lease, queue, limit, uuid.uuid4())
        return ClaimRequest(
            *given, began=began, suspects=suspects, targets=targets, besides=tuple(besides), unknown=unknown
        )

    def claim_one(self, lane: Lane, attempt_id: uuid.UUID, begin: fetch.Begin = Engine.begin) -> Claim | Outcome:
        """Claim this attempt, or return the reason why it cannot be claimed; `begin` as in `fetch.claim_one`."""
        claim_id = uuid.uuid4()

        def claim() -> Claim | Outcome:
            return fetch.claim_one(
                lane.engine, self._table, self._worker, self._lease, attempt_id, claim_id, begin, self._hooks
            )

        found = self._claimed(lane, claim_id, claim, lambda found: found[0], PATIENCE)
        if isinstance(found, Outcome) or found.is_loaded:
            return found
        loaded, _ = retry_transient(lambda: load_arguments(lane.engine, self._table, [found]))
        return loaded[0] if loaded else Superseded(attempt_id)

    def claim(self, lane: Lane, request: ClaimRequest, *, is_limited: bool, patience: float = PATIENCE) -> Claimed:
        """Claim what `request` asks for, on the lane's own connection; `is_limited`: its queue has a limit. Transient
        errors are retried for `patience` seconds."""

        def claim() -> Claimed:
            try:
                return self._claim_limited(lane, request) if is_limited else self._claim_unlimited(lane, request)
            except BaseException:
                lane.drop_connection()
                raise

        claims, after = self._claimed(lane, request.claim_id, claim, lambda found: (found, None), patience)
        return (claims, after) if is_loaded(claims) else self._loaded(lane, claims, after)

    def start_at_front(self, queue: str) -> None:
        """The next claim begins at the front: something before the marks of this queue may be due now."""
        self._marks[queue].request_front()

    def start_all_at_front(self) -> None:
        """The same of all queues."""
        for marks in list(self._marks.values()):
            marks.request_front()

    def note_released(self, claims: Iterable[Claim]) -> None:
        """These were released where they stood: the next claim of their queue finds them."""
        for claim in claims:
            self._marks[claim.queue].lower(claim.priority, UnreadInstant.read(claim.due_at))

    def _claimed(
        self,
        lane: Lane,
        claim_id: uuid.UUID,
        claim: Callable[[], T],
        found: Callable[[list[Claim]], T],
        patience: float,
    ) -> T:
        """What `claim` returns; after a lost connection, `found` what it had committed before."""
        is_first = True

        def claim_once() -> T:
            nonlocal is_first
            was_first, is_first = is_first, False
            if not was_first and (claims := fetch.claims_under(lane.engine, self._table, claim_id)):
                return found(claims)
            return claim()

        retry_transient(lambda: self._heartbeat.before_claim(lane), patience)
        return retry_transient(claim_once, patience)

    def _loaded(self, lane: Lane, claims: list[Claim], after: dt.timedelta | None) -> Claimed:
        """As many of these as may be in memory, with their arguments; the others are released."""
        loaded, rest = retry_transient(lambda: load_arguments(lane.engine, self._table, claims))
        if not rest:
            return loaded, after
        retry_transient(lambda: release_claims(lane.engine, self._table, rest))
        self.note_released(rest)
        return loaded, dt.timedelta(0)

    def _claim_limited(self, lane: Lane, request: ClaimRequest) -> Claimed:
        return limits.claim_limited(lane.connection, self._table, request, target_limits().get(request.queue))

    def _claim_unlimited(self, lane: Lane, request: ClaimRequest) -> Claimed:
        if not self._uses_marks(lane, request):
            return fetch.claim_due(lane.connection, self._table, request), None
        marks, began = self._marks[request.queue], time.monotonic()
        at = tuple(marks.at(began))
        try:
            claims = fetch.claim_due(lane.connection, self._table, replace(request, marks=at) if at else request)
        except BaseException:
            marks.request_front()
            raise
        last_due = {one.priority: one.due_at for one in claims}  # in order: the last one of each priority counts
        latest = {priority: UnreadInstant.read(due_at) for priority, due_at in last_due.items()}
        now, is_all = time.monotonic(), len(claims) < request.limit
        marks.note(latest, at, is_all=is_all, now=now, took=now - began)
        return claims, dt.timedelta(seconds=marks.until_front(now)) if at and is_all else None

    def _uses_marks(self, lane: Lane, request: ClaimRequest) -> bool:
        # Only where nothing is left out that may be claimed later: a mark would move past it. Nor in a batch, which
        # ends when nothing is found.
        leaves_out = request.besides or request.suspects or request.targets or request.began is not None
        return probes_laterally(lane.engine.dialect) and not leaves_out
