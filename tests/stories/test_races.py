"""Races: two workers that want the same attempt, and one that outlived its claim. Gates arrange them, not sleeps."""

import contextlib
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select, update
from sqlalchemy.orm import Session, sessionmaker

import elsewhere
import outbox
from async_task import AsyncTask, Attempt, Busy, InvalidState, NotPending, Outcome, Status, Succeeded, Superseded
from async_task.queue import predicates, settle_statements
from async_task.queue.claim import Claim
from async_task.worker.runtime import Runtime
from clockwork import broken_promises, forget_beats, let_pass, row_of
from databases import Database
from elsewhere import await_, notes
from outbox import Elsewhere, Gate, Gated, application, effect, effects, gates

Write = Callable[..., Attempt]
LONG = 60.0


@pytest.fixture
def gate() -> Iterator[str]:
    """The name of a gate, open at the latest when the test has ended."""
    name = uuid.uuid4().hex
    gates[name] = Gate()
    yield name
    gates.pop(name).opened.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def url(database: Database, door: str) -> str:
    return database.sync_url if door == "sync" else database.async_url


@pytest.fixture
def slow_app(engine: Engine, door: str, async_engine_url: str) -> Iterator[AsyncTask]:
    """With a lease so long that its beat does not come in the course of a test."""
    app = application(engine, door, async_engine_url, lease=LONG)
    yield app
    app.close()


@pytest.mark.slow
def test_of_two_threads_that_perform_one_attempt_one_calls_it_and_the_other_is_refused(
    app: AsyncTask, engine: Engine, write: Write, pool: ThreadPoolExecutor, tmp_path: pathlib.Path
) -> None:
    attempts = [write(Elsewhere, "start", {"folder": str(tmp_path)}) for _ in range(8)]
    for attempt in attempts:
        outcomes = _at_once(pool, [partial(app.perform, attempt.id)] * 2)
        assert sorted(type(outcome).__name__ for outcome in outcomes) in (
            ["Busy", "Succeeded"],
            ["NotPending", "Succeeded"],
        )
    assert sorted(one for one, *_ in notes(tmp_path)) == sorted(str(attempt.id) for attempt in attempts)


@pytest.mark.slow
def test_of_two_processes_that_perform_the_same_attempts_each_is_called_by_one(
    url: str, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    ids = [write(Elsewhere, "start", {"folder": str(tmp_path)}).id for _ in range(5)]
    meet = elsewhere.barrier(2)
    with (
        elsewhere.process(elsewhere.perform, url, 5.0, ids, meet) as one,
        elsewhere.process(elsewhere.perform, url, 5.0, ids, meet) as two,
    ):
        answers = list(zip(one.answer(), two.answer(), strict=True))
    assert {tuple(sorted(both)) for both in answers} <= {("Busy", "Succeeded"), ("NotPending", "Succeeded")}
    assert sorted(one for one, *_ in notes(tmp_path)) == sorted(map(str, ids))


def test_a_second_performer_is_told_which_worker_is_performing(
    app: AsyncTask, write: Write, pool: ThreadPoolExecutor, gate: str
) -> None:
    attempt = write(Gated, "locked", {"gate": gate})
    performing = pool.submit(app.perform, attempt.id)
    gates[gate].await_call()
    busy = app.perform(attempt.id)
    assert isinstance(busy, Busy)
    assert busy.by is not None
    gates[gate].opened.set()
    assert performing.result() == Succeeded(attempt.id)
    assert app.perform(attempt.id) == NotPending(attempt.id, Status.SUCCEEDED)


@pytest.mark.slow
def test_cancel_and_perform_at_once_have_one_legal_end_and_the_loser_is_refused(
    app: AsyncTask,
    engine: Engine,
    write: Write,
    pool: ThreadPoolExecutor,
    sessions: sessionmaker[Session],
    tmp_path: pathlib.Path,
) -> None:
    ends = set()
    for _ in range(12):
        attempt = write(Elsewhere, "start", {"folder": str(tmp_path)})
        outcome, was_canceled = _at_once(
            pool, [partial(app.perform, attempt.id), partial(_cancel, sessions, attempt.id)]
        )
        status = row_of(engine, attempt.id).status
        was_called = str(attempt.id) in {one for one, *_ in notes(tmp_path)}
        ends.add(status)
        if was_canceled:
            assert (status, was_called) == (Status.CANCELED, False)
            assert outcome in (NotPending(attempt.id, Status.CANCELED), Busy(attempt.id, None, None))
        else:
            assert (status, was_called, outcome) == (Status.SUCCEEDED, True, Succeeded(attempt.id))
    assert ends <= {Status.CANCELED, Status.SUCCEEDED}


def test_cancel_during_a_call_is_refused_and_cancel_before_it_prevents_it(
    app: AsyncTask, engine: Engine, write: Write, pool: ThreadPoolExecutor, sessions: sessionmaker[Session], gate: str
) -> None:
    attempt, other = write(Gated, "locked", {"gate": gate}), write(Gated, "locked", {"gate": gate})
    performing = pool.submit(app.perform, attempt.id)
    gates[gate].await_call()
    assert not _cancel(sessions, attempt.id)
    assert _cancel(sessions, other.id)
    assert app.perform(other.id) == NotPending(other.id, Status.CANCELED)
    gates[gate].opened.set()
    assert performing.result() == Succeeded(attempt.id)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["leased", "write_leased"])
