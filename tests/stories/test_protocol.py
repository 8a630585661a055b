"""The protocol of claims, explored: two workers, a sweep and an operator take steps in any order, also during a call.
Workers crash, freeze and come back late, and lose the answer to a COMMIT. Every row must keep its promises."""

import contextlib
import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from async_task import Again, Attempt, Discard, InvalidState, Status
from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from async_task.execution.performer import perform_claim, tracked_elsewhere
from async_task.execution.prepared_call import ExecutionContext
from async_task.execution.transaction import CallTransaction
from async_task.queue import fetch
from async_task.queue.claim import Claim
from async_task.queue.sweep import sweep
from claims import TABLE
from clockwork import broken_promises, forget_beats, let_pass
from databases import delete_rows
from outbox import Broken, act, act_in_session, act_in_session_leased, act_leased, effects, more_metadata, will

pytestmark = pytest.mark.long

LEASE = dt.timedelta(seconds=1)
WORKERS = ("one", "two")
TARGETS = {"plain": act, "leased": act_leased, "session": act_in_session, "leased session": act_in_session_leased}
ANSWERS = ("return", "raise", "discard", "again")
VERBS = ("cancel", "fail", "expire", "retry_now")
places = st.integers(0, 1)


class Protocol(RuleBasedStateMachine):
    """`hands`: the claims that each worker believes to have. A worker that crashed has forgotten them, and a frozen one
    performs them late."""

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[uuid.UUID] = []
        self.hands: dict[str, list[Claim]] = {name: [] for name in WORKERS}
        self.calls: list[tuple[uuid.UUID, int]] = []
        self.ended: dict[uuid.UUID, str] = {}
        self.source = Source(self.engine)
        self.until = contextlib.ExitStack()
        self.lanes: dict[str, Lane] = {name: self.until.enter_context(open_lane(self.source)) for name in WORKERS}

    def teardown(self) -> None:
        self.until.close()
        with self.engine.begin() as connection:
            delete_rows(connection, Attempt.metadata, more_metadata)

    @initialize(kinds=st.lists(st.sampled_from(list(TARGETS)), min_size=1, max_size=2), has_key=st.booleans())
    def write(self, kinds: list[str], has_key: bool) -> None:
        with Session(self.engine) as session, session.begin():
            for kind in kinds:
                options = Attempt.options(session=session, order_key="key" if has_key else None)
                self.ids.append(options.call(TARGETS[kind]).id)

    # Steps of the workers.

    @rule(worker=st.sampled_from(WORKERS), place=places)
    def claim(self, worker: str, place: int) -> None:
        claim = fetch.claim_one(self.engine, TABLE, f"{worker}:1:0", LEASE, self._id(place), uuid.uuid4())
        if isinstance(claim, Claim):
            self.hands[worker].append(claim)

    @rule(
        worker=st.sampled_from(WORKERS), place=places, answer=st.sampled_from(ANSWERS),
        meanwhile=st.lists(st.sampled_from(("time", "sweep", "claim", "cancel", "retry_now")), max_size=3),
        lost=st.sampled_from((None, None, "before the COMMIT", "after the COMMIT")),
    )  # fmt: skip
    def perform(self, worker: str, place: int, answer: str, meanwhile: list[str], lost: str | None) -> None:
        """Perform a claim from its lock to its outcome, perhaps long after it was claimed."""
        if not self.hands[worker]:
            return
        claim = self.hands[worker].pop(place % len(self.hands[worker]))
        other = WORKERS[1 - WORKERS.index(worker)]

        def call(session: Session | None = None) -> object:
            self.calls.append((claim.id, claim.number))
            for step in meanwhile:
                self._step(step, other, place, is_locked=not claim.target.endswith("leased"))
            if session is not None:
                what = "looked" if answer == "again" else "done"
                session.execute(effects.insert().values(attempt_id=str(claim.id), number=claim.number, what=what))
            return _answer(answer)

        will(call)
        context = ExecutionContext(self.source, Attempt, TABLE, self.lanes[worker])
        with _commit_loses_its_answer(lost):
            perform_claim(context, claim, tracked_elsewhere)

    @rule(worker=st.sampled_from(WORKERS))
    def crash(self, worker: str) -> None:
        self.hands[worker].clear()

    # Steps of others.

    @rule(seconds=st.sampled_from((0.4, 2.0, 90.0)))
    def time_passes(self, seconds: float) -> None:
        let_pass(self.engine, seconds)

    @rule()
    def sweep(self) -> None:
        forget_beats(self.engine)
        sweep(self.engine, TABLE, LEASE)

    @rule(place=places)
    def recover_and_claim_again(self, place: int) -> None:
        """Whoever has claimed an attempt is late, and each worker may be the next."""
        self.time_passes(2.0)
        self.sweep()
        for worker in WORKERS:
            self.claim(worker, place)

    @rule(verb=st.sampled_from(VERBS), place=places)
    def operate(self, verb: str, place: int) -> None:
        with contextlib.suppress(InvalidState), Session(self.engine) as session, session.begin():
            attempt = session.get(Attempt, self._id(place))
            assert attempt is not None
            getattr(attempt, verb)()
            if verb == "retry_now":  # also what has failed, expired or was canceled is pending again
                self.ended.pop(attempt.id, None)

    def _step(self, step: str, worker: str, place: int, *, is_locked: bool) -> None:
        steps: dict[str, Callable[[], None]] = {
            # Moving time writes to each row, and would wait for a locked one.
            "time": lambda: None if is_locked else self.time_passes(2.0),
            "sweep": self.sweep,
            "claim": lambda: self.claim(worker, place),
            "cancel": lambda: self.operate("cancel", place),
            "retry_now": lambda: self.operate("retry_now", place),
        }
        steps[step]()

    def _id(self, place: int) -> uuid.UUID:
        return self.ids[place % len(self.ids)]

    # What must hold after each step.

    @invariant()
    def rows_keep_their_promises(self) -> None:
        with self.engine.connect() as connection:
            assert not broken_promises(connection)
            rows = connection.execute(select(TABLE).where(TABLE.c.id.in_(self.ids))).all()
            done = select(effects.c.attempt_id, effects.c.number).where(effects.c.what == "done")
            written = connection.execute(done).all()
        for row in rows:
            was = self.ended.setdefault(row.id, row.status) if row.status != Status.PENDING else None
            assert was in (None, row.status), f"{row.id} was {was}, and is {row.status}"
            assert not (row.status == Status.PENDING and row.id in self.ended), f"{row.id} had ended"
            numbers = {one.number for one in written if one.attempt_id == str(row.id)}
            assert numbers <= {row.num_attempts}, "the effect is that of the last start"
        assert len(set(self.calls)) == len(self.calls), "one start is called once"

    @invariant()
    def attempts_of_one_key_are_claimed_one_at_a_time(self) -> None:
        with self.engine.connect() as connection:
            keys = connection.scalars(
                select(TABLE.c.order_key).where(TABLE.c.order_key.is_not(None), TABLE.c.claim_id.is_not(None))
            ).all()
        assert len(keys) == len(set(keys))


def _answer(how: str) -> object:
    if how == "raise":
        raise Broken
    if how == "discard":
        raise Discard("no longer wanted")
    return Again(after=1) if how == "again" else None


@contextlib.contextmanager
def _commit_loses_its_answer(when: str | None) -> Iterator[None]:
    """The connection is lost at the first COMMIT of a call, before or after the server has carried it out."""
    if when is None:
        yield
        return
    commit, was_lost = CallTransaction.commit, False

    def lose(self: Any) -> None:
        nonlocal was_lost
        if was_lost or self._root is None:
            commit(self)
            return
        was_lost = True
        connection = self._root.connection
        if when == "after the COMMIT":
            commit(self)
        connection.invalidate()
        raise OperationalError("COMMIT", {}, Exception("the connection is lost"), connection_invalidated=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CallTransaction, "commit", lose)
        yield


def test_no_order_of_steps_breaks_a_promise(engine: Engine) -> None:
    class OnThisDatabase(Protocol):
        pass

    OnThisDatabase.engine = engine
    run_state_machine_as_test(
        OnThisDatabase,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        ),
    )
