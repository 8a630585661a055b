"""The hook `on_crashed`: a try that was lost with its process reaches it once, whoever recovers the claim."""

import datetime as dt
import os
import pathlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from async_task import AsyncTask, Attempt, CallFacts, Failed, Outcome, Retried, Status, Supervisor, SweepReport
from async_task.database.engines import Source
from async_task.database.lanes import open_lane
from async_task.queue import worker_names
from async_task.queue.ledger import Ledger, forget
from async_task.queue.processes import Process, process_started
from async_task.queue.recovery import CRASH_LIMIT
from async_task.queue.sweep import recover_process
from async_task.queue.workers import leave_claims, worker_name
from async_task.schema.tables import Worker
from async_task.worker.claim_performer import ClaimPerformer
from async_task.worker.held_name import HeldName
from claims import GONE, TABLE, beat_ago, claimed, orphan
from clockwork import let_pass, row_of
from conftest import LEASE, by_one_door
from databases import Database, close_file
from elsewhere import await_
from outbox import Client, Elsewhere
from workers import at_rest, working

Write = Callable[..., Attempt]
Heard = list[tuple[CallFacts, Outcome, int]]


@pytest.fixture
def heard() -> Heard:
    """What `on_crashed` was given, with the losses and crashes that another connection then saw."""
    return []


@pytest.fixture
def own(engine: Engine, door: str, heard: Heard) -> AsyncTask:
    def hook(facts: CallFacts, outcome: Outcome) -> None:
        row = row_of(engine, facts.id)
        heard.append((facts, outcome, row.num_losses + row.num_crashes))

    return AsyncTask(engine, lease=LEASE, on_crashed=hook)


@by_one_door
def test_an_orphan_that_a_sweep_recovers_reaches_the_hook_once_after_its_commit(
    own: AsyncTask, engine: Engine, write: Write, heard: Heard
) -> None:
    attempt = orphan(engine, write)
    with engine.begin() as connection:
        connection.execute(update(Attempt).values(trace_context="00-7355608-01"))
    assert own.preview_sweep().changes != ()
    assert heard == []
    assert own.sweep() == SweepReport(recovered=1)
    [(facts, outcome, charged)] = heard
    row = row_of(engine, attempt.id)
    assert facts == CallFacts(
        attempt.id,
        "test.client",
        "ping",
        "default",
        1,
        row.created_at,
        row.due_at,
        "00-7355608-01",
        row.attempted_at,
    )
    assert outcome == Retried(attempt.id, dt.timedelta(0), f"the process {GONE} was lost")
    assert charged == 1
    own.sweep()
    assert len(heard) == 1


@pytest.mark.slow
@by_one_door
@pytest.mark.parametrize("how", ["run_batch", "worker"])
def test_an_orphan_that_a_batch_or_a_worker_recovers_reaches_the_hook(
    own: AsyncTask, engine: Engine, write: Write, heard: Heard, how: str
) -> None:
    attempt = orphan(engine, write)
    if how == "run_batch":
        close_file(engine)
        own.run_batch()
    else:
        with working(own):
            await_(lambda: heard, "it is recovered")
    assert [(facts.id, type(outcome)) for facts, outcome, _ in heard] == [(attempt.id, Retried)]


@pytest.mark.slow
@by_one_door
def test_of_many_sweeps_at_once_one_calls_the_hook(own: AsyncTask, engine: Engine, write: Write, heard: Heard) -> None:
    attempts = [write(Client, "ping") for _ in range(6)]
    for attempt in attempts:
        claimed(engine, attempt.id)
    let_pass(engine, 2)
    meet = threading.Barrier(4)

    def one(_: int) -> None:
        meet.wait(30)
        own.sweep()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(4)))
    assert sorted(str(facts.id) for facts, _, _ in heard) == sorted(str(attempt.id) for attempt in attempts)


@pytest.mark.slow
@by_one_door
def test_what_is_released_or_parked_uncharged_does_not_reach_the_hook(
    own: AsyncTask, engine: Engine, write: Write, heard: Heard
) -> None:
    worker = worker_name()
    ran, returned, _unstarted, stopped = (orphan(engine, write, worker=one) for one in (*[worker] * 3, "stopped"))
    beat_ago(engine, "stopped", dt.timedelta(0))
    leave_claims(engine, TABLE, "stopped", dt.timedelta(seconds=LEASE))
    let_pass(engine, 2)
    ledger = Ledger(worker)
    ledger.open()
    ledger.begin(ran.id)
    ledger.begin(returned.id)
    ledger.returned(returned.id)
    ledger._memory[:8] = bytes(8)  # type: ignore[index]  # its last sign of life was at the start of the machine
    try:
        assert own.sweep() == SweepReport(recovered=4)
    finally:
        forget(worker)
    assert [facts.id for facts, _, _ in heard] == [ran.id]
    assert row_of(engine, stopped.id).num_losses == 0


