"""The hooks round each call (`around=`): whatever kind of call it is, and whoever performs it."""

import asyncio
import contextlib
import datetime as dt
import functools
import logging
import pathlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Engine, event, update

import outbox
from async_task import (
    Again,
    AsyncTask,
    Attempt,
    AttemptJob,
    CallFacts,
    ConfigurationError,
    Discard,
    Failed,
    Outcome,
    Retried,
    Retry,
    RetryAfter,
    Status,
    Succeeded,
    current_attempt,
    target,
)
from async_task.database.lanes import lane_of
from async_task.execution import outcome_writer
from async_task.execution.adaptive import BatchSize
from async_task.queue import fenced_writes
from clockwork import row_of
from databases import Database, close_file
from elsewhere import Program, await_, notes
from operations import Provider, World
from outbox import (
    Broken,
    Client,
    Effect,
    act,
    act_brief_later,
    act_in_async_session,
    act_in_async_session_locked,
    act_in_session,
    act_in_session_leased,
    act_later,
    act_later_locked,
    act_leased,
    act_shared,
    calls,
    effects,
    note,
)
from workers import at_rest, counted, make, working

Hooked = Callable[..., AsyncTask]
Perform = Callable[[AsyncTask, Any, Callable[[], bool]], None]
tenant: ContextVar[str] = ContextVar("tenant", default="none")


def _alone(app: AsyncTask, attempt_id: Any, _done: Callable[[], bool]) -> None:
    app.perform(attempt_id)


def _in_a_batch(app: AsyncTask, _id: Any, _done: Callable[[], bool]) -> None:
    app.run_batch(concurrency=1)


def _by_a_worker(app: AsyncTask, _id: Any, done: Callable[[], bool]) -> None:
    with working(app, concurrency=1):
        await_(done, "it was performed")


class Later:
    """Of coroutine functions, some of which take an AsyncSession."""

    PLAIN = (act, act_leased, act_in_session, act_in_session_leased, act_shared)
    COROUTINES = (act_later, act_later_locked)
    WITH_SESSION = (act_in_async_session, act_in_async_session_locked)


KINDS = [*Later.PLAIN, *Later.COROUTINES, *Later.WITH_SESSION]


def _with_doors(*kinds: Any) -> Any:
    """Each of these kinds with each engine that can perform it."""
    pairs = [(door, kind) for kind in kinds for door in ("sync", "async")]
    fitting = [(door, kind) for door, kind in pairs if door == "async" or kind not in Later.WITH_SESSION]
    return pytest.mark.parametrize(("door", "kind"), fitting, ids=[f"{door}-{kind.__name__}" for door, kind in fitting])


each_kind = _with_doors(*KINDS)
some_kinds = _with_doors(act, act_in_session, act_later, act_in_async_session)
"""One of each way in which a function is called."""
each_performer = pytest.mark.parametrize("perform", [_alone, _in_a_batch, _by_a_worker])
alone_or_in_a_batch = pytest.mark.parametrize("perform", [_alone, _in_a_batch])


@pytest.fixture
def hooked(engine: Engine, door: str, async_engine_url: str) -> Iterator[Hooked]:
    """An application with these hooks."""
    with contextlib.ExitStack() as until:

        def made(*hooks: Any, **options: Any) -> AsyncTask:
            app = outbox.application(engine, door, async_engine_url, lease=5, around=hooks, **options)
            until.callback(app.close)
            return app

        yield made


def does(kind: Any, what: Callable[[], Any]) -> None:
    """Let the targets of this kind do it."""

    async def later(*_: object) -> Any:
        return what()

    outbox.will(later if kind in Later.WITH_SESSION else lambda *_: what())


def one(engine: Engine, kind: Any, **options: Any) -> Any:
    """The id of an attempt of this kind."""
    if kind is act_shared:
        options["method_args"] = {"number": 0}
    [attempt_id] = make(engine, kind, 1, **options)
    return attempt_id


def written(engine: Engine) -> int:
    with engine.connect() as connection:
        return len(connection.execute(effects.select()).all())


