"""The hooks of outcomes: each outcome reaches its hook once, after its commit, whoever wrote it."""

import asyncio
import datetime as dt
import os
import pathlib
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, update

from async_task import (
    AsyncTask,
    Attempt,
    CallFacts,
    Canceled,
    ConfigurationError,
    Expired,
    Failed,
    Outcome,
    Parked,
    Retried,
    Status,
    Succeeded,
    target,
)
from async_task.execution import call
from async_task.queue import hooks as hooks_of_calls
from async_task.queue.recovery import CRASH_LIMIT, recover_claim
from async_task.queue.sweep import sweep
from async_task.worker.claim_performer import ClaimPerformer
from claims import TABLE, claimed, seconds_from_now
from clockwork import let_pass, row_of
from conftest import LEASE, by_one_door
from databases import Database, close_file
from elsewhere import await_
from operations import HOUR, Provider, World
from outbox import (
    Broken,
    Client,
    HookedAttempt,
    act,
    act_in_session,
    act_in_session_leased,
    act_later,
    act_later_locked,
    act_leased,
    act_shared,
    application,
    will,
)
from outbox import hooks as error_hooks
from workers import working

T = TypeVar("T")
Write = Callable[..., Attempt]


class Heard:
    """What the hooks were given, with the status that another connection then saw."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.all: list[tuple[str, CallFacts, Outcome, Status]] = []

    def on_succeeded(self, facts: CallFacts, outcome: Succeeded) -> None:
        self._note("succeeded", facts, outcome)

    def on_retried(self, facts: CallFacts, outcome: Retried) -> None:
        self._note("retried", facts, outcome)

    def on_failed(self, facts: CallFacts, outcome: Failed) -> None:
        self._note("failed", facts, outcome)

    def on_expired(self, facts: CallFacts, outcome: Expired) -> None:
        self._note("expired", facts, outcome)

    def _note(self, which: str, facts: CallFacts, outcome: Outcome) -> None:
        self.all.append((which, facts, outcome, row_of(self._engine, facts.id).status))

    @property
    def hooks(self) -> dict[str, Any]:
        return {"on_failed": self.on_failed, "on_expired": self.on_expired}

    @property
    def all_hooks(self) -> dict[str, Any]:
        return {**self.hooks, "on_succeeded": self.on_succeeded, "on_retried": self.on_retried}


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


@pytest.mark.slow
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
    assert facts == CallFacts(
        attempt.id, "test.client", "ping", "mail", 1, row.created_at, row.due_at, None, row.attempted_at
    )
    assert facts.call == "test.client.ping"
    for _ in range(2):
        own.sweep()
    assert len(heard.all) == 1


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


KINDS = [act, act_leased, act_later, act_later_locked, act_in_session, act_in_session_leased, act_shared]
"""One of each way in which an outcome is committed."""
WAYS = [*((kind, how) for kind in KINDS for how in ("perform", "run_batch")), (act, "worker"), (act_later, "worker")]
each_way = pytest.mark.parametrize(("kind", "how"), WAYS, ids=[f"{kind.__name__}-{how}" for kind, how in WAYS])


def _perform(app: AsyncTask, how: str, attempt_id: Any, done: Callable[[], bool]) -> None:
    if how == "perform":
        app.perform(attempt_id)
    elif how == "run_batch":
        app.run_batch()
    else:
        _by_worker(app, done)


def _write(write: Write, kind: Any) -> Attempt:
    return write(kind, None, {"number": 0} if kind is act_shared else None)


def _own(engine: Engine, door: str, async_engine_url: str, heard: Heard) -> AsyncTask:
    return application(engine, door, async_engine_url, lease=5, **heard.all_hooks)


@pytest.mark.in_turns
@each_way
def test_a_success_reaches_its_hook_once_after_its_commit(
    engine: Engine, door: str, async_engine_url: str, write: Write, heard: Heard, kind: Any, how: str
) -> None:
    will(lambda *_: None)
    own = _own(engine, door, async_engine_url, heard)
    attempt = _write(write, kind)
    _perform(own, how, attempt.id, lambda: bool(heard.all))
    own.close()
    [(which, facts, outcome, seen)] = heard.all
    assert (which, outcome, seen) == ("succeeded", Succeeded(attempt.id), Status.SUCCEEDED)
    name = f"test.{kind.__name__}"
    at = row_of(engine, attempt.id).attempted_at
    assert facts == CallFacts(attempt.id, name, "__call__", "default", 1, attempt.created_at, attempt.due_at, None, at)


@pytest.mark.in_turns
@each_way
def test_a_try_that_is_retried_reaches_its_hook_once_with_its_delay_and_its_error(
    engine: Engine, door: str, async_engine_url: str, write: Write, heard: Heard, kind: Any, how: str
) -> None:
    def fail(*_: object) -> None:
        raise Broken("no")

    will(fail)
    own = _own(engine, door, async_engine_url, heard)
    attempt = _write(write, kind)
    _perform(own, how, attempt.id, lambda: bool(heard.all))
    own.close()
    [(which, facts, outcome, seen)] = heard.all
    assert (which, seen) == ("retried", Status.PENDING)
    assert outcome == Retried(attempt.id, dt.timedelta(seconds=60), "Broken: no")
    name, at = f"test.{kind.__name__}", row_of(engine, attempt.id).attempted_at
    assert facts == CallFacts(attempt.id, name, "__call__", "default", 1, attempt.created_at, attempt.due_at, None, at)


@pytest.mark.slow
def test_many_successes_of_one_commit_reach_the_hook_once_each(engine: Engine, write: Write, heard: Heard) -> None:
    ids = {write(Client, "ping").id for _ in range(20)}
    AsyncTask(engine, lease=LEASE, **heard.all_hooks).run_batch()
    assert len(heard.all) == 20
    assert {facts.id for _, facts, _, _ in heard.all} == ids


@by_one_door
def test_the_error_of_a_retry_has_no_value_of_an_argument(
    engine: Engine, app: AsyncTask, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "fail", {"message": "secret-7355608"})
    AsyncTask(engine, **heard.all_hooks).perform(attempt.id)
    [(_, _, outcome, _)] = heard.all
    assert outcome == Retried(attempt.id, dt.timedelta(seconds=60), "Broken: [hidden]")
    assert row_of(engine, attempt.id).last_error == "Broken: secret-7355608"  # the table keeps it


@by_one_door
def test_a_poll_that_is_not_finished_reaches_on_retried_without_an_error(
    engine: Engine, app: AsyncTask, write: Write, heard: Heard
) -> None:
    attempt = write(Client, "poll", {"seconds": 30})
    AsyncTask(engine, **heard.all_hooks).perform(attempt.id)
    assert [one[:3:2] for one in heard.all] == [("retried", Retried(attempt.id, dt.timedelta(seconds=30)))]


@by_one_door
def test_what_is_parked_and_what_the_error_hook_cancels_reach_no_hook(
    engine: Engine, app: AsyncTask, write: Write, heard: Heard, sessions: Any
) -> None:
    parked = write(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(Attempt).values(encryptor="unknown"))
    assert isinstance(AsyncTask(engine, **heard.all_hooks).perform(parked.id), Parked)

    error_hooks[:] = [lambda attempt, error: attempt.cancel()]
    with sessions.begin() as session:
        canceled = HookedAttempt.create(target=Client, method_name="fail", session=session).id
    try:
        outcome = AsyncTask(engine, model=HookedAttempt, **heard.all_hooks).perform(canceled)
    finally:
        error_hooks.clear()
    assert outcome == Canceled(canceled)
    assert heard.all == []


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize("choice", ["fail", "expire", "retry_now", "reschedule"])
def test_what_the_error_hook_chooses_reaches_the_hook_of_that_outcome(
    engine: Engine, app: AsyncTask, heard: Heard, sessions: Any, choice: str
) -> None:
    given: dict[str, Any] = {
        "reschedule": {"at": dt.datetime.now(dt.UTC) + dt.timedelta(days=3)},
    }.get(choice, {})  # fmt: skip
    error_hooks[:] = [lambda attempt, error: getattr(attempt, choice)(**given)]
    max_attempts = 1 if choice == "retry_now" else 2
    with sessions.begin() as session:
        made = HookedAttempt.create(
            target=Client,
            method_name="fail",
            method_args={"message": "secret-7355608"},
            session=session,
            max_attempts=max_attempts,
        ).id
    said: list[tuple[str, Any]] = []
    hooks = {
        name: lambda facts, outcome, name=name: said.append((name, outcome))
        for name in ("on_succeeded", "on_retried", "on_failed", "on_expired", "on_crashed")
    }
    try:
        AsyncTask(engine, model=HookedAttempt, **hooks).perform(made)
    finally:
        error_hooks.clear()
    [(name, outcome)] = said
    assert name == {"fail": "on_failed", "expire": "on_expired"}.get(choice, "on_retried")
    assert "7355608" not in str(outcome)
    if choice == "retry_now":
        assert outcome == Retried(made, dt.timedelta(0), "Broken: [hidden]")
    elif choice == "reschedule":
        assert dt.timedelta(days=2) < outcome.after < dt.timedelta(days=4)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "the card of secret-7355608 is gone\nsince May",
            "its error hook decided so: the card of [hidden] is gone [...]",
        ),
        (None, "its error hook decided so"),
    ],
)
def test_the_reason_of_the_error_hook_is_told_without_the_values_of_arguments(
    engine: Engine, sessions: Any, caplog: pytest.LogCaptureFixture, reason: str | None, said: str
) -> None:
    error_hooks[:] = [lambda attempt, error: attempt.fail(reason=reason)]
    with sessions.begin() as session:
        given = {"target": Client, "method_name": "fail", "method_args": {"message": "secret-7355608"}}
        made = HookedAttempt.create(**given, session=session).id
    told: list[Failed] = []
    try:
        app = AsyncTask(engine, model=HookedAttempt, on_failed=lambda facts, outcome: told.append(outcome))
        app.perform(made)
    finally:
        error_hooks.clear()
    assert told == [Failed(made, f"{said}: Broken: [hidden]")]
    assert f"failed for good after 1 try: {said}: Broken: [hidden] (attempt" in caplog.text
    with sessions() as session:
        assert session.get(HookedAttempt, made).last_error == (reason or "Broken: secret-7355608")


@by_one_door
def test_the_next_attempt_of_the_order_key_is_released_before_the_hook_is_called(
    engine: Engine, app: AsyncTask, write: Write
) -> None:
    first, second = (write(Client, "ping", order_key="c-81") for _ in range(2))
    seen: list[bool] = []

    def hook(facts: CallFacts, outcome: Succeeded) -> None:
        seen.append(row_of(engine, second.id).released)

    AsyncTask(engine, on_succeeded=hook).perform(first.id)
    assert seen == [True]


@pytest.mark.slow
def test_a_call_in_a_child_process_reaches_the_hooks_there_alone(
    engine: Engine, database: Database, one_thread: None, write: Write, tmp_path: pathlib.Path
) -> None:
    def hook(facts: CallFacts, outcome: Outcome) -> None:
        with (tmp_path / "said").open("a") as file:
            file.write(f"{type(outcome).__name__} {os.getpid()}\n")

    write(isolated)
    close_file(engine)
    own = AsyncTask(database.sync_url, on_succeeded=hook, on_retried=hook)
    assert own.run_batch().succeeded == 1
    own.close()
    [(kind, pid)] = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    assert kind == "Succeeded"
    assert int(pid) != os.getpid()


@target("test.isolated_with_hooks", isolate=True)
def isolated() -> None: ...


@pytest.mark.slow
@by_one_door
def test_without_hooks_no_facts_are_made(
    engine: Engine, app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("facts were made")

    for module, name in ((hooks_of_calls, "facts_of"), (hooks_of_calls, "_facts_of_row"), (call, "facts_of")):
        monkeypatch.setattr(module, name, refuse)
    write(Client, "ping")
    write(Client, "fulfill_later", {"customer_token": "a", "order_number": 1})
    write(Client, "fail")
    write(Client, "fail", max_attempts=1)
    report = app.run_batch()
    assert (report.succeeded, report.retried, report.failed) == (2, 1, 1)


class OwnError(BaseException):
    """Of an application; like `pytest.fail` it is no Exception."""


ERRORS = [RuntimeError("key sk-7355608"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), OwnError()]


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_a_hook_raises_is_logged_and_changes_nothing(
    engine: Engine, app: AsyncTask, write: Write, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def hook(facts: CallFacts, outcome: Outcome) -> None:
        raise error

    own = AsyncTask(engine, lease=LEASE, on_failed=hook, on_expired=hook, on_succeeded=hook, on_retried=hook)
    late = [write(Client, "ping", expires_at=seconds_from_now(1)) for _ in range(3)]
    let_pass(engine, 2)
    failing, good = write(Client, "fail", max_attempts=1), write(Client, "ping")
    tried = write(Client, "fail")
    report = _elsewhere(lambda: own.run_batch(concurrency=1))  # on the main thread, a sweep could be interrupted
    assert (report.expired, report.failed, report.succeeded, report.retried) == (3, 1, 1, 1)
    assert {row_of(engine, one.id).status for one in late} == {Status.EXPIRED}
    assert row_of(engine, failing.id).status is Status.FAILED
    assert row_of(engine, good.id).status is Status.SUCCEEDED
    assert (row_of(engine, tried.id).status, row_of(engine, tried.id).num_errors) == (Status.PENDING, 1)
    said = [one.getMessage() for one in caplog.records if " raised " in one.getMessage()]
    assert len([one for one in said if one.startswith(f"on_expired raised {type(error).__name__}")]) == 3
    for name in ("on_failed", "on_succeeded", "on_retried"):
        assert len([one for one in said if one.startswith(f"{name} raised {type(error).__name__}")]) == 1


@by_one_door
def test_a_hook_that_returns_a_coroutine_is_named_and_closed(
    engine: Engine, app: AsyncTask, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = write(Client, "ping")
    AsyncTask(engine, on_succeeded=lambda facts, outcome: asyncio.sleep(0)).run_batch()
    assert f"on_succeeded returned a coroutine for attempt {attempt.id}, and takes a plain function" in caplog.text


def _elsewhere(work: Callable[[], T]) -> T:
    """What `work` returns, on a thread that no signal interrupts."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result(timeout=60)


