"""Performing the due calls of a test in the test's own transaction, by the code of the workers.

1. What is past its `expires_at` expires; order keys are released.
2. The most urgent due attempt is claimed, performed and settled, until nothing is due. What has raised is not tried
   again in this run: how soon a retry is due is a matter of chance.
3. Each transaction of a worker is a savepoint of the test's transaction. Nothing is committed.
"""

import asyncio
import datetime as dt
import uuid
from collections import Counter
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import Connection, Table, select

from async_task.attempts.ambient import none_begun
from async_task.attempts.attempt import BaseAttempt
from async_task.attempts.options import AnySession, SyncSession
from async_task.database.greenlets import has_loop_running, sleep
from async_task.errors import AsyncTaskError, ConfigurationError
from async_task.execution.performer import perform_claim, tracked_elsewhere
from async_task.execution.prepared_call import ExecutionContext
from async_task.outcomes import Expired, Outcome, Parked, Retried
from async_task.queue import backlog, expiry, fetch, ordering, pauses, predicates
from async_task.queue.claim import Claim, ClaimRequest
from async_task.queue.fenced_writes import release_claims
from async_task.queue.heavy_arguments import load_arguments
from async_task.queue.hooks import around_of
from async_task.queue.left_out import LeftOut
from async_task.schema.states import is_pending
from async_task.schema.tables import table_of
from async_task.targets.registry import problem_with, target_named
from async_task.testing.borrowed_lane import BorrowedLane, BorrowedLoopLane, BorrowedSource
from async_task.testing.savepoint_connection import SavepointEngine
from async_task.testing.sessions import TestSession, on_session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

WORKER = "async_task.testing"
MOST_TRIES = 1_000
"""How often one attempt is tried at most: a poll that is due again at once would never end."""
AT_ONCE = dt.timedelta(milliseconds=1)
"""After this time at the earliest, a call is due that is due again at once."""
OF_CALLS = (Exception, asyncio.CancelledError, SystemExit, GeneratorExit)
"""What calls raise. Anything else is for whoever runs the test: KeyboardInterrupt, `pytest.fail`, `pytest.skip`."""


@overload
def perform_all(session: SyncSession | None = None, *, raises: bool = True) -> list[Outcome]: ...
@overload
def perform_all(
    session: "AsyncSession | async_scoped_session[Any]", *, raises: bool = True
) -> Awaitable[list[Outcome]]: ...
def perform_all(session: AnySession | None = None, *, raises: bool = True) -> list[Outcome] | Awaitable[Any]:
    """Perform all calls that are due, also those that these calls write, in the transaction of the session.

        perform_all(session)
        await perform_all(async_session)

    Claims, calls, retries, error hooks and outcomes are those of a worker, and so is the order. Nothing is committed:
    what is a transaction in a worker is a SAVEPOINT here. A call that takes a session gets one on the same connection;
    what it writes is undone if it raises. Returns the outcomes, in order. A call that has raised is not tried again by
    this `perform_all`, however soon it is due: `advance` the time, and perform again. Hooks `around` each call are
    those of the last `AsyncTask` that this process has made for the model; its other hooks follow a commit, and are not
    called.

    `raises`: what a call raises is raised here, after its outcome is written, and the calls after it stay due: else a
    test would be green although its call has failed. With `raises=False`, read the outcomes; only KeyboardInterrupt,
    `pytest.fail()`, `pytest.skip()` and the like are still raised, and the cancellation of the test itself.

    The session is flushed first, and its objects are read again afterwards. Pauses of queues hold; `max_running`,
    `rate` and `isolate` have no effect. Raises ConfigurationError for a call that cannot be performed here (an unknown
    target, a missing key, an AsyncSession under a Session), NoTransaction without a session, and SchemaMismatch without
    a table of attempts.
    """
    return on_session(session, "perform_all", lambda one: _performed(one, raises=raises))


def _performed(session: TestSession, *, raises: bool) -> list[Outcome]:
    session.own.flush()
    models, connection = session.models(), session.connection()
    try:
        return perform_on(connection, models, session.made_by, session.options, raises=raises)
    finally:
        session.read_again()


def perform_on(
    connection: Connection,
    models: list[type[BaseAttempt]],
    made_by: type[Any],
    options: dict[str, Any],
    *,
    raises: bool,
    written: frozenset[uuid.UUID] | None = None,
) -> list[Outcome]:
    """Perform what is due in the tables of these models, in the transaction of `connection`, as `perform_all`.
    `made_by`, `options`: the class of the sessions for targets, and its arguments. `written`: of what waits now, only
    these attempts."""
    outcomes: list[Outcome] = []
    source = BorrowedSource(connection, made_by, options)
    kind = BorrowedLoopLane if source.is_async else BorrowedLane
    # A call must not find the test's own session, which no worker has.
    with none_begun(), kind(SavepointEngine(connection)) as lane:
        turns = [_Due(source, model, lane, outcomes, raises=raises, written=written) for model in models]
        while any(one.perform_next() for one in turns):
            continue
    return outcomes


