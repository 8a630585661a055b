"""Workers with a name: one of them lives, and the next one takes over what it has left."""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, column, create_engine, func, select, table, update

from async_task import AlreadyRunning, AsyncTask, Attempt, ConfigurationError, Status, Succeeded, current_attempt
from async_task.database.engines import Source
from async_task.database.lanes import open_lane
from async_task.database.server_sessions import try_session_lock
from async_task.queue import worker_names, workers
from async_task.queue.ledger import Ledger
from async_task.queue.sweep import recover_workers, sweep
from async_task.queue.worker_names import Evidence, Verdict, judge, lock_of
from async_task.queue.workers import worker_name
from async_task.schema.tables import Worker
from async_task.worker import held_name
from async_task.worker.held_name import HeldName
from claims import TABLE, claimed
from clockwork import forget_beats, let_pass, row_of
from conftest import by_one_door
from elsewhere import await_
from outbox import Client, act_leased, will
from workers import at_rest, make, working

Write = Callable[..., Attempt]
LEASE = dt.timedelta(seconds=2)
LONG = dt.timedelta(hours=1)
OF_SERVERS = pytest.mark.only_on("postgresql", "mysql")


def move_elsewhere(engine: Engine, name: str = "web") -> None:
    """As if the workers of this name were of another machine."""
    moved = {"host": "elsewhere", "process_started": "another boot:1:2"}
    with engine.begin() as connection:
        connection.execute(update(Worker).where(Worker.name.startswith(f"{name}@")).values(moved))


def names(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Worker.name).where(Worker.name.startswith("web@"))))


@pytest.fixture(autouse=True)
def old_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has run for longer than the leases here."""
    monkeypatch.setattr(worker_names, "server_uptime", lambda connection: 1e6)


@pytest.fixture
def held(engine: Engine) -> Iterator[Callable[..., HeldName]]:
    """Makes and takes names, as workers do that are connected and do nothing else."""
    made: list[HeldName] = []

    def take(lease: dt.timedelta = LONG, *, worker: str | None = None, has_sessions: bool = True) -> HeldName:
        source = Source(engine)
        name = worker or worker_name("web")
        held = HeldName(TABLE, name, lease, lambda: open_lane(source, private=True), has_sessions=has_sessions)
        made.append(held)
        held.take("{}")
        return held

    yield take
    for one in made:
        one.close()


@pytest.mark.slow
def test_a_second_worker_of_a_name_whose_process_lives_refuses_in_one_sentence(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    with working(app, name="web"):
        await_(lambda: names(engine), "it has begun")
        with pytest.raises(AlreadyRunning) as refused:
            app.worker(name="web").run()
        assert str(refused.value).startswith("another worker has the name web: process ")
        assert str(refused.value).endswith("stop it, or choose another name")
        assert len(names(engine)) == 1
        attempt = write(Client, "ping")
        await_(lambda: row_of(engine, attempt.id).status is Status.SUCCEEDED, "the first one works on")
    assert names(engine) == []
    with working(app, name="web"):
        await_(lambda: names(engine), "the name is free again")


@pytest.mark.slow
@OF_SERVERS
@by_one_door
def test_what_a_dead_worker_of_another_machine_has_left_runs_again_at_once(
    app: AsyncTask, engine: Engine, write: Write, held: Callable[..., HeldName]
) -> None:
    """Its lease has an hour, its last heartbeat is fresh, and its connection is gone."""
    before = worker_name("web")
    dead = held(worker=before)
    attempts = [write(Client, "ping") for _ in range(3)]
    for one in attempts:
        claimed(engine, one.id, before, lease=LONG)
    move_elsewhere(engine)
    dead.close()
    Ledger(before).close()
    patient = AsyncTask(engine, lease=LONG)
    began = time.monotonic()
    with working(patient, name="web"):
        await_(lambda: at_rest(engine), "all have run again")
        assert time.monotonic() - began < 5  # a second on an idle machine
        assert [row_of(engine, one.id).num_losses for one in attempts] == [0, 0, 0]  # zeroed by their success
        assert before not in names(engine)


@pytest.mark.slow
@OF_SERVERS
def test_a_worker_of_another_machine_that_sends_a_heartbeat_keeps_its_name(
    engine: Engine, held: Callable[..., HeldName]
) -> None:
    first = worker_name("web")
    held(worker=first)
    move_elsewhere(engine)
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(held)
        time.sleep(0.5)  # it must not decide before a heartbeat: nothing to wait for tells that it goes on waiting
        assert not second.done()
        workers.beat(engine, TABLE, first, LONG, [])
        with pytest.raises(AlreadyRunning, match="on elsewhere, last heartbeat"):
            second.result(30)
    assert names(engine) == [first]


@pytest.mark.long
@OF_SERVERS
@pytest.mark.parametrize("began", ["without sessions", "by another URL", "beside it"])
def test_a_lock_that_the_living_worker_never_had_does_not_tell_that_it_is_dead(
    engine: Engine, held: Callable[..., HeldName], began: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --no-listen, or with another database name in its URL; or as another worker had the lock, but no row yet."""
    first = worker_name("web")
    with monkeypatch.context() as other:
        if began == "by another URL":
            other.setattr(held_name, "lock_of", lambda table, database, name: lock_of(table, "elsewhere", name))
        if began == "beside it":
            other.setattr(held_name, "try_session_lock", lambda connection, key: False)
        holder = held(worker=first, has_sessions=began != "without sessions")
    move_elsewhere(engine)
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(held)
        time.sleep(0.5)  # nothing to wait for tells that it goes on waiting
        assert not second.done()
        workers.beat(engine, TABLE, first, LONG, [])
        with pytest.raises(AlreadyRunning, match="on elsewhere, last heartbeat"):
            second.result(30)
    assert names(engine) == [first]
    holder.close()