def tried(engine: Engine, attempt_id: Any) -> Callable[[], bool]:
    def is_tried() -> bool:
        row = row_of(engine, attempt_id)
        return row.num_attempts > 0 and row.claim_id is None

    return is_tried


@contextmanager
def raise_on_entering(error: BaseException) -> Iterator[None]:
    raise error
    yield


def raise_on_leaving(error: BaseException) -> Any:
    @contextmanager
    def hook(_: CallFacts) -> Iterator[None]:
        with contextlib.suppress(BaseException):
            yield
        raise error

    return hook


@contextmanager
def swallow(_: CallFacts) -> Iterator[None]:
    with contextlib.suppress(BaseException):
        yield


# Where it is entered.


@pytest.mark.in_turns
@each_kind
@alone_or_in_a_batch
def test_each_call_is_made_inside_of_the_hook_which_knows_its_facts_and_sets_what_it_sees(
    engine: Engine, door: str, hooked: Hooked, kind: Any, perform: Perform
) -> None:
    said: list[Any] = []

    @contextmanager
    def hook(facts: CallFacts) -> Iterator[None]:
        assert current_attempt().id == facts.id
        tenant.set("acme")
        said.append(facts)
        yield
        said.append(f"left by {tenant.get()}")

    attempt_id = one(engine, kind)
    with engine.begin() as connection:
        connection.execute(update(Attempt).values(trace_context="00-7355608-01"))
    row = row_of(engine, attempt_id)
    does(kind, lambda: said.append(f"called by {tenant.get()}"))
    perform(hooked(hook), attempt_id, lambda: at_rest(engine))
    name = f"test.{kind.__name__}"
    facts = CallFacts(
        attempt_id,
        name,
        "__call__",
        "default",
        1,
        row.created_at,
        row.due_at,
        "00-7355608-01",
        row_of(engine, attempt_id).attempted_at,
    )
    assert said == [facts, "called by acme", "left by acme"]
    assert facts.call == name
    assert counted(engine) == {"succeeded": 1}
    assert tenant.get() == "none"


@pytest.mark.slow
@some_kinds
def test_a_worker_makes_its_calls_inside_of_the_hook(engine: Engine, door: str, hooked: Hooked, kind: Any) -> None:
    said: list[str] = []

    @contextmanager
    def hook(_: CallFacts) -> Iterator[None]:
        tenant.set("acme")
        yield
        said.append("left")

    attempt_id = one(engine, kind)
    does(kind, lambda: said.append(tenant.get()))
    _by_a_worker(hooked(hook), attempt_id, lambda: at_rest(engine))
    assert said == ["acme", "left"]


@pytest.mark.slow
@some_kinds
def test_what_a_hook_sets_does_not_leak_into_the_next_call(
    engine: Engine, door: str, hooked: Hooked, kind: Any
) -> None:
    seen: list[str] = []

    def hook(facts: CallFacts) -> Any:
        seen.append(tenant.get())
        tenant.set("acme")
        return nullcontext()

    for _ in range(3):
        one(engine, kind)
    does(kind, lambda: seen.append(tenant.get()))
    hooked(hook).run_batch(concurrency=1)
    assert sorted(seen) == ["acme"] * 3 + ["none"] * 3
    assert counted(engine) == {"succeeded": 3}


def test_the_first_of_several_hooks_is_the_outermost(engine: Engine, door: str, hooked: Hooked) -> None:
    said: list[str] = []

    def named(name: str) -> Any:
        @contextmanager
        def hook(_: CallFacts) -> Iterator[None]:
            said.append(f"{name} in")
            yield
            said.append(f"{name} out")

        return hook

    attempt_id = one(engine, act)
    does(act, lambda: said.append("call"))
    assert hooked(named("a"), named("b")).perform(attempt_id) == Succeeded(attempt_id)
    assert said == ["a in", "b in", "call", "b out", "a out"]