def test_a_performer_that_outlived_its_claim_writes_nothing(
    app: AsyncTask, slow_app: AsyncTask, engine: Engine, write: Write, pool: ThreadPoolExecutor, gate: str, method: str
) -> None:
    attempt = write(Gated, method, {"gate": gate})
    zombie = pool.submit(slow_app.perform, attempt.id)
    gates[gate].await_call()
    let_pass(engine, 2 * LONG)
    forget_beats(engine)
    assert app.sweep().recovered == 1
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    before = row_of(engine, attempt.id)
    assert (before.status, before.num_attempts, before.num_crashes) == (Status.SUCCEEDED, 2, 0)
    gates[gate].opened.set()
    assert zombie.result() == Superseded(attempt.id)
    assert row_of(engine, attempt.id) == before
    assert _effects(engine) == ([(str(attempt.id), 2)] if method == "write_leased" else [])


@pytest.mark.slow
def test_a_performer_that_outlived_its_claim_does_not_touch_the_next_claim(
    app: AsyncTask, slow_app: AsyncTask, engine: Engine, write: Write, pool: ThreadPoolExecutor, gate: str
) -> None:
    attempt = write(Gated, "leased", {"gate": gate})
    zombie = pool.submit(slow_app.perform, attempt.id)
    gates[gate].await_call()
    let_pass(engine, 2 * LONG)
    forget_beats(engine)
    assert app.sweep().recovered == 1
    with _runtime(app) as runtime, runtime.lane() as lane:
        claim = lane.run(lambda: runtime.claimer.claim_one(lane, attempt.id))
        assert isinstance(claim, Claim)
        gates[gate].opened.set()
        assert zombie.result() == Superseded(attempt.id)
        row = row_of(engine, attempt.id)
        assert (row.status, row.claim_id, row.num_attempts) == (Status.PENDING, claim.claim_id, 2)
        assert runtime.performer.perform_claim(lane, claim) == Succeeded(attempt.id)


@pytest.mark.long
@pytest.mark.parametrize("target", [effect, (Gated, "write_leased")], ids=["locked", "leased"])
def test_no_zombie_of_two_hundred_has_an_effect(engine: Engine, sessions: sessionmaker[Session], target: Any) -> None:
    """34 on each of three databases, in both modes."""
    assert _double_effects_of_zombies(engine, sessions, target, 34) == []