@pytest.mark.in_turns
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_what_a_hook_of_a_coroutine_raises_changes_nothing(
    engine: Engine, door: str, async_engine_url: str, write: Write, error: BaseException
) -> None:
    def hook(facts: CallFacts, outcome: Outcome) -> None:
        raise error

    will(lambda: None)
    own = application(engine, door, async_engine_url, lease=LEASE, on_succeeded=hook)
    ids = [write(act_later).id for _ in range(5)]
    assert own.run_batch(concurrency=1).succeeded == 5
    assert {row_of(engine, one).status for one in ids} == {Status.SUCCEEDED}
    own.close()


@by_one_door
def test_a_hook_of_a_call_that_is_performed_alone_may_raise_anything(
    engine: Engine, app: AsyncTask, write: Write
) -> None:
    def hook(facts: CallFacts, outcome: Outcome) -> None:
        raise KeyboardInterrupt  # in the main thread, under a handler of ours that raises nothing

    own = AsyncTask(engine, lease=LEASE, on_succeeded=hook)
    attempt = write(Client, "ping")
    assert own.perform(attempt.id) == Succeeded(attempt.id)


@by_one_door
def test_ctrl_c_in_a_hook_interrupts_a_sweep(engine: Engine, app: AsyncTask, write: Write) -> None:
    def hook(facts: CallFacts, outcome: Outcome) -> None:
        signal.raise_signal(signal.SIGINT)

    attempt = write(Client, "ping", expires_at=seconds_from_now(1))
    let_pass(engine, 2)
    with pytest.raises(KeyboardInterrupt):
        AsyncTask(engine, lease=LEASE, on_expired=hook).sweep()
    assert row_of(engine, attempt.id).status is Status.EXPIRED