class _Due:
    """The due attempts of one model."""

    def __init__(
        self, source: BorrowedSource, model: type[BaseAttempt], lane: Any, outcomes: list[Outcome], *, raises: bool,
        written: frozenset[uuid.UUID] | None,
    ) -> None:  # fmt: skip
        self._table: Table = table_of(model)
        self._engine = lane.engine
        self._outcomes = outcomes
        self._raises = raises
        self._errors: list[BaseException] = []
        self._parked: set[tuple[str, str]] = set()
        self._tries: Counter[uuid.UUID] = Counter()
        self._context = ExecutionContext(
            source, model, self._table, lane, hooks=around_of(self._table), heard=self._hear,
            released=lambda queues: frozenset(),
        )  # fmt: skip
        self._left_out: set[uuid.UUID] = set() if written is None else self._waiting() - written
        self._expire()

    def perform_next(self) -> bool:
        """Perform the most urgent due attempt. Returns whether there was one."""
        while ordering.release_arrived(self._engine, self._table, silent=None):
            continue
        claim = self._claim_next()
        if claim is None:
            return False
        self._refuse_to_go_on_for_ever(claim)
        self._refuse_other_session(claim)
        outcome = perform_claim(self._context, claim, tracked_elsewhere)
        self._outcomes.append(outcome)
        if isinstance(outcome, Parked):
            self._parked.add((claim.target, claim.method_name))
        if isinstance(outcome, Retried) and outcome.after <= AT_ONCE:
            sleep(2 * AT_ONCE.total_seconds())  # until it is due: else a test would depend on the speed of its machine
        self._raise_first(claim, outcome)
        return True

    def _hear(self, claim: Claim, error: BaseException) -> None:
        self._errors.append(error)
        self._left_out.add(claim.id)

    def _waiting(self) -> set[uuid.UUID]:
        with self._engine.begin() as connection:
            return {*connection.scalars(select(self._table.c.id).where(is_pending(self._table)))}

    def _expire(self) -> None:
        while ended := expiry.expire_overdue(self._engine, self._table, silent=None):
            self._outcomes += [Expired(one.attempt_id, one.reason) for one in ended]

    def _claim_next(self) -> Claim | None:
        for queue in self._queues_with_due():
            for suspects in (False, True):
                request = ClaimRequest(
                    WORKER, dt.timedelta(hours=1), queue, 1, uuid.uuid4(), suspects=suspects,
                    unknown=LeftOut(calls=(*self._parked,), ids=(*self._left_out,)),
                )  # fmt: skip
                for claim in fetch.claim_due(self._engine, self._table, request):
                    return claim if claim.is_loaded else load_arguments(self._engine, self._table, [claim])[0][0]
        return None

    def _queues_with_due(self) -> list[str]:
        """Those that are not paused, the one with the oldest due attempt first."""
        paused = pauses.paused(self._engine, self._table)
        due_at: dict[str, Any] = {}
        with self._engine.begin() as connection:
            for queue in backlog.waiting_queues(connection, self._table):
                due = select(self._table.c.due_at, self._table.c.id).where(
                    self._table.c.queue == queue,
                    self._table.c.id.not_in(self._left_out),
                    *predicates.due(self._table),
                )
                first: Any = due.order_by(self._table.c.due_at, self._table.c.id).limit(1)
                if queue not in paused and (row := connection.execute(first).first()) is not None:
                    due_at[queue] = tuple(row)
        return sorted(due_at, key=due_at.__getitem__)

    def _refuse_to_go_on_for_ever(self, claim: Claim) -> None:
        self._tries[claim.id] += 1
        if self._tries[claim.id] > MOST_TRIES:
            self._release(claim)
            raise AsyncTaskError(
                f"{claim.call} is due again at once, and was tried {MOST_TRIES} times: let it wait, Again(after=...)"
            )

    def _refuse_other_session(self, claim: Claim) -> None:
        if problem_with(claim.target, claim.method_name) is not None or self._context.source.is_async:
            return
        signature = target_named(claim.target).method(claim.method_name).signature
        if signature.session_is_async:
            self._release(claim)
            raise ConfigurationError(
                f"{signature.label} takes an AsyncSession, and this test has a Session: perform it in an asynchronous "
                "test, await perform_all(session) with the test's AsyncSession"
            )

    def _release(self, claim: Claim) -> None:
        release_claims(self._engine, self._table, [claim])

    def _raise_first(self, claim: Claim, outcome: Outcome) -> None:
        errors, self._errors[:] = list(self._errors), []
        for error in errors:
            if self._raises or not _is_of_call(error):
                raise error
        if self._raises and isinstance(outcome, Parked):
            raise ConfigurationError(f"{claim.call} could not be performed: {outcome.reason}")


def _is_of_call(error: BaseException) -> bool:
    return isinstance(error, OF_CALLS) and not (isinstance(error, asyncio.CancelledError) and _is_test_canceled())


def _is_test_canceled() -> bool:
    """Whether somebody has canceled the task of the test, as a time limit around it does."""
    task = asyncio.current_task() if has_loop_running() else None
    return task is not None and task.cancelling() > 0
