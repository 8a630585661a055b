"""Isolation: a call in a process of its own, which its time limit ends; and limits where there is no such process."""

import asyncio
import contextlib
import datetime as dt
import itertools
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

import elsewhere
from async_task import (
    Again,
    AsyncTask,
    Attempt,
    BatchReport,
    CallFacts,
    Failed,
    Parked,
    Retried,
    Retry,
    Succeeded,
    current_attempt,
    policy,
    target,
)
from async_task.database.engines import Source
from async_task.execution import call
from async_task.outcomes import Outcome
from async_task.queue.claim import Claim
from async_task.worker.processes import child_life, pool
from async_task.worker.processes.child_life import Calling
from async_task.worker.processes.parent import Died
from async_task.worker.runtime import Runtime
from async_task.worker.worker import AttemptWorker
from clockwork import row_of
from databases import Database, close_file
from elsewhere import await_, notes
from offspring import children as in_children
from offspring import claim, is_there, num_descriptors, parent_of, performing
from outbox import (
    Broken,
    HookedAttempt,
    act_brief_later,
    application,
    effects,
    events_of,
    heard,
    hold_the_gil,
    hooks,
    note,
    will,
)
from outbox import calls as traces

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
only_sync = pytest.mark.parametrize("door", ["sync"])
LATE = "TimeoutError: the call took longer than its limit, 0.15 s, and its process was ended"


@target("test.isolated", retry=Retry.every(60), isolate=True, redact=["card"])
class Isolated:
    @staticmethod
    def start(folder: str) -> None:
        note(folder, "start")

    @staticmethod
    def fail(card: str) -> None:
        raise Broken(card)

    @staticmethod
    def write(session: Session) -> None:
        _write(session)

    @staticmethod
    @policy(timeout=0.15)
    def hang(folder: str, card: str = "") -> None:
        note(folder, "start")
        hold_the_gil()

    @staticmethod
    @policy(timeout=0.15, mode="leased")
    def hang_leased(folder: str, card: str = "") -> None:
        note(folder, "start")
        hold_the_gil()

    @staticmethod
    @policy(timeout=0.15)
    def write_and_hang(session: Session, folder: str) -> None:
        _write(session)
        note(folder, "start")
        hold_the_gil()

    @staticmethod
    @policy(timeout=0.15, mode="leased")
    def write_and_hang_leased(session: Session, folder: str) -> None:
        _write(session)
        note(folder, "start")
        hold_the_gil()

    @staticmethod
    @policy(timeout=0.15)
    def start_others_and_hang(folder: str) -> None:
        if os.fork() == 0:
            note(folder, "grandchild")
            hold_the_gil()
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        note(folder, "start")
        hold_the_gil()

    @staticmethod
    def leave(folder: str, card: str = "") -> None:
        note(folder, "start")
        os._exit(70)

    @staticmethod
    @policy(mode="leased")
    def hold(folder: str) -> None:
        _hold(folder)

    @staticmethod
    def meet(folder: str, name: str, other: str) -> None:
        note(folder, name)
        await_(lambda: any(word == other for *_, word in notes(folder)), "the other one comes too")


@target("test.not_isolated", retry=Retry.every(60))
class Suspect:
    @staticmethod
    @policy(timeout=0.15)
    def hang(folder: str) -> None:
        note(folder, "start")
        hold_the_gil()

    @staticmethod
    @policy(mode="leased")
    def hold(folder: str) -> None:
        _hold(folder)


@target("test.brief_session", retry=Retry.every(60), timeout=0.3)
class BriefSession:
    """Swallows its cancellation, with a session in its hand."""

    @staticmethod
    async def write(session: AsyncSession, goes_on: bool) -> None:
        await _write_and_sleep(session, goes_on=goes_on)

    @staticmethod
    @policy(mode="locked")
    async def write_locked(session: AsyncSession, goes_on: bool) -> None:
        await _write_and_sleep(session, goes_on=goes_on)


async def _write_and_sleep(session: AsyncSession, *, goes_on: bool) -> None:
    await session.execute(effects.insert().values(**_mine()))
    for is_canceled in itertools.count():
        if is_canceled and not goes_on:
            return
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