class Both:
    """A context manager of both kinds."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def __enter__(self) -> None:
        self.said.append("entered")

    def __exit__(self, *_: object) -> None:
        self.said.append("left")

    async def __aenter__(self) -> None:
        await asyncio.sleep(0)
        self.said.append("awaited")

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)
        self.said.append("left later")


@pytest.mark.slow
@some_kinds
def test_of_an_object_of_both_kinds_the_one_that_fits_the_call_is_entered(
    engine: Engine, door: str, hooked: Hooked, kind: Any
) -> None:
    said: list[str] = []
    attempt_id = one(engine, kind)
    does(kind, lambda: None)
    assert hooked(lambda _: Both(said)).perform(attempt_id) == Succeeded(attempt_id)
    assert said == (["entered", "left"] if kind in Later.PLAIN else ["awaited", "left later"])


@pytest.mark.slow
@some_kinds
def test_an_asynchronous_context_manager_is_for_coroutine_functions(
    engine: Engine, door: str, hooked: Hooked, kind: Any
) -> None:
    said: list[str] = []

    @asynccontextmanager
    async def hook(_: CallFacts) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        tenant.set("acme")
        yield
        await asyncio.sleep(0)
        said.append("left")

    attempt_id = one(engine, kind)
    does(kind, lambda: said.append(tenant.get()))
    outcome = hooked(hook).perform(attempt_id)
    if kind not in Later.PLAIN:
        assert (outcome, said) == (Succeeded(attempt_id), ["acme", "left"])
        return
    assert isinstance(outcome, Retried)
    name = "test_an_asynchronous_context_manager_is_for_coroutine_functions.<locals>.hook"
    assert outcome.error == (
        f"TypeError: the hook {name} (around=) returned an asynchronous context manager, and test.{kind.__name__} is a "
        "plain def, which cannot await it: return one that has __enter__ and __exit__, as @contextmanager makes it"
    )
    assert said == []


async def _coroutine() -> None: ...


@pytest.mark.parametrize("made", [lambda: None, lambda: 7, _coroutine], ids=["None", "int", "coroutine"])
def test_what_is_no_context_manager_fails_the_try(engine: Engine, door: str, hooked: Hooked, made: Any) -> None:
    attempt_id = one(engine, act)
    does(act, lambda: calls.append("called"))
    outcome = hooked(lambda _: made()).perform(attempt_id)
    assert isinstance(outcome, Retried)
    assert outcome.error is not None
    assert "which is no context manager: return one" in outcome.error
    assert calls == []


@target("test.returns_a_coroutine", retry=Retry.every(60))
def returns_a_coroutine() -> Any:
    return outbox.acts[0]()


def test_a_coroutine_that_a_plain_def_returns_runs_inside_of_the_hook(
    engine: Engine, door: str, hooked: Hooked
) -> None:
    said: list[str] = []

    @contextmanager
    def hook(_: CallFacts) -> Iterator[None]:
        tenant.set("acme")
        try:
            yield
        except Broken:
            said.append("it broke")
            raise

    async def act_at_last() -> None:
        await asyncio.sleep(0)
        said.append(tenant.get())
        raise Broken("at last")

    attempt_id = one(engine, returns_a_coroutine)
    outbox.will(act_at_last)
    outcome = hooked(hook).perform(attempt_id)
    assert isinstance(outcome, Retried)
    assert outcome.error == "Broken: at last"
    assert said == ["acme", "it broke"]


@pytest.mark.slow
@_with_doors(act_in_session, act_in_session_leased, act_shared, *Later.WITH_SESSION)
def test_writes_of_the_session_are_flushed_inside_of_the_hook(
    engine: Engine, door: str, hooked: Hooked, kind: Any
) -> None:
    seen: list[str] = []

    @event.listens_for(Effect, "before_insert")
    def note_tenant(*_: object) -> None:
        seen.append(tenant.get())

    @contextmanager
    def hook(_: CallFacts) -> Iterator[None]:
        token = tenant.set("acme")
        yield
        tenant.reset(token)

    attempt_id = one(engine, kind)

    def add(session: Any, *_: object) -> None:
        session.add(Effect(attempt_id=str(attempt_id), number=1, what="done"))

    async def add_later(session: Any) -> None:
        add(session)

    outbox.will(add_later if kind in Later.WITH_SESSION else add)
    try:
        assert hooked(hook).perform(attempt_id) == Succeeded(attempt_id)
    finally:
        event.remove(Effect, "before_insert", note_tenant)
    assert seen == ["acme"]


def test_a_function_that_runs_on_another_thread_of_the_lane_sees_what_the_hook_has_set(
    engine: Engine, door: str, hooked: Hooked
) -> None:
    seen: list[str] = []

    @contextmanager
    def hook(_: CallFacts) -> Iterator[None]:
        tenant.set("acme")
        yield

    attempt_id = one(engine, act_in_session)
    outbox.will(lambda session: lane_of(session).call(lambda: seen.append(tenant.get())))
    assert hooked(hook).perform(attempt_id) == Succeeded(attempt_id)
    assert seen == ["acme"]


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutines"])
def test_the_steps_of_an_operation_run_inside_of_the_hook(
    request: pytest.FixtureRequest, provider: Provider, hooked: Hooked, is_async: bool
) -> None:
    world: World = request.getfixturevalue("async_world" if is_async else "world")
    world.submitted()
    seen: list[str] = []
    provider.meanwhile = lambda: seen.append(tenant.get())

    @contextmanager
    def hook(_: CallFacts) -> Iterator[None]:
        tenant.set("acme")
        yield

    hooked(hook).run_batch()
    assert provider.asked != []
    assert seen == ["acme"] * len(provider.asked)


@pytest.mark.slow
def test_a_job_class_of_the_users_own_makes_its_calls_inside_of_the_hook(
    engine: Engine, door: str, hooked: Hooked
) -> None:
    said: list[str] = []

    class OwnJob(AttemptJob):
        def run(self, lane: Any, claim: Any) -> Outcome:
            said.append("run")
            return super().run(lane, claim)

    @contextmanager
    def hook(_: CallFacts) -> Iterator[None]:
        said.append("in")
        yield

    one(engine, act)
    does(act, lambda: said.append("call"))
    hooked(hook, attempt_job=OwnJob).run_batch()
    assert said == ["run", "in", "call"]


@target("test.isolated_around", retry=Retry.every(60), isolate=True)
def isolated(folder: str) -> None:
    note(folder, f"call-{tenant.get()}")


@pytest.mark.slow
def test_a_call_in_a_child_process_is_made_inside_of_the_hook_there(
    engine: Engine, database: Database, door: str, one_thread: None, tmp_path: pathlib.Path
) -> None:
    @contextmanager
    def hook(facts: CallFacts) -> Iterator[None]:
        tenant.set("acme")
        note(str(tmp_path), f"in-{facts.number}")
        yield
        note(str(tmp_path), "out")

    make(engine, isolated, 1, method_args={"folder": str(tmp_path)})
    close_file(engine)
    app = AsyncTask(database.sync_url if door == "sync" else database.async_url, lease=5, around=hook)
    assert app.run_batch().succeeded == 1
    app.close()
    assert [word for *_, word in notes(tmp_path)] == ["in-1", "call-acme", "out"]


SUPERVISED = """
import contextlib, os, pathlib, threading, time