def test_a_sweep_without_hooks_calls_none(engine: Engine, write: Write) -> None:
    write(Client, "ping", expires_at=seconds_from_now(1))
    let_pass(engine, 2)
    assert sweep(engine, TABLE, dt.timedelta(seconds=1)).expired == 1


async def coroutine(facts: CallFacts, outcome: Outcome) -> None: ...


class Pager:
    async def __call__(self, facts: CallFacts, outcome: Outcome) -> None: ...


@pytest.mark.parametrize("hook", [7, coroutine, Pager()])
@pytest.mark.parametrize("name", ["on_succeeded", "on_retried", "on_failed", "on_expired", "on_crashed"])
def test_what_is_no_plain_function_is_refused(name: str, hook: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} takes a"):
        AsyncTask("sqlite:///never.db", **{name: hook})


@pytest.mark.parametrize("name", ["on_succeeded", "on_retried", "on_failed", "on_expired", "on_crashed"])
@pytest.mark.parametrize(
    "hook", [lambda facts: None, lambda facts, outcome, more: None, lambda *, facts, outcome: None]
)
def test_a_hook_that_does_not_take_what_it_is_given_is_refused(name: str, hook: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"{name} is called as {name}\(facts, outcome\), which <function .* tak"
    ):
        AsyncTask("sqlite:///never.db", **{name: hook})


@pytest.mark.parametrize("hook", [print, lambda *given: None, lambda facts, outcome, more=1: None, max, type])
def test_a_hook_that_takes_it_or_has_no_signature_is_taken(hook: Any) -> None:
    AsyncTask("sqlite:///never.db", on_failed=hook)