def _mine() -> dict[str, Any]:
    current = current_attempt()
    return {"attempt_id": str(current.id), "number": current.number, "what": "done"}


def _write(session: Session) -> None:
    session.execute(effects.insert().values(**_mine()))


def _hold(folder: str) -> None:
    note(folder, "start")
    while not pathlib.Path(folder, "go").exists():
        threading.Event().wait(0.005)


@pytest.fixture
def url(database: Database, door: str) -> str:
    return database.sync_url if door == "sync" else database.async_url


@pytest.fixture
def home(url: str, engine: Engine) -> Iterator[AsyncTask]:
    """An application from a URL. SQLite's file is then open nowhere in this process, so that it may fork."""
    app = AsyncTask(url, lease=1)
    close_file(engine)
    yield app
    app.close()


@pytest.fixture
def runtime(url: str, engine: Engine) -> Iterator[Runtime]:
    """Opened as a worker opens it."""
    close_file(engine)
    source = Source(url)
    with Runtime(source, Attempt, dt.timedelta(seconds=1)) as runtime:
        runtime.prepare_children()
        yield runtime
    source.close()


@pytest.fixture
def short_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a runtime that is opened after it: its processes idle for a moment only."""
    monkeypatch.setattr(child_life, "IDLE", 0.05)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> str:
    return str(tmp_path)


# What it is


@pytest.mark.parametrize("method", ["hang", "hang_leased"])
def test_the_limit_ends_a_call_that_holds_the_gil_and_it_is_an_error_of_the_call(
    home: AsyncTask, engine: Engine, write: Write, folder: str, method: str
) -> None:
    attempt = _put_away(engine, write(Isolated, method, {"folder": folder}))
    outcome = home.perform(attempt.id)
    assert outcome == Retried(attempt.id, dt.timedelta(seconds=60), LATE)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.num_crashes, row.last_error) == (1, 1, 0, LATE)
    (event,) = events_of(engine, attempt.id)
    assert (event.kind, event.message, event.num_attempt) == ("error", LATE, 1)
    ((_, _, pid, _),) = notes(folder)
    assert pid != os.getpid()
    assert not is_there(pid)


@pytest.mark.parametrize("method", ["write_and_hang", "write_and_hang_leased"])
def test_what_it_wrote_is_rolled_back_at_the_limit_and_its_row_is_free_at_once(
    home: AsyncTask, engine: Engine, write: Write, folder: str, method: str
) -> None:
    attempt = _put_away(engine, write(Isolated, method, {"folder": folder}))
    assert isinstance(home.perform(attempt.id), Retried)
    with engine.begin() as connection:
        assert connection.execute(select(effects)).all() == []
        free = select(TABLE.c.id).where(TABLE.c.id == attempt.id).with_for_update(nowait=True)
        assert connection.scalar(free) == attempt.id
    assert row_of(engine, attempt.id).last_error == LATE


def test_what_it_writes_is_committed_with_its_outcome(home: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = _put_away(engine, write(Isolated, "write"))
    assert home.perform(attempt.id) == Succeeded(attempt.id)
    with engine.connect() as connection:
        assert [row.attempt_id for row in connection.execute(select(effects))] == [str(attempt.id)]


@only_sync
def test_what_the_call_has_started_is_ended_with_it(home: AsyncTask, engine: Engine, write: Write, folder: str) -> None:
    attempt = _put_away(engine, write(Isolated, "start_others_and_hang", {"folder": folder}))
    assert isinstance(home.perform(attempt.id), Retried)
    pids = {pid for _, _, pid, _ in notes(folder)}
    await_(lambda: not any(map(is_there, pids)), "all that noted something go away")


@only_sync
def test_a_process_that_ends_by_itself_is_a_crash_and_its_worker_lives_on(
    home: AsyncTask, engine: Engine, write: Write, folder: str
) -> None:
    attempt = write(Isolated, "leave", {"folder": folder})
    others = [write(Isolated, "start", {"folder": folder}) for _ in range(3)]
    close_file(engine)
    report = home.run_batch(concurrency=1)
    assert (report.succeeded, report.retried) == (3, 0)
    row = row_of(engine, attempt.id)
    assert (row.num_errors, row.num_crashes) == (0, row.num_attempts)
    assert {event.message for event in events_of(engine, attempt.id)} == {"its process ended with exit code 70"}
    assert {row_of(engine, one.id).num_crashes for one in others} == {0}


@only_sync
def test_forty_calls_share_a_few_processes(
    home: AsyncTask, engine: Engine, sessions: sessionmaker[Session], folder: str
) -> None:
    with sessions.begin() as session:
        for _ in range(40):
            Attempt.create(target=Isolated, method_name="start", method_args={"folder": folder}, session=session)
    close_file(engine)
    assert home.run_batch(concurrency=3).succeeded == 40
    pids = {pid for _, _, pid, _ in notes(folder)}
    assert 1 <= len(pids) <= 3
    assert os.getpid() not in pids


@only_sync
def test_calls_of_different_lanes_run_at_once_in_different_processes(
    home: AsyncTask, engine: Engine, write: Write, folder: str
) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        write(Isolated, "meet", {"folder": folder, "name": name, "other": other})
    close_file(engine)
    assert home.run_batch(concurrency=2).succeeded == 2
    assert len({pid for _, _, pid, _ in notes(folder)}) == 2


def run_batch(url: str) -> BatchReport:
    """In another process, which knows the targets here because it has found this function."""
    return AsyncTask(url, lease=1).run_batch(concurrency=2)


@only_sync
def test_when_the_parent_is_killed_all_its_children_go_with_it(
    home: AsyncTask, url: str, engine: Engine, write: Write, folder: str
) -> None:
    for _ in range(2):
        write(Isolated, "hold", {"folder": folder})
    close_file(engine)
    with elsewhere.process(run_batch, url) as parent:
        pids = {pid for _, _, pid, _ in await_(lambda: notes(folder)[1:] and notes(folder), "both calls begin")}
        (zygote,) = {parent_of(pid) for pid in pids}
        assert len(pids) == 2
        parent.kill()
    await_(lambda: not any(map(is_there, {*pids, zygote})), "children and zygote go away")


@only_sync
def test_the_lease_of_a_call_is_extended_while_its_process_lives(
    runtime: Runtime, engine: Engine, write: Write, folder: str
) -> None:
    attempt = _put_away(engine, write(Isolated, "hold", {"folder": folder}))
    with _performing(runtime, attempt) as performed:
        await_(lambda: notes(folder), "the call begins")
        first = row_of(engine, attempt.id).lease_until
        await_(lambda: row_of(engine, attempt.id).lease_until > first, "its lease is extended")
        pathlib.Path(folder, "go").touch()
        assert performed() == Succeeded(attempt.id)


@only_sync
def test_an_idle_process_ends_by_itself_and_another_is_started_when_needed(
    short_idling: None, runtime: Runtime, engine: Engine, write: Write, folder: str
) -> None:
    for number in range(2):
        attempt = _put_away(engine, write(Isolated, "start", {"folder": folder}))
        with _performing(runtime, attempt) as performed:
            assert performed() == Succeeded(attempt.id)
        last = notes(folder)[number][2]
        await_(lambda pid=last: not is_there(pid), "it ends")
    assert len({pid for _, _, pid, _ in notes(folder)}) == 2


@only_sync
def test_four_runtimes_with_processes_leave_nothing(home: AsyncTask, engine: Engine, write: Write, folder: str) -> None:
    ids = [write(Isolated, "start", {"folder": folder}).id for _ in range(5)]
    close_file(engine)
    assert home.perform(ids[0]) == Succeeded(ids[0])  # what is opened once is open now
    before = num_descriptors()
    for one in ids[1:]:
        assert home.perform(one) == Succeeded(one)
    assert num_descriptors() == before
    assert not any(is_there(pid) for _, _, pid, _ in notes(folder))


@only_sync
def test_no_argument_is_in_a_log_or_a_record_of_what_was_ended(
    home: AsyncTask, engine: Engine, write: Write, folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    arguments = {"folder": folder, "card": "canary-4111"}
    written = [write(Isolated, method, arguments) for method in ("hang", "hang_leased", "leave")]
    written.append(write(Isolated, "fail", {"card": "canary-4111"}))
    close_file(engine)
    home.run_batch()
    events = [events_of(engine, one.id) for one in written]
    assert [event.kind for event, *_ in events] == ["error", "error", "crash", "error"]
    said = [caplog.text, *(str(row_of(engine, one.id).last_error) for one in written)]
    said += [f"{event.message} {event.detail}" for one in events for event in one]
    assert not [text for text in said if "canary" in text]


@only_sync
def test_the_users_word_about_errors_hears_of_the_limit_too(
    url: str, engine: Engine, sessions: sessionmaker[Session], folder: str
) -> None:
    heard.clear()
    hooks.clear()
    with sessions.begin() as session:
        arguments = {"folder": folder}
        attempt_id = HookedAttempt.create(
            target=Isolated, method_name="hang", method_args=arguments, session=session
        ).id
    close_file(engine)
    app = AsyncTask(url, model=HookedAttempt, lease=1)
    assert isinstance(app.perform(attempt_id), Retried)
    app.close()
    ((one, error),) = heard
    assert (one, type(error)) == (str(attempt_id), TimeoutError)


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("suspect", [False, True])
def test_an_isolated_call_is_parked_with_a_reason_where_nothing_can_be_forked(
    home: AsyncTask, engine: Engine, write: Write, folder: str, suspect: bool
) -> None:
    attempt = write(Isolated, "start", {"folder": folder})
    if suspect:
        _suspect(engine, attempt)
    with engine.connect():  # SQLite's file is open here: its locks do not survive a fork
        outcome = home.perform(attempt.id)
    assert isinstance(outcome, Parked)
    assert "has the SQLite database open" in outcome.reason
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors, row.num_crashes) == (int(suspect), 0, int(suspect))
    assert notes(folder) == []


def test_answers_of_many_processes_are_never_mixed_up() -> None:
    claims = [claim(str(number)) for number in range(160)]
    with in_children(performing(_die_or_answer)) as isolation, ThreadPoolExecutor(8) as threads:

        def perform(one: Claim) -> object:
            try:
                return isolation.perform_isolated(one, 30)
            except Died as death:
                return str(death)

        answers = list(threads.map(perform, claims))
    for one, answer in zip(claims, answers, strict=True):
        died = "its process ended with exit code 7"
        assert answer == (died if int(one.encoded_args) % 20 == 7 else Failed(one.id, one.encoded_args))


def _die_or_answer(one: Claim) -> Outcome:
    if int(one.encoded_args) % 20 == 7:
        os._exit(7)
    return Failed(one.id, one.encoded_args)


def test_the_limit_is_for_the_call_and_not_for_what_is_done_around_it() -> None:
    @contextmanager
    def opened(calling: Calling) -> Iterator[Callable[[Claim], Outcome]]:
        def perform(one: Claim) -> Outcome:
            time.sleep(0.6)  # longer than the limit, which is the subject
            with calling():
                pass
            time.sleep(0.6)
            return Failed(one.id, "answered")

        yield perform

    with in_children(opened) as isolation:
        one = claim()
        assert isolation.perform_isolated(one, 0.5) == Failed(one.id, "answered")


def test_what_a_call_left_behind_on_purpose_outlives_its_idle_process(short_idling: None) -> None:
    def leave(one: Claim) -> Outcome:
        return Failed(one.id, f"{os.getpid()} {subprocess.Popen(['sleep', '60']).pid}")

    with in_children(performing(leave)) as isolation:
        answer = isolation.perform_isolated(claim(), None)
        assert isinstance(answer, Failed)
        child, left = map(int, answer.reason.split())
        await_(lambda: not is_there(child), "it ends")
    assert is_there(left)
    os.kill(left, signal.SIGKILL)


# Suspects, and a worker that does not want to wait


@only_sync
def test_a_suspect_that_never_returns_is_ended_some_time_after_its_limit(
    home: AsyncTask, engine: Engine, write: Write, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MARGIN", 0.1)
    hanging = _suspect(engine, write(Suspect, "hang", {"folder": folder}, priority=1))
    innocent = _suspect(engine, write(Isolated, "start", {"folder": folder}, priority=2))
    close_file(engine)
    report = home.run_batch()
    assert (report.retried, report.succeeded) == (1, 1)
    row = row_of(engine, hanging.id)
    assert (row.num_attempts, row.num_errors, row.num_crashes, row.last_error) == (2, 1, 0, LATE)
    assert row_of(engine, innocent.id).num_crashes == 0


@only_sync
@pytest.mark.parametrize("is_suspect", [False, True])
def test_a_call_without_a_limit_is_ended_with_its_worker_and_its_claim_released(
    runtime: Runtime, engine: Engine, write: Write, folder: str, is_suspect: bool
) -> None:
    attempt = write(Suspect if is_suspect else Isolated, "hold", {"folder": folder})
    if is_suspect:
        _suspect(engine, attempt)
    close_file(engine)
    with _performing(runtime, attempt) as performed:
        ((_, _, pid, _),) = await_(lambda: notes(folder), "the call begins")
        runtime.performer.abandon()
        outcome = performed()
    assert isinstance(outcome, Parked)
    assert outcome.reason == "its process was ended together with the worker's"
    row = row_of(engine, attempt.id)
    assert (row.claim_id, row.num_errors, row.num_crashes) == (None, 0, int(is_suspect))
    assert not is_there(pid)


def test_a_worker_performs_each_in_its_process_and_ends_what_takes_too_long(
    home: AsyncTask, engine: Engine, write: Write, folder: str
) -> None:
    hanging = write(Isolated, "write_and_hang", {"folder": folder})
    others = [write(Isolated, "start", {"folder": folder}) for _ in range(5)]
    close_file(engine)
    with _working(home, concurrency=2) as worker:
        await_(lambda: worker.tally.total() == 6, "all were performed")
    assert worker.tally == {Retried: 1, Succeeded: 5}
    assert row_of(engine, hanging.id).last_error == LATE
    assert {row_of(engine, one.id).num_errors for one in others} == {0}
    assert os.getpid() not in {pid for _, _, pid, _ in notes(folder)}


def test_a_worker_that_is_told_twice_to_stop_ends_the_processes_of_its_calls(
    home: AsyncTask, engine: Engine, write: Write, folder: str
) -> None:
    attempt = write(Isolated, "hold", {"folder": folder})
    close_file(engine)
    with _working(home, concurrency=1) as worker:
        ((_, _, pid, _),) = await_(lambda: notes(folder), "the call begins")
        worker.stop()
    row = row_of(engine, attempt.id)
    assert (row.claim_id, row.num_errors, row.num_crashes) == (None, 0, 0)
    await_(lambda: not is_there(pid), "its process goes away")


@contextmanager
def _working(app: AsyncTask, *, concurrency: int) -> Iterator[AttemptWorker]:
    """A worker that runs in a thread; stopped at the end."""
    worker = app.worker(concurrency=concurrency)
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(worker.run)
        try:
            yield worker
        finally:
            worker.stop()
            ended.result(30)


# Coroutines


def test_a_coroutine_that_swallows_its_cancellation_took_too_long_all_the_same(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    async def swallow() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "all is well"
        raise AssertionError

    will(swallow)
    attempt = write(act_brief_later)
    late = "TimeoutError: the call took longer than its limit, 0.05 s, and was canceled"
    assert app.perform(attempt.id) == Retried(attempt.id, dt.timedelta(seconds=60), late)
    row = row_of(engine, attempt.id)
    assert (row.num_errors, row.num_crashes, row.last_error) == (1, 0, late)


@only_sync
def test_what_a_canceled_coroutine_raises_is_the_cause_of_the_timeout(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    async def break_down() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise Broken("while it cleaned up")

    will(break_down)
    attempt = write(act_brief_later)
    assert isinstance(app.perform(attempt.id), Retried)
    assert row_of(engine, attempt.id).last_error.startswith("TimeoutError")
    (event,) = events_of(engine, attempt.id)
    assert "while it cleaned up" in event.detail


@only_sync
def test_a_canceled_coroutine_may_return_again(app: AsyncTask, engine: Engine, write: Write) -> None:
    async def ask_again() -> Again | None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return Again(after=7)
        return None

    will(ask_again)
    attempt = write(act_brief_later)
    assert app.perform(attempt.id) == Retried(attempt.id, dt.timedelta(seconds=7))
    assert row_of(engine, attempt.id).num_errors == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its protest, when it is thrown away
@pytest.mark.parametrize("swallowed", [asyncio.CancelledError, BaseException])
def test_a_coroutine_that_ignores_its_cancellation_does_not_block_the_lane(
    app: AsyncTask,
    engine: Engine,
    write: Write,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    swallowed: type[BaseException],
) -> None:
    monkeypatch.setattr(call, "CLEAN_UP", 0.05)

    async def go_on() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except swallowed:
                traces.append("swallowed")

    will(go_on)
    first, second = write(act_brief_later, priority=1), write(act_brief_later, priority=2)
    report = app.run_batch(concurrency=1)
    assert report.retried == 2
    for one in (first, second):
        assert row_of(engine, one.id).last_error.startswith("TimeoutError: the call took longer than its limit, 0.05 s")
        assert len([said for said in caplog.messages if str(one.id) in said and "is closed" in said]) == 1
    assert "swallowed" in traces


@pytest.mark.parametrize("limited", [True, False])
def test_a_hook_is_left_in_the_context_in_which_it_was_entered(
    engine: Engine, door: str, async_engine_url: str, write: Write, monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    monkeypatch.setattr(call, "CLEAN_UP", 0.05)
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    said: list[str] = []

    @contextmanager
    def as_tenant(facts: CallFacts) -> Iterator[None]:
        token = tenant.set("acme")
        try:
            yield
        finally:
            said.append(tenant.get())
            tenant.reset(token)  # raises ValueError in another context
            said.append(tenant.get())

    async def go_on() -> None:
        while limited:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    will(go_on)
    own = application(engine, door, async_engine_url, around=as_tenant)
    own.perform(write(act_brief_later).id)
    assert said == ["acme", "nobody"]
    own.close()


@pytest.mark.parametrize("door", ["async"])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("method", ["write", "write_locked"])
def test_what_a_coroutine_wrote_is_rolled_back_although_it_swallows_its_cancellation(
    app: AsyncTask, engine: Engine, write: Write, method: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "CLEAN_UP", 0.05)
    attempt = write(BriefSession, method, {"goes_on": goes_on})
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert (row.num_errors, row.last_error[:12], row.claim_id) == (1, "TimeoutError", None)
    with engine.connect() as connection:
        assert connection.execute(select(effects)).all() == []


@only_sync
def test_a_coroutine_that_ends_itself_in_time_is_no_timeout(app: AsyncTask, engine: Engine, write: Write) -> None:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    for do, said in ((cancel, "CancelledError"), (_leave, "SystemExit"), (_interrupt, "KeyboardInterrupt")):
        will(do)
        attempt = write(act_brief_later)
        assert isinstance(app.perform(attempt.id), Retried)
        assert row_of(engine, attempt.id).last_error.startswith(said)


async def _leave() -> None:
    await asyncio.sleep(0)
    raise SystemExit(3)


async def _interrupt() -> None:
    await asyncio.sleep(0)
    raise KeyboardInterrupt


def _put_away(engine: Engine, attempt: Attempt) -> Attempt:
    """SQLite's file is closed in this process, so that it may fork."""
    close_file(engine)
    return attempt


def _suspect(engine: Engine, attempt: Attempt) -> Attempt:
    """As after one start that was lost with its process."""
    with engine.begin() as connection:
        lost = update(Attempt).where(Attempt.id == attempt.id).values(num_attempts=1, num_crashes=1)
        connection.execute(lost)
    return attempt


@contextmanager
def _performing(runtime: Runtime, attempt: Attempt) -> Iterator[Callable[[], Outcome]]:
    """It is performed in a thread, as by a lane of a worker; what is yielded waits for the outcome."""

    def perform() -> Outcome:
        with runtime.lane() as lane:
            claim = lane.run(lambda: runtime.claimer.claim_one(lane, attempt.id))
            return claim if isinstance(claim, Outcome) else runtime.performer.perform_claim(lane, claim)

    with ThreadPoolExecutor(1) as thread:
        performed = thread.submit(perform)
        yield lambda: performed.result(30)