import outbox
from async_task import AsyncTask

@contextlib.contextmanager
def hook(facts):
    outbox.note(".", "in")
    yield
    outbox.note(".", "out")

app = AsyncTask(os.environ["ASYNC_TASK_DATABASE_URL"], around=hook, on_failed=None)
worker = app.worker(processes=2, concurrency=1, poll=0.05)

def stop():
    while not pathlib.Path("stop").exists():
        time.sleep(0.005)
    worker.stop()

threading.Thread(target=stop).start()
worker.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("door", ["sync"])
def test_supervised_workers_make_their_calls_inside_of_the_hook(
    alone: None, database: Database, engine: Engine, door: str, tmp_path: pathlib.Path
) -> None:
    make(engine, outbox.Elsewhere, 3, method_name="start", method_args={"folder": str(tmp_path)})
    pathlib.Path("script.py").write_text(SUPERVISED)
    given = {"ASYNC_TASK_DATABASE_URL": database.sync_url, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    close_file(engine)
    with contextlib.closing(Program("script", cwd=tmp_path, env=given)) as running:
        await_(lambda: at_rest(engine), "all are performed")
        (tmp_path / "stop").touch()
        assert running.wait() == 0
    words: dict[str, list[str]] = {}
    for attempt_id, _, _, word in notes(tmp_path):
        words.setdefault(attempt_id, []).append(word)
    assert list(words.values()) == [["in", "start", "out"]] * 3


# What it raises.


@pytest.mark.in_turns
@each_kind
@alone_or_in_a_batch
def test_a_hook_that_cannot_be_entered_fails_the_try_and_the_target_is_not_called(
    engine: Engine, door: str, hooked: Hooked, kind: Any, perform: Perform
) -> None:
    attempt_id = one(engine, kind)
    does(kind, lambda: calls.append("called"))
    perform(hooked(lambda _: raise_on_entering(Broken("no tenant"))), attempt_id, tried(engine, attempt_id))
    row = row_of(engine, attempt_id)
    assert (row.status, row.num_errors, row.last_error) == (Status.PENDING, 1, "Broken: no tenant")
    assert [one for one in calls if one == "called"] == []
    assert written(engine) == 0


def test_what_the_hook_itself_raises_is_an_error_of_the_try(engine: Engine, door: str, hooked: Hooked) -> None:
    def hook(_: CallFacts) -> Any:
        raise LookupError("which tenant?")

    attempt_id = one(engine, act)
    does(act, lambda: calls.append("called"))
    outcome = hooked(hook).perform(attempt_id)
    assert isinstance(outcome, Retried)
    assert (outcome.error, calls) == ("LookupError: which tenant?", [])


def test_outer_hooks_see_the_error_of_an_inner_one(engine: Engine, door: str, hooked: Hooked) -> None:
    seen: list[BaseException] = []

    @contextmanager
    def outer(_: CallFacts) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(error)

    problem = Broken("no tenant")
    attempt_id = one(engine, act)
    does(act, lambda: None)
    hooked(outer, lambda _: raise_on_entering(problem)).perform(attempt_id)
    assert seen == [problem]
    assert row_of(engine, attempt_id).last_error == "Broken: no tenant"


@pytest.mark.in_turns
@each_kind
@alone_or_in_a_batch
def test_a_hook_that_raises_on_leaving_fails_the_try_and_undoes_the_writes_of_the_target(
    engine: Engine, door: str, hooked: Hooked, kind: Any, perform: Perform
) -> None:
    attempt_id = one(engine, kind)
    does(kind, lambda: None)
    if kind in (act_in_session, act_in_session_leased):
        outbox.will(lambda session: session.add(Effect(attempt_id=str(attempt_id), number=1, what="undone")))
    perform(hooked(raise_on_leaving(Broken("not left"))), attempt_id, tried(engine, attempt_id))
    row = row_of(engine, attempt_id)
    assert (row.status, row.num_errors, row.last_error) == (Status.PENDING, 1, "Broken: not left")
    assert written(engine) == 0


@pytest.mark.in_turns
@some_kinds
@pytest.mark.parametrize("error", [Broken("no"), SystemExit("no")], ids=["Broken", "SystemExit"])
def test_a_hook_sees_what_the_target_raised_and_cannot_swallow_it(
    engine: Engine, door: str, hooked: Hooked, kind: Any, error: BaseException
) -> None:
    seen: list[Any] = []

    class Hook:
        def __enter__(self) -> None: ...

        def __exit__(self, *given: Any) -> bool:
            seen.append(given)
            return True

    def fail() -> None:
        raise error

    attempt_id = one(engine, kind)
    does(kind, fail)
    outcome = hooked(lambda _: Hook()).perform(attempt_id)
    assert isinstance(outcome, Retried)
    assert outcome.error == f"{type(error).__name__}: no"
    [(type_seen, error_seen, trace)] = seen
    assert (type_seen, error_seen, trace is not None) == (type(error), error, True)


def test_a_stop_iteration_of_a_plain_target_stays_one(engine: Engine, door: str, hooked: Hooked) -> None:
    attempt_id = one(engine, act)
    does(act, lambda: next(iter(())))
    outcome = hooked(swallow).perform(attempt_id)
    assert isinstance(outcome, Retried)
    assert outcome.error == "StopIteration"


@pytest.mark.slow
@some_kinds
def test_an_answer_that_is_refused_is_seen_as_an_error(engine: Engine, door: str, hooked: Hooked, kind: Any) -> None:
    seen: list[str] = []

    @contextmanager
    def hook(_: CallFacts) -> Iterator[None]:
        try:
            yield
        except TypeError as error:
            seen.append(str(error))

    attempt_id = one(engine, kind)
    does(kind, lambda: Broken("returned"))
    hooked(hook).perform(attempt_id)
    said = "the target returned Broken: exceptions are raised, and a poll returns Again(after=...)"
    assert seen == [said]
    assert row_of(engine, attempt_id).last_error == f"TypeError: {said}"


@pytest.mark.in_turns
@some_kinds
@pytest.mark.parametrize("hook", [swallow, raise_on_leaving(Broken("later"))], ids=["swallows", "raises"])
@pytest.mark.parametrize("answer", ["again", "retry after", "discard"])
def test_answers_of_the_target_stay_what_they_are(
    engine: Engine, door: str, hooked: Hooked, kind: Any, hook: Any, answer: str
) -> None:
    def respond() -> Any:
        if answer == "again":
            return Again(after=30)
        raise RetryAfter("slow down", after=90) if answer == "retry after" else Discard("no such order")

    attempt_id = one(engine, kind)
    does(kind, respond)
    outcome = hooked(hook).perform(attempt_id)
    if answer == "discard":
        assert outcome == Failed(attempt_id, "Discard: no such order")
    elif answer == "retry after":
        assert outcome == Retried(attempt_id, dt.timedelta(seconds=90), "RetryAfter: slow down")
    elif hook is swallow:
        assert outcome == Retried(attempt_id, dt.timedelta(seconds=30))
    else:
        assert isinstance(outcome, Retried)
        assert outcome.error == "Broken: later"


@pytest.mark.in_turns
@some_kinds
@pytest.mark.parametrize("when", ["entering", "leaving", "leaving after an error"])
def test_retry_after_and_discard_of_a_hook_count_as_those_of_a_target(
    engine: Engine, door: str, hooked: Hooked, kind: Any, when: str
) -> None:
    def fail() -> None:
        raise Broken("429")

    def perform(error: BaseException) -> Outcome:
        hook = (lambda _: raise_on_entering(error)) if when == "entering" else raise_on_leaving(error)
        return hooked(hook).perform(one(engine, kind))

    does(kind, fail if when == "leaving after an error" else lambda: None)
    later = perform(RetryAfter("slow down", after=90))
    assert isinstance(later, Retried)
    assert (later.after, later.error) == (dt.timedelta(seconds=90), "RetryAfter: slow down")
    discarded = perform(Discard("no such tenant"))
    assert isinstance(discarded, Failed)
    assert discarded.reason == "Discard: no such tenant"


@pytest.mark.slow
@some_kinds
def test_retry_after_and_discard_of_the_target_count_before_those_of_a_hook(
    engine: Engine, door: str, hooked: Hooked, kind: Any
) -> None:
    def give_up() -> None:
        raise Discard("no such order")

    attempt_id = one(engine, kind)
    does(kind, give_up)
    outcome = hooked(raise_on_leaving(RetryAfter("slow down", after=90))).perform(attempt_id)
    assert outcome == Failed(attempt_id, "Discard: no such order")


@pytest.mark.slow
@some_kinds
def test_the_error_of_the_target_stays_when_a_hook_raises_another_one_which_is_logged_without_its_text(
    engine: Engine, door: str, hooked: Hooked, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise Broken("of the target")

    attempt_id = one(engine, kind)
    does(kind, fail)
    hooked(raise_on_leaving(ValueError("card 7355608"))).perform(attempt_id)
    assert row_of(engine, attempt_id).last_error == "Broken: of the target"
    [said] = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert said == (
        f"the hook raise_on_leaving.<locals>.hook (around=) raised ValueError after try 1 of attempt {attempt_id} had "
        "raised Broken, which counts"
    )


# Its time.


@pytest.mark.in_turns
@pytest.mark.parametrize("where", ["entering", "leaving"])
@each_performer
def test_the_time_limit_of_a_coroutine_function_counts_the_hook(
    engine: Engine, door: str, hooked: Hooked, where: str, perform: Perform
) -> None:
    said: list[str] = []

    @asynccontextmanager
    async def hook(_: CallFacts) -> AsyncIterator[None]:
        for place in ("entering", "leaving"):
            try:
                await asyncio.sleep(60 if place == where else 0)
            except asyncio.CancelledError:
                said.append(f"canceled when {place}")
                raise
            if place == "entering":
                yield

    attempt_id = one(engine, act_brief_later)
    does(act_brief_later, lambda: said.append("called"))
    perform(hooked(hook), attempt_id, tried(engine, attempt_id))
    row = row_of(engine, attempt_id)
    assert row.last_error == "TimeoutError: the call took longer than its limit, 0.05 s, and was canceled"
    assert said == (["canceled when entering"] if where == "entering" else ["called", "canceled when leaving"])


@pytest.mark.parametrize("door", ["sync"])
def test_calls_inside_of_a_hook_are_committed_together_as_without_one(
    engine: Engine, hooked: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BatchSize, "number", property(lambda self: 30, lambda self, number: None), raising=False)
    sizes: list[int] = []
    write_outcomes = fenced_writes.write_outcomes

    def noted(connection: Any, table: Any, succeeded: Sequence[Any], *others: Any) -> Any:
        sizes.append(len(succeeded))
        return write_outcomes(connection, table, succeeded, *others)

    monkeypatch.setattr(outcome_writer.fenced_writes, "write_outcomes", noted)
    make(engine, act, 6)
    does(act, lambda: None)
    app = hooked(lambda _: nullcontext())
    with working(app, concurrency=1, settle_within=1):
        await_(lambda: at_rest(engine), "all are performed")
    assert sizes == [6]


# What is given.


def test_one_hook_is_given_alone_or_in_a_list(engine: Engine, door: str, write: Callable[..., Attempt]) -> None:
    said: list[str] = []

    def hook(facts: CallFacts) -> Any:
        said.append(facts.call)
        return nullcontext()

    for given in (hook, [hook], (hook, functools.partial(hook))):
        AsyncTask(engine, around=given).perform(write(Client, "ping").id)
    assert said == ["test.client.ping"] * 4


def test_a_hook_that_its_decorator_gives_more_is_taken() -> None:
    def injected(hook: Callable[[CallFacts, str], Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def called(facts: CallFacts) -> Any:
            return hook(facts, "a session")

        return called

    @injected
    def hook(facts: CallFacts, session: str) -> Any:
        return nullcontext()

    AsyncTask("sqlite:///never.db", around=[hook, functools.partial(lambda session, facts: nullcontext(), "a session")])


def generator(facts: CallFacts) -> Iterator[None]:
    yield


async def async_generator(facts: CallFacts) -> AsyncIterator[None]:
    yield


async def coroutine(facts: CallFacts) -> None: ...


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (7, "around takes a function, or a list of functions"),
        ([7], r"around takes a function, called as around\(facts\), not 7"),
        (generator, "put @contextmanager above a generator function"),
        ([async_generator], "put @contextmanager above a generator function"),
        (coroutine, "around takes a function that returns a context manager"),
        (
            lambda facts, session: nullcontext(),
            r"around is called as around\(facts\), which <function .* take: missing",
        ),
        (contextmanager(lambda: iter([None])), r"around is called as around\(facts\), which .* take: too many pos"),
        ("tenant_of", "around takes a function, or a list of functions, not str"),
    ],
)
def test_what_is_no_hook_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        AsyncTask("sqlite:///never.db", around=given)