@pytest.mark.slow
def test_where_no_lock_tells_a_silence_of_one_lease_does(engine: Engine, held: Callable[..., HeldName]) -> None:
    first = worker_name("web")
    held(worker=first, has_sessions=False)
    move_elsewhere(engine)
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(held, LEASE, has_sessions=False)
        time.sleep(0.5)
        assert not second.done()
        let_pass(engine, LEASE)
        second.result(30)
    assert first not in names(engine)
    with pytest.raises(AlreadyRunning, match="has taken over the name web"):
        workers.beat(engine, TABLE, first, LEASE, [])


@pytest.mark.slow
@by_one_door
def test_a_frozen_worker_loses_its_fence_and_ends(
    app: AsyncTask, engine: Engine, held: Callable[..., HeldName]
) -> None:
    """It goes on in the middle of its call when another machine has taken over its name, and made the call again."""
    begun, go_on = threading.Event(), threading.Event()

    def called() -> None:
        if current_attempt().number == 1:
            begun.set()
            go_on.wait(60)

    will(called)
    frozen = AsyncTask(engine, lease=LONG).worker(name="web", poll=0.05, concurrency=1, grace=20)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(frozen.run)
        try:
            (attempt_id,) = make(engine, act_leased)
            await_(begun.is_set, "its call has begun")
            app.pause("default")  # nor do its other threads claim anything
            move_elsewhere(engine)
            forget_beats(engine)
            held()
            row = row_of(engine, attempt_id)
            assert (row.claim_id, row.num_losses, row.status) == (None, 1, Status.PENDING)
            assert isinstance(app.perform(attempt_id), Succeeded)
            before = row_of(engine, attempt_id)
            assert frozen._workload is not None
            beats = frozen._workload.runtime.heartbeat
            with open_lane(Source(engine)) as lane, pytest.raises(AlreadyRunning):
                beats._beat(lane, [])
        finally:
            go_on.set()
            with pytest.raises(AlreadyRunning, match="another worker has taken over the name web"):
                first.result(30)
    assert row_of(engine, attempt_id) == before
    assert (before.status, before.num_attempts, before.num_errors) == (Status.SUCCEEDED, 2, 0)


def test_of_two_workers_that_begin_at_once_one_has_the_name(engine: Engine, held: Callable[..., HeldName]) -> None:
    at_once = threading.Barrier(3)

    def begin(_: int) -> bool:
        at_once.wait(30)
        try:
            held(LEASE)
        except AlreadyRunning:
            return False
        return True

    with ThreadPoolExecutor(3) as threads:
        assert sorted(threads.map(begin, range(3))) == [False, False, True]
    assert len(names(engine)) == 1


def test_what_a_stopped_worker_of_the_name_could_not_release_is_not_charged(
    engine: Engine, write: Write, held: Callable[..., HeldName]
) -> None:
    before = worker_name("web")
    held(worker=before)
    attempt = write(Client, "ping")
    claimed(engine, attempt.id, before, lease=LONG)
    workers.leave_claims(engine, TABLE, before, LEASE)
    held()
    row = row_of(engine, attempt.id)
    assert (row.claim_id, row.num_losses) == (None, 0)
    assert before not in names(engine)


@pytest.mark.slow
@OF_SERVERS
def test_a_worker_whose_connection_was_lost_takes_its_lock_again(app: AsyncTask, engine: Engine) -> None:
    """Else a new one on another machine would take it for dead."""

    def is_free() -> bool:
        with contextlib.closing(engine.connect()) as connection:
            database = engine.url.database or ""
            free = try_session_lock(connection, lock_of(TABLE, database, "web"))
            connection.invalidate()  # which frees it
        return free

    with working(app, name="web") as worker:
        await_(lambda: names(engine), "it has begun")
        assert not is_free()
        held = await_(lambda: worker._workload, "it works").runtime.held_name
        assert held is not None
        lane = held._lane
        assert lane is not None
        before = lane._connection
        lane.disconnect()
        await_(lambda: lane._connection not in (None, before), "it has connected again")
        await_(lambda: not is_free(), "it has the lock again")
    await_(is_free, "the lock ends with the worker")