@pytest.mark.slow
def test_the_races_here_catch_a_library_without_a_fence(
    engine: Engine, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    table: Any = Attempt.__table__
    monkeypatch.setattr(predicates, "is_mine", lambda table, attempt_id, claim_id: (table.c.id == attempt_id,))
    statements = settle_statements
    succeeding = (statements.succeed, statements.succeed_or_fail)
    for statement in (statements.lock, statements.lock_and_count, statements.ours, *succeeding):
        statement.cache_clear()  # what is made now has no fence
        request.addfinalizer(statement.cache_clear)
    monkeypatch.setattr(statements, "_ours", lambda table, arrays: (statements._among(table, arrays),))
    found = _double_effects_of_zombies(engine, sessions, effect, 10)
    with engine.begin() as connection:  # else the promises of every test would be found broken too
        connection.execute(delete(effects))
        connection.execute(delete(table))
    assert len([one for one in found if "has its effect twice" in one]) >= 5


@pytest.mark.slow
def test_a_sweep_never_charges_a_call_whose_row_is_locked_or_whose_process_lives_here(
    slow_app: AsyncTask, engine: Engine, write: Write, pool: ThreadPoolExecutor, gate: str
) -> None:
    attempt = write(Gated, "locked", {"gate": gate})
    with _runtime(slow_app) as runtime, runtime.lane() as lane:
        claim = lane.run(lambda: runtime.claimer.claim_one(lane, attempt.id))
        assert isinstance(claim, Claim)
        let_pass(engine, 2 * LONG)
        performing = pool.submit(lambda: _perform_on_a_lane(runtime, claim))
        gates[gate].await_call()
        assert {report.recovered for report in _at_once(pool, [slow_app.sweep] * 7)} == {0}
        gates[gate].opened.set()
        assert performing.result() == Succeeded(attempt.id)
    assert row_of(engine, attempt.id).num_crashes == 0


@pytest.mark.slow
def test_a_sweep_never_charges_a_leased_call_whose_process_has_a_heartbeat(
    slow_app: AsyncTask, engine: Engine, write: Write, pool: ThreadPoolExecutor, gate: str
) -> None:
    attempt = write(Gated, "leased", {"gate": gate})
    performing = pool.submit(slow_app.perform, attempt.id)
    gates[gate].await_call()
    let_pass(engine, 2 * LONG, workers=False)
    assert {report.recovered for report in _at_once(pool, [slow_app.sweep] * 7)} == {0}
    gates[gate].opened.set()
    assert performing.result() == Succeeded(attempt.id)
    assert row_of(engine, attempt.id).num_crashes == 0


@pytest.mark.slow
def test_after_a_killed_process_the_start_is_counted_its_writes_are_undone_and_a_sweep_recovers_the_attempt(
    app: AsyncTask, url: str, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    attempt = write(Elsewhere, "write_and_hold", {"folder": str(tmp_path)})
    with elsewhere.process(elsewhere.perform, url, 1.0, [attempt.id]) as process:
        await_(lambda: notes(tmp_path), "the call begins")
        process.kill()
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.PENDING, 1, 0)
    assert _effects(engine) == []
    let_pass(engine, 2)
    await_(lambda: app.sweep().recovered, "the row's lock dies with its process, and the sweep gives it back")
    assert row_of(engine, attempt.id).num_losses == 1
    engine.dispose()  # the quarantine forks: SQLite's file must not be open here
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_crashes) == (Status.SUCCEEDED, 2, 0)
    assert _effects(engine) == [(str(attempt.id), 2)]


@pytest.mark.slow
def test_two_batches_in_two_threads_perform_no_attempt_twice(
    app: AsyncTask, write: Write, pool: ThreadPoolExecutor, tmp_path: pathlib.Path
) -> None:
    ids = [str(write(Elsewhere, "start", {"folder": str(tmp_path)}).id) for _ in range(30)]
    reports = _at_once(pool, [app.run_batch] * 2)
    assert sorted(one for one, *_ in notes(tmp_path)) == sorted(ids)
    assert sum(report.claimed for report in reports) == sum(report.succeeded for report in reports) == 30