@by_one_door
def test_claims_of_a_process_of_this_machine_that_has_ended_reach_the_hook_before_their_lease_is_past(
    own: AsyncTask, engine: Engine, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "ping")
    beat_ago(engine, "dead", dt.timedelta(0))
    claimed(engine, attempt.id, "dead", lease=dt.timedelta(hours=1))
    with engine.begin() as connection:
        connection.execute(update(Worker).where(Worker.name == "dead").values(pid=2**22 + 1))
    assert own.sweep() == SweepReport(recovered=1)
    assert [(facts.id, outcome) for facts, outcome, _ in heard] == [
        (attempt.id, Retried(attempt.id, dt.timedelta(0), "the process dead has died"))
    ]


@by_one_door
def test_each_crash_in_the_quarantine_reaches_the_hook_and_the_last_one_on_failed_after_it(
    engine: Engine, door: str, write: Write
) -> None:
    heard: list[tuple[str, int, Outcome, Status]] = []

    def hook(name: str) -> Any:
        return lambda facts, outcome: heard.append((name, facts.number, outcome, row_of(engine, facts.id).status))

    own = AsyncTask(engine, lease=LEASE, **{name: hook(name) for name in ("on_crashed", "on_failed", "on_retried")})
    attempt = write(Client, "ping")
    with own._runtime("worker") as runtime, runtime.lane() as lane:
        performer: ClaimPerformer = runtime.performer
        for _ in range(CRASH_LIMIT):
            claim = claimed(engine, attempt.id)
            context = performer.context_on(lane)
            lane.run(lambda claim=claim, context=context: performer._count_crash(context, claim, "it was killed"))
    killed = Retried(attempt.id, dt.timedelta(0), "it was killed")
    reason = "crashed: 3 starts in a row killed a process of their own; at the last, it was killed"
    assert heard == [
        ("on_crashed", 1, killed, Status.PENDING),
        ("on_crashed", 2, killed, Status.PENDING),
        ("on_crashed", 3, Failed(attempt.id, reason), Status.FAILED),
        ("on_failed", 3, Failed(attempt.id, reason), Status.FAILED),
    ]


@pytest.mark.slow
@by_one_door
def test_a_call_that_kills_its_child_process_reaches_the_hook_in_the_parent(
    engine: Engine, database: Database, door: str, one_thread: None, write: Write, tmp_path: pathlib.Path
) -> None:
    heard: list[Outcome] = []
    attempt = write(Elsewhere, "die", {"folder": str(tmp_path), "how": "sigkill"})
    claimed(engine, attempt.id)
    let_pass(engine, 2)
    close_file(engine)
    own = AsyncTask(database.sync_url, lease=LEASE, on_crashed=lambda facts, outcome: heard.append(outcome))
    own.run_batch()
    own.close()
    assert heard == [
        Retried(attempt.id, dt.timedelta(0), f"the process {GONE} was lost"),
        Retried(attempt.id, dt.timedelta(0), "its process was killed by SIGKILL"),
    ]


@pytest.mark.slow
@by_one_door
@pytest.mark.only_on("postgresql", "mysql")
def test_what_a_worker_that_takes_a_name_over_recovers_reaches_the_hook(
    own: AsyncTask, engine: Engine, write: Write, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_names, "server_uptime", lambda connection: 1e6)
    before, hour = worker_name("web"), dt.timedelta(hours=1)
    source = Source(engine)
    dead = HeldName(TABLE, before, hour, lambda: open_lane(source, private=True), has_sessions=True)
    dead.take("{}")
    attempt = write(Client, "ping")
    claimed(engine, attempt.id, before, lease=hour)
    with engine.begin() as connection:
        moved = {"host": "elsewhere", "process_started": "another boot:1:2"}
        connection.execute(update(Worker).where(Worker.name == before).values(moved))
    dead.close()
    Ledger(before).close()
    with working(own, name="web"):
        await_(lambda: at_rest(engine), "it is performed again")
    assert [(facts.id, outcome) for facts, outcome, _ in heard] == [
        (attempt.id, Retried(attempt.id, dt.timedelta(0), f"the process {before} has died"))
    ]


def test_recovery_without_hooks_calls_none(engine: Engine, write: Write) -> None:
    pid = os.getpid()
    attempt = write(Client, "ping")
    beat_ago(engine, "me", dt.timedelta(0))
    claimed(engine, attempt.id, "me")
    me = Process(os.uname().nodename, pid, process_started(pid) or "")
    assert recover_process(engine, TABLE, me) == SweepReport(recovered=1)


@by_one_door
def test_what_a_supervisor_recovers_from_a_process_that_has_died_reaches_the_hook(
    own: AsyncTask, engine: Engine, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "ping")
    beat_ago(engine, "dead", dt.timedelta(0))
    claimed(engine, attempt.id, "dead", lease=dt.timedelta(hours=1))
    with engine.begin() as connection:
        connection.execute(update(Worker).where(Worker.name == "dead").values(pid=2**22 + 1))
        started = connection.scalar(select(Worker.process_started).where(Worker.name == "dead"))
    supervisor = own.worker(processes=2)
    assert isinstance(supervisor, Supervisor)
    supervisor._recover_process(2**22 + 1, started or "")
    assert [(facts.id, outcome) for facts, outcome, _ in heard] == [
        (attempt.id, Retried(attempt.id, dt.timedelta(0), "the process dead has died"))
    ]