@pytest.mark.slow
@OF_SERVERS
def test_a_worker_whose_call_is_locked_loses_its_name_all_the_same(
    engine: Engine, write: Write, held: Callable[..., HeldName], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be recovered yet, and is an orphan once the lock is free."""
    monkeypatch.setattr(held_name, "recover_workers", partial(recover_workers, patience=0.0))
    frozen = worker_name("web")
    held(worker=frozen)
    attempt = write(Client, "ping")
    claimed(engine, attempt.id, frozen, lease=LEASE)
    move_elsewhere(engine)
    forget_beats(engine)
    with engine.begin() as connection:
        connection.execute(select(TABLE.c.id).where(TABLE.c.id == attempt.id).with_for_update(key_share=True)).all()
        held()
        assert row_of(engine, attempt.id).claimed_by == frozen
        with pytest.raises(AlreadyRunning):
            workers.beat(engine, TABLE, frozen, LEASE, [attempt.id])
    let_pass(engine, LEASE)
    assert sweep(engine, TABLE, SECOND).recovered == 1


def test_names_that_only_begin_alike_or_differ_in_case_are_others(
    engine: Engine, held: Callable[..., HeldName]
) -> None:
    for name in ("web-1", "WEB", "we_", "web"):
        held(worker=worker_name(name))
    assert len(names(engine)) >= 1


def test_an_idle_worker_with_a_name_is_dead_to_others_after_one_lease_of_silence(
    engine: Engine, held: Callable[..., HeldName]
) -> None:
    held(worker=worker_name("web"))
    move_elsewhere(engine)
    let_pass(engine, LEASE * 1.1)
    (one,) = workers.running_workers(engine, TABLE, LEASE)
    assert one.is_dead


@pytest.mark.only_on("postgresql")
@by_one_door
def test_a_worker_whose_idle_connections_were_cut_leaves_no_row_when_it_stops(app: AsyncTask, engine: Engine) -> None:
    apart = create_engine(engine.url, poolclass=NullPool)
    others = select(func.pg_terminate_backend(column("pid"))).select_from(table("pg_stat_activity", column("pid")))
    others = others.where(column("datname") == func.current_database(), column("pid") != func.pg_backend_pid())
    with working(app, name="web"):
        await_(lambda: names(apart), "it has begun")
        with apart.begin() as connection:
            assert connection.scalars(others).all()
    engine.dispose()
    assert names(apart) == []


SECOND = dt.timedelta(seconds=1)


@pytest.mark.parametrize(
    ("runs", "silent", "has_beaten", "is_cut_off", "is_young", "verdict"),
    [
        (True, 99, False, False, False, Verdict.LIVES),  # frozen, on this machine
        (False, 0, True, False, False, Verdict.DEAD),
        (None, 0, False, True, False, Verdict.DEAD),
        (None, 0, True, True, False, Verdict.LIVES),
        (None, 0, False, False, False, Verdict.UNDECIDED),
        (None, 2, False, False, False, Verdict.UNDECIDED),  # a lease, and not more
        (None, 2.1, False, False, False, Verdict.DEAD),
        (None, 99, True, False, False, Verdict.LIVES),
        (None, 99, False, True, True, Verdict.UNDECIDED),  # all were silent, and lost their connections
    ],
)
def test_what_is_known_of_a_worker_says_whether_it_lives(
    runs: bool | None, silent: float, has_beaten: bool, is_cut_off: bool, is_young: bool, verdict: Verdict
) -> None:
    known = Evidence(False, runs, silent * SECOND, has_beaten, is_cut_off)
    assert judge(known, LEASE, is_server_young=is_young) is verdict
    assert judge(Evidence(True, True, silent * SECOND, True, False), LEASE, is_server_young=False) is Verdict.DEAD


@pytest.mark.parametrize("name", ["", "-web", "web-", "a b", "a@b", "a:b", "x" * 64, 7, "wëb"])
def test_a_bad_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name is 1 to 63 letters"):
        AsyncTask("sqlite:///never.db").worker(name=name)


def test_the_longest_name_fits_and_each_process_needs_room_for_its_number() -> None:
    app, longest = AsyncTask("sqlite:///never.db"), "x" * 63
    app.worker(name=longest)
    assert len(worker_name(longest)) <= 128
    with pytest.raises(ConfigurationError, match="name is 1 to 63 letters"):
        app.worker(name=longest, processes=2)