@pytest.mark.slow
def test_two_batches_in_two_processes_perform_no_attempt_twice(
    url: str, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    ids = [str(write(Elsewhere, "start", {"folder": str(tmp_path)}).id) for _ in range(30)]
    meet = elsewhere.barrier(2)
    with (
        elsewhere.process(elsewhere.run_batch, url, 5.0, meet, 2) as one,
        elsewhere.process(elsewhere.run_batch, url, 5.0, meet, 2) as two,
    ):
        reports = one.answer(), two.answer()
    assert sorted(one for one, *_ in notes(tmp_path)) == sorted(ids)
    assert sum(report.claimed for report in reports) == sum(report.succeeded for report in reports) == 30


def _at_once(pool: ThreadPoolExecutor, work: list[Callable[[], Any]]) -> list[Any]:
    """What each returned; all begin at the same time."""
    meet = threading.Barrier(len(work))

    def begin(one: Callable[[], Any]) -> Any:
        meet.wait(30)
        return one()

    running: list[Future[Any]] = [pool.submit(begin, one) for one in work]
    return [one.result() for one in running]


def _cancel(sessions: sessionmaker[Session], attempt_id: uuid.UUID) -> bool:
    try:
        with sessions.begin() as session:
            session.get_one(Attempt, attempt_id).cancel(reason="not wanted")
        return True
    except InvalidState:
        return False


def _effects(engine: Engine) -> list[tuple[str, int]]:
    with engine.connect() as connection:
        return [(row.attempt_id, row.number) for row in connection.execute(select(effects).order_by(effects.c.id))]


@contextlib.contextmanager
def _runtime(app: AsyncTask) -> Iterator[Runtime]:
    """A runtime of this process on the database of `app`."""
    with app._runtime("perform") as runtime:
        yield runtime


def _perform_on_a_lane(runtime: Runtime, claim: Claim) -> Outcome:
    with runtime.lane() as lane:
        return runtime.performer.perform_claim(lane, claim)


def _double_effects_of_zombies(engine: Engine, sessions: sessionmaker[Session], target: Any, number: int) -> list[str]:
    """Each attempt is claimed, lost and claimed again; half of the zombies perform before their successor, half after.
    Returns the promises that are broken afterwards."""
    thing, method = target if isinstance(target, tuple) else (target, None)
    arguments = {"gate": ""} if method else {}
    rows = [{"target": thing, "method_name": method, "method_args": arguments} for _ in range(number)]
    with sessions.begin() as session:
        ids = Attempt.create_many(session, rows)
    table: Any = Attempt.__table__
    app = AsyncTask(engine, lease=1)
    outbox.gates[""] = Gate()
    outbox.gates[""].opened.set()
    with _runtime(app) as runtime, runtime.lane() as lane:
        zombies = _claims(runtime, ids)
        let_pass(engine, 2)
        forget_beats(engine)
        assert app.sweep().recovered == number
        with engine.begin() as connection:  # so that they are performed here, and not in the quarantine
            connection.execute(update(table).values(num_crashes=0, num_losses=0))
        winners = _claims(runtime, ids)
        half = number // 2
        outcomes: list[Outcome] = [runtime.performer.perform_claim(lane, claim) for claim in zombies[:half]]
        ended = [runtime.performer.perform_claim(lane, claim) for claim in winners]
        outcomes += [runtime.performer.perform_claim(lane, claim) for claim in zombies[half:]]
    with engine.connect() as connection:
        wrong = broken_promises(connection)
    wrong += [f"a zombie returned {one}" for one in outcomes if not isinstance(one, Superseded)]
    wrong += [f"a successor returned {one}" for one in ended if not isinstance(one, Succeeded)]
    # A zombie that was lost before its call began has started nothing: its number is given to its successor.
    last = {str(one): row_of(engine, one).num_attempts for one in ids}
    wrong += [f"attempt {one} has the effect of start {at}" for one, at in _effects(engine) if at != last[str(one)]]
    return wrong


def _claims(runtime: Runtime, ids: list[uuid.UUID]) -> list[Claim]:
    with runtime.lane() as lane:
        claims = [lane.run(partial(runtime.claimer.claim_one, lane, one)) for one in ids]
    return [claim for claim in claims if isinstance(claim, Claim)]
