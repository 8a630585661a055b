"""The hooks `on_failed` and `on_expired`: each end for good reaches them once, after its commit, whoever wrote it."""

import datetime as dt
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine

from async_task import AsyncTask, Attempt, CallFacts, ConfigurationError, Expired, Failed, Outcome, Status
from async_task.queue.recovery import CRASH_LIMIT, recover_claim
from async_task.queue.sweep import sweep
from async_task.worker.claim_performer import ClaimPerformer
from claims import TABLE, claimed, seconds_from_now
from clockwork import let_pass, row_of
from conftest import LEASE, by_one_door
from elsewhere import await_
from operations import HOUR, Provider, World
from outbox import Client
from workers import working

Write = Callable[..., Attempt]


class Heard:
    """What the hooks were given, with the status that another connection then saw."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.all: list[tuple[str, CallFacts, Outcome, Status]] = []

    def on_failed(self, facts: CallFacts, outcome: Failed) -> None:
        self._note("failed", facts, outcome)

    def on_expired(self, facts: CallFacts, outcome: Expired) -> None:
        self._note("expired", facts, outcome)

    def _note(self, which: str, facts: CallFacts, outcome: Outcome) -> None:
        self.all.append((which, facts, outcome, row_of(self._engine, facts.id).status))

    @property
    def hooks(self) -> dict[str, Any]:
        return {"on_failed": self.on_failed, "on_expired": self.on_expired}


@pytest.fixture
def heard(engine: Engine) -> Heard:
    return Heard(engine)


def _by_sweep(app: AsyncTask, _done: Callable[[], bool]) -> None:
    app.sweep()


def _by_batch(app: AsyncTask, _done: Callable[[], bool]) -> None:
    app.run_batch()


def _by_worker(app: AsyncTask, done: Callable[[], bool]) -> None:
    with working(app):
        await_(done, "it has ended")


@by_one_door
@pytest.mark.parametrize("end", [_by_sweep, _by_batch, _by_worker])
def test_an_attempt_that_a_sweep_expires_reaches_the_hook_once_after_its_commit(
    engine: Engine, app: AsyncTask, write: Write, heard: Heard, end: Callable[..., None]
) -> None:
    own = AsyncTask(engine, lease=LEASE, **heard.hooks)
    attempt = write(Client, "ping", queue="mail", expires_at=seconds_from_now(60))
    claimed(engine, attempt.id)
    let_pass(engine, 120)  # an orphan, too: it is recovered before
    end(own, lambda: bool(heard.all))
    [(which, facts, outcome, seen)] = heard.all
    assert (which, outcome, seen) == ("expired", Expired(attempt.id, "past its expires_at"), Status.EXPIRED)
    row = row_of(engine, attempt.id)
    assert facts == CallFacts(attempt.id, "test.client", "ping", "mail", 1, row.created_at, row.due_at)
    assert facts.call == "test.client.ping"
    for _ in range(2):
        own.sweep()
    assert len(heard.all) == 1


@by_one_door
def test_of_many_sweeps_at_once_one_calls_the_hook(engine: Engine, app: AsyncTask, write: Write, heard: Heard) -> None:
    ids = {write(Client, "ping", expires_at=seconds_from_now(1)).id for _ in range(6)}
    let_pass(engine, 2)
    meet = threading.Barrier(4)

    def one(_: int) -> None:
        meet.wait(30)
        AsyncTask(engine, lease=LEASE, **heard.hooks).sweep()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(one, range(4)))
    assert len(heard.all) == 6
    assert {facts.id for _, facts, _, _ in heard.all} == ids


@by_one_door
@pytest.mark.parametrize("perform", ["perform", "run_batch", "worker"])
def test_an_attempt_that_fails_for_good_reaches_the_hook_once_after_its_commit(
    engine: Engine, app: AsyncTask, write: Write, heard: Heard, perform: str
) -> None:
    own = AsyncTask(engine, lease=LEASE, **heard.hooks)
    attempt = write(Client, "fail", {"message": "secret-7355608"}, max_attempts=1)
    if perform == "perform":
        own.perform(attempt.id)
    elif perform == "run_batch":
        own.run_batch()
    else:
        _by_worker(own, lambda: bool(heard.all))
    [(which, facts, outcome, seen)] = heard.all
    assert (which, facts.id, facts.number, seen) == ("failed", attempt.id, 1, Status.FAILED)
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("max_attempts used up: 1 of 1: Broken")
    assert "7355608" not in outcome.reason


@by_one_door
def test_an_attempt_that_is_found_too_late_by_perform_reaches_the_hook(
    engine: Engine, app: AsyncTask, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "ping", expires_at=seconds_from_now(1))
    let_pass(engine, 2)
    assert isinstance(AsyncTask(engine, **heard.hooks).perform(attempt.id), Expired)
    assert [(which, facts.number) for which, facts, _, _ in heard.all] == [("expired", 0)]


@by_one_door
def test_the_crash_limit_reaches_the_hook_once_and_the_crashes_before_do_not(
    engine: Engine, app: AsyncTask, write: Write, heard: Heard
) -> None:
    own = AsyncTask(engine, lease=LEASE, **heard.hooks)
    attempt = write(Client, "ping")
    with own._runtime("worker") as runtime, runtime.lane() as lane:
        performer: ClaimPerformer = runtime.performer
        for number in range(1, CRASH_LIMIT + 1):
            claim = claimed(engine, attempt.id)
            assert (len(heard.all), claim.num_crashes) == (0, number - 1)
            context = performer.context_on(lane)
            lane.run(lambda claim=claim, context=context: performer._count_crash(context, claim, "it was killed"))
    [(which, facts, outcome, seen)] = heard.all
    assert (which, facts.number, seen) == ("failed", CRASH_LIMIT, Status.FAILED)
    assert isinstance(outcome, Failed)
    assert outcome.reason.startswith("crashed: 3 starts in a row killed a process of their own")
    assert recover_claim(engine, TABLE, claim, "again") is None


@by_one_door
def test_an_operation_that_is_too_old_reaches_the_hook_once_when_its_end_is_committed(
    world: World, provider: Provider, engine: Engine, heard: Heard
) -> None:
    made = world.running()
    world.pass_by(27 * HOUR)
    states: list[str] = []

    def on_failed(facts: CallFacts, outcome: Failed) -> None:
        heard.on_failed(facts, outcome)
        states.append(world.row(made).status)

    own = AsyncTask(engine, on_failed=on_failed)
    own.sweep()
    for _ in range(4):
        own.run_batch()
    assert world.progress(made) == ("failed", True, True)
    [(_, facts, outcome, _)] = heard.all
    assert (facts.target, facts.method, states) == ("test.batch", "poll", ["failed"])
    assert outcome == Failed(facts.id, world.row(made).failure_reason)


@by_one_door
@pytest.mark.parametrize("error", [RuntimeError("key sk-7355608"), SystemExit(3)])
def test_what_a_hook_raises_is_logged_and_changes_nothing(
    engine: Engine, app: AsyncTask, write: Write, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def hook(facts: CallFacts, outcome: Outcome) -> None:
        raise error

    own = AsyncTask(engine, lease=LEASE, on_failed=hook, on_expired=hook)
    late = [write(Client, "ping", expires_at=seconds_from_now(1)) for _ in range(3)]
    let_pass(engine, 2)
    failing, good = write(Client, "fail", max_attempts=1), write(Client, "ping")
    report = own.run_batch(concurrency=1)
    assert (report.expired, report.failed, report.succeeded) == (3, 1, 1)
    assert {row_of(engine, one.id).status for one in late} == {Status.EXPIRED}
    assert row_of(engine, failing.id).status is Status.FAILED
    assert row_of(engine, good.id).status is Status.SUCCEEDED
    said = [one.getMessage() for one in caplog.records if " raised " in one.getMessage()]
    assert len([one for one in said if one.startswith(f"on_expired raised {type(error).__name__}")]) == 3
    assert len([one for one in said if one.startswith(f"on_failed raised {type(error).__name__}")]) == 1


def test_a_sweep_without_hooks_calls_none(engine: Engine, write: Write) -> None:
    write(Client, "ping", expires_at=seconds_from_now(1))
    let_pass(engine, 2)
    assert sweep(engine, TABLE, dt.timedelta(seconds=1)).expired == 1


async def coroutine(facts: CallFacts, outcome: Outcome) -> None: ...


@pytest.mark.parametrize("hook", [7, coroutine])
@pytest.mark.parametrize("name", ["on_failed", "on_expired"])
def test_what_is_no_plain_function_is_refused(name: str, hook: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} takes a"):
        AsyncTask("sqlite:///never.db", **{name: hook})
