"""Performing one attempt: `app.perform`, with every outcome, on every database, on sync and async engines."""

import asyncio
import contextlib
import datetime as dt
import os
import signal
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from select import select as wait_for
from typing import Any

import pytest
from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, Table, create_engine, event, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

from async_task import (
    Again,
    AsyncTask,
    AsyncTaskError,
    Attempt,
    Busy,
    ConfigurationError,
    Expired,
    Failed,
    NotDue,
    NotPending,
    Outcome,
    Parked,
    Retried,
    Status,
    Succeeded,
    Superseded,
    current_attempt,
)
from async_task.database.disconnection import descriptor_of
from clockwork import forget_beats, let_pass, row_of
from databases import Database
from outbox import (
    Broken,
    Client,
    Effect,
    act,
    act_brief_in_session,
    act_brief_later,
    act_in_async_session,
    act_in_async_session_locked,
    act_in_session,
    act_in_session_leased,
    act_later,
    act_later_locked,
    act_leased,
    application,
    calls,
    effect,
    effect_later,
    effects,
    events_of,
    instance,
    will,
)

Write = Callable[..., Attempt]
TABLE: Table = Attempt.__table__  # type: ignore[assignment]
HOUR = dt.timedelta(hours=1)
only_async = pytest.mark.parametrize("door", ["async"])
only_sync = pytest.mark.parametrize("door", ["sync"])


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def written(engine: Engine) -> list[str | None]:
    """What the targets have committed to `effects`."""
    with engine.connect() as connection:
        return list(connection.scalars(select(effects.c.what).order_by(effects.c.id)))


def put(session: Session, what: str = "kept") -> Any:
    session.execute(effects.insert().values(attempt_id=str(current_attempt().id), what=what))


# Outcomes


@pytest.mark.slow
def test_a_call_that_returns_succeeds_and_is_counted_once(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "fulfill", {"customer_token": "c-1", "order_number": 7})
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.completed_at is not None) == (Status.SUCCEEDED, 1, True)
    assert (row.claim_id, row.claimed_by, row.lease_until) == (None, None, None)
    assert calls == [("c-1", 7)]


def test_writes_of_a_target_that_raises_are_rolled_back_and_its_error_is_stored(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    attempt = write(effect, None, {"what": "raise"})
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_attempts, row.num_errors, row.completed_at) == (Status.PENDING, 1, 1, None)
    assert row.last_error == "Broken: after the write"
    assert written(engine) == []


@pytest.mark.slow
def test_a_statement_is_compiled_once_for_all_lanes(
    app: AsyncTask, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = write(Client, "ping"), write(Client, "ping")
    assert app.perform(first.id) == Succeeded(first.id)
    compiled: list[Any] = []
    compile_it: Any = SQLCompiler.__init__

    def noted(self: SQLCompiler, dialect: Any, statement: Any, *args: Any, **options: Any) -> None:
        compiled.append(statement)
        compile_it(self, dialect, statement, *args, **options)

    monkeypatch.setattr(SQLCompiler, "__init__", noted)
    assert app.perform(second.id) == Succeeded(second.id)
    assert compiled == []


@pytest.mark.slow
def test_retried_has_the_delay_and_the_error(app: AsyncTask, write: Write) -> None:
    failing, polling = write(Client, "fail"), write(Client, "poll")
    patient = write(Client, "ask_for_patience", {"seconds": 300})
    assert app.perform(failing.id) == Retried(failing.id, dt.timedelta(seconds=60), "Broken: no such order")
    assert app.perform(polling.id) == Retried(polling.id, dt.timedelta(seconds=30), None)
    assert app.perform(patient.id) == Retried(patient.id, dt.timedelta(seconds=300), "RetryAfter: slow down")


@pytest.mark.slow
def test_failed_has_a_reason(app: AsyncTask, engine: Engine, write: Write) -> None:
    discarded, used_up = write(Client, "give_up", {"reason": "no such order"}), write(Client, "fail", max_attempts=1)
    assert app.perform(discarded.id) == Failed(discarded.id, "Discard: no such order")
    assert app.perform(used_up.id) == Failed(used_up.id, "max_attempts used up: 1 of 1: Broken: no such order")
    for attempt in (discarded, used_up):
        row = row_of(engine, attempt.id)
        assert (row.status, row.num_errors, row.completed_at is not None) == (Status.FAILED, 1, True)


@pytest.mark.slow
def test_an_attempt_expires_before_its_first_try_or_after_an_error(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    untried = write(Client, "ping", expires_at=now() + HOUR)
    let_pass(engine, HOUR)
    tried = write(Client, "fail", expires_at=now() + dt.timedelta(seconds=59))
    assert app.perform(untried.id) == Expired(untried.id, "past its expires_at")
    assert app.perform(tried.id) == Expired(tried.id, "its next try would fall past expires_at")
    assert [row_of(engine, one.id).num_errors for one in (untried, tried)] == [0, 1]


def test_not_due_has_the_time(app: AsyncTask, write: Write) -> None:
    then = now().replace(microsecond=0) + HOUR
    attempt = write(Client, "ping", scheduled_at=then)
    assert app.perform(attempt.id) == NotDue(attempt.id, then)


@pytest.mark.parametrize("as_given", [uuid.UUID, str])
def test_an_unknown_id_is_not_pending_without_a_status(
    app: AsyncTask, engine: Engine, as_given: Callable[[str], Any]
) -> None:
    unknown = "0190163d-8694-739b-aea5-966c26f8ad90"
    assert app.perform(as_given(unknown)) == NotPending(uuid.UUID(unknown), None)


def test_an_invalid_id_is_refused(app: AsyncTask) -> None:
    with pytest.raises(ConfigurationError, match="UUID"):
        app.perform("7355608")


@pytest.mark.only_on("postgresql", "mysql")
def test_busy_while_another_transaction_has_the_row_locked(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    with engine.begin() as connection:
        connection.execute(select(TABLE).where(TABLE.c.id == attempt.id).with_for_update())
        assert app.perform(attempt.id) == Busy(attempt.id, None, None)
    assert app.perform(attempt.id) == Succeeded(attempt.id)


@pytest.mark.slow
@pytest.mark.parametrize("target", [act_leased, act_later, act_in_session_leased])
def test_a_call_that_lost_its_claim_is_superseded_and_writes_nothing(
    app: AsyncTask, engine: Engine, write: Write, door: str, async_engine_url: str, target: object
) -> None:
    slow = application(engine, door, async_engine_url, lease=60)  # so long that no heartbeat falls into the test

    def outlast(*given: Session) -> None:
        let_pass(engine, 100)
        forget_beats(engine)
        with_thread(app.sweep)
        calls.append(row_of(engine, attempt.id))
        for session in given:
            put(session)

    attempt = write(target)
    will(outlast)
    assert slow.perform(attempt.id) == Superseded(attempt.id)
    assert row_of(engine, attempt.id) == calls[0]
    assert (calls[0].status, calls[0].num_losses, calls[0].last_error) == (Status.PENDING, 1, None)
    assert written(engine) == []


def with_thread(do: Callable[[], Any]) -> Any:
    """`do()` where no event loop runs."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(do()))
    thread.start()
    thread.join()
    return answers[0]


UNREADY = {
    "UnknownEncryptor": {"encryptor": "no.such.encryptor"},
    "DecryptionFailed": {"encryptor": "test.box", "method_args": "bm90IHdoYXQgd2FzIHdyaXR0ZW4="},
}


@pytest.mark.slow
@pytest.mark.parametrize("error", UNREADY)
def test_a_missing_key_parks_the_attempt_uncharged_with_one_event(
    app: AsyncTask, engine: Engine, write: Write, error: str
) -> None:
    attempt = write(Client, "ping")
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(UNREADY[error]))
    for _ in range(2):
        outcome = app.perform(attempt.id)
        assert isinstance(outcome, Parked)
        assert outcome.reason.startswith(f"{error}: ")
        assert dt.timedelta(seconds=20) <= outcome.after <= dt.timedelta(seconds=40)
        row = row_of(engine, attempt.id)
        assert (row.status, row.num_attempts, row.num_errors, row.num_crashes) == (Status.PENDING, 0, 0, 0)
        assert (row.claim_id, row.last_error) == (None, f"parked: {outcome.reason}")
        assert abs(row.due_at - now() - outcome.after) < dt.timedelta(seconds=5)
        assert isinstance(app.perform(attempt.id), NotDue)
        let_pass(engine, 41)
    assert [one.kind for one in events_of(engine, attempt.id)] == ["parked"]
    assert calls == []


@pytest.mark.slow
def test_a_parked_attempt_succeeds_once_its_target_is_there(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(Client, "ping")
    for target, outcome in (("no.such.target", Parked), ("test.client", Succeeded)):
        with engine.begin() as connection:
            connection.execute(update(TABLE).values(target=target))
        assert isinstance(app.perform(attempt.id), outcome)
        let_pass(engine, 41)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.last_error) == (1, None)


@only_sync
def test_an_async_session_target_on_a_sync_engine_is_parked(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = write(effect_later)
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Parked)
    assert "give AsyncTask an AsyncEngine" in outcome.reason
    assert row_of(engine, attempt.id).num_attempts == 0


# What a target can do


class Thing:
    pass


def dead_proxy() -> object:
    return weakref.proxy(Thing())


def raising(error: BaseException) -> Callable[..., Any]:
    def do(*given: Any) -> None:
        for session in given:
            put(session, "never")
        raise error

    return do


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


class ApiError(Exception):
    """Like wrappers of HTTP clients whose response was never set."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.response, name)


class NoCause(Exception):
    @property
    def __cause__(self) -> Any:
        raise ValueError


class NoClass(Exception):
    @property
    def __class__(self) -> Any:
        raise ValueError


class Words(str):
    def strip(self, *given: Any) -> Any:
        raise ValueError


class Worded(Exception):
    def __str__(self) -> str:
        return Words("in words of its own")


def deep_group() -> ExceptionGroup[Broken]:
    group = ExceptionGroup("deep", [Broken("a")])
    for _ in range(5_000):
        group = ExceptionGroup("deep", [group])
    return group


ERRORS = {
    "SystemExit: 3": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "CancelledError": asyncio.CancelledError(),
    "MemoryError": MemoryError(),
    "StopIteration": StopIteration(),
    "Mute: (its __str__ raised ValueError)": Mute(),
    "ExceptionGroup: both (2 sub-exceptions)": ExceptionGroup("both", [Broken("a"), Broken("b")]),
    "ApiError: 502": ApiError("502"),
    "NoCause: (it cannot be read: ValueError)": NoCause(),
    "NoClass: (it cannot be read: ValueError)": NoClass(),
    "Worded: in words of its own": Worded(),
    "ExceptionGroup: deep": deep_group(),
    "Broken: NUL \\0 and half a pair \\ud800": Broken("NUL \0 and half a pair \ud800"),
    "Broken: xxxxxxxxxx": Broken("x" * 10_000_000),
}


each_kind_of_call = pytest.mark.parametrize(
    "target",
    [
        act_in_session,  # on every database: it rolls back there
        # Without a session nothing depends on the database.
        pytest.param(act, marks=pytest.mark.only_on("postgresql")),
        pytest.param(act_later, marks=pytest.mark.only_on("postgresql")),
    ],
)


@pytest.mark.slow
@each_kind_of_call
def test_a_process_that_a_call_forks_ends_where_the_call_does(
    app: AsyncTask, engine: Engine, write: Write, target: object
) -> None:
    ends: list[int] = []

    def fork(*given: Session) -> None:
        for session in given:
            put(session)
        child = os.fork()
        if child:
            ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            signal.alarm(10)  # or it would wait for ever, as a copy of this test

    will(fork)
    attempt = write(target)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert ends == [1]
    assert row_of(engine, attempt.id).status is Status.SUCCEEDED
    assert written(engine) == (["kept"] if target is act_in_session else [])


@pytest.mark.slow
@each_kind_of_call
def test_any_exception_of_a_target_is_rolled_back_and_recorded_and_does_not_end_the_process(
    app: AsyncTask, engine: Engine, write: Write, target: object
) -> None:
    for said, error in ERRORS.items():
        if type(error) is StopIteration and target is act_later:
            continue  # Python itself turns it into a RuntimeError
        will(raising(error))
        attempt = write(target)
        outcome = app.perform(attempt.id)
        assert isinstance(outcome, Retried), said
        row = row_of(engine, attempt.id)
        assert (row.status, row.num_attempts, row.num_errors, row.claim_id) == (Status.PENDING, 1, 1, None)
        assert row.last_error.startswith(said)
        assert len(row.last_error) < 3000
        (recorded,) = events_of(engine, attempt.id)
        assert (recorded.kind, recorded.message) == ("error", row.last_error)
    assert written(engine) == []


@pytest.mark.slow
def test_errors_and_answers_that_cannot_be_read_are_settled_in_a_batch_too(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    odd = [raising(ApiError("502")), raising(NoCause()), raising(NoClass())]
    answers: list[Callable[[], object]] = []
    will(lambda: answers.pop()() if answers else None)
    for target in (act, act_later):
        answers[:] = [*odd, dead_proxy] if target is act else odd  # act_later asks for its class by itself
        ids = [write(target).id for _ in range(8)]
        app.run_batch(concurrency=1)
        rows = [row_of(engine, one) for one in ids]
        assert [row.num_attempts for row in rows] == [1] * 8
        ends = Counter((str(row.status), row.num_errors) for row in rows)
        assert ends == {("pending", 1): 3, ("succeeded", 0): 5}


@pytest.mark.slow
@only_async
def test_any_exception_of_a_target_with_an_async_session_is_rolled_back_and_recorded(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    for said, error in ERRORS.items():

        async def do(session: AsyncSession, error: BaseException = error) -> None:
            await session.execute(effects.insert().values(what="never"))
            raise error

        if type(error) is StopIteration:
            continue
        will(do)
        attempt = write(act_in_async_session)
        assert isinstance(app.perform(attempt.id), Retried), said
        assert row_of(engine, attempt.id).last_error.startswith(said)
    assert written(engine) == []


class Awaitable:
    def __await__(self) -> Iterator[None]:
        yield


def generator() -> Iterator[int]:
    calls.append("run")
    yield 1


async def async_generator() -> AsyncIterator[int]:
    calls.append("run")
    yield 1


@pytest.mark.slow
@pytest.mark.parametrize("target", [act, act_leased, act_in_session])
def test_a_coroutine_returned_by_a_plain_function_is_run(app: AsyncTask, write: Write, target: object) -> None:
    async def run() -> None:
        await asyncio.sleep(0)
        calls.append("run")

    will(lambda *given: run())
    attempt = write(target)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert calls == ["run"]


@pytest.mark.slow
def test_the_result_of_a_returned_coroutine_is_the_answer_of_the_call(app: AsyncTask, write: Write) -> None:
    async def fail() -> None:
        raise Broken("later")

    async def poll() -> Again:
        return Again(after=7)

    for run, said in ((fail, (dt.timedelta(seconds=60), "Broken: later")), (poll, (dt.timedelta(seconds=7), None))):
        will(run)
        attempt = write(act)
        assert app.perform(attempt.id) == Retried(attempt.id, *said)


ANSWERS = {
    "a generator": (generator, "TypeError: the target returned a generator"),
    "an async generator": (async_generator, "TypeError: the target returned a async_generator"),
    "an awaitable": (Awaitable, "TypeError: the target returned a Awaitable"),
    "an exception": (lambda: Broken("returned"), "TypeError: the target returned Broken"),
    "the class Again": (lambda: Again, "TypeError: the target returned Again"),
}


@pytest.mark.slow
@each_kind_of_call
def test_a_returned_generator_awaitable_or_exception_is_an_error(
    app: AsyncTask, engine: Engine, write: Write, target: object
) -> None:
    for answer, (make, said) in ANSWERS.items():
        will(lambda *given, make=make: make())
        attempt = write(target)
        assert isinstance(app.perform(attempt.id), Retried), answer
        assert row_of(engine, attempt.id).last_error.startswith(said)
    assert calls == []


def commit_twice(session: Session) -> None:
    session.commit()
    put(session, "also")
    session.commit()


def commit_and_begin(session: Session) -> None:
    session.commit()
    session.begin()


Do = Callable[[Session], Any]
SESSION_ENDS: dict[str, Do] = {
    "commits": Session.commit,
    "commits twice": commit_twice,
    "leaves a nested transaction open": lambda session: (session.begin_nested(), put(session, "also")),
    "begins after a commit": commit_and_begin,
    "adds without a flush": lambda session: session.add(Effect(what="also")),
    "flushes": Session.flush,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "target"), [*((how, act_in_session) for how in SESSION_ENDS), ("commits twice", act_in_session_leased)]
)
def test_a_commit_of_the_targets_session_commits_with_the_attempt_or_not_at_all(
    app: AsyncTask, engine: Engine, write: Write, how: str, target: object
) -> None:
    for raises in (True, False):

        def do(session: Session, raises: bool = raises) -> None:
            put(session)
            SESSION_ENDS[how](session)
            if raises:
                raise Broken

        will(do)
        attempt = write(target)
        assert isinstance(app.perform(attempt.id), Retried if raises else Succeeded)
        assert written(engine) == ([] if raises else ["kept", "also"] if how in ALSO else ["kept"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rollback", "close"])
def test_a_rollback_or_close_undoes_the_writes_before_it_and_no_others(
    app: AsyncTask, engine: Engine, write: Write, how: str
) -> None:
    def do(session: Session) -> None:
        put(session, "before")
        getattr(session, how)()
        put(session, "after")

    will(do)
    attempt = write(act_in_session)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert written(engine) == ["after"]


@pytest.mark.slow
@only_async
@pytest.mark.parametrize("how", ["commit", "rollback", "close"])
@pytest.mark.parametrize("target", [act_in_async_session, act_in_async_session_locked])
def test_the_same_holds_for_an_async_session(
    app: AsyncTask, engine: Engine, write: Write, how: str, target: object
) -> None:
    for raises in (False, True):

        async def do(session: AsyncSession, raises: bool = raises) -> None:
            await session.execute(effects.insert().values(what="before"))
            await getattr(session, how)()
            await session.execute(effects.insert().values(what="after"))
            if raises:
                raise Broken

        will(do)
        assert isinstance(app.perform(write(target).id), Retried if raises else Succeeded)
    assert written(engine) == (["before", "after"] if how == "commit" else ["after"])


ALSO = ("commits twice", "leaves a nested transaction open", "adds without a flush")
TRANSACTION_ENDS: dict[str, Do] = {
    "a raw COMMIT": lambda session: session.execute(text("COMMIT")),
    "a raw ROLLBACK": lambda session: session.execute(text("ROLLBACK")),
    "connection().commit()": lambda session: session.connection().commit(),
    "connection().rollback()": lambda session: session.connection().rollback(),
    "a raw COMMIT and more writes": lambda session: (session.execute(text("COMMIT")), put(session, "more")),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", TRANSACTION_ENDS)
def test_a_target_that_ends_the_attempts_transaction_fails_and_is_never_retried(
    app: AsyncTask, engine: Engine, write: Write, database: Database, how: str
) -> None:
    for raises in (False, True):

        def do(session: Session, raises: bool = raises) -> None:
            put(session)
            TRANSACTION_ENDS[how](session)
            if raises:
                raise Broken("after it")

        will(do)
        attempt = write(act_in_session)
        outcome = app.perform(attempt.id)
        assert isinstance(outcome, Failed)
        assert outcome.reason.startswith("committed_inside")
        row = row_of(engine, attempt.id)
        assert (row.status, row.num_attempts, row.num_errors) == (Status.FAILED, 1, 1)
        assert row.last_error.startswith("committed_inside")
        (recorded,) = events_of(engine, attempt.id)
        assert recorded.num_attempt == 1
        assert ("Broken: after it" in recorded.detail) == raises
    if database.name != "sqlite":  # there each further statement commits by itself
        assert "more" not in written(engine)
    let_pass(engine, HOUR)
    assert app.run_batch().claimed == 0


@pytest.mark.slow
@pytest.mark.parametrize("raises", [False, True])
def test_ddl_is_part_of_the_transaction_or_ends_it(
    app: AsyncTask, engine: Engine, write: Write, database: Database, raises: bool
) -> None:
    def do(session: Session) -> None:
        put(session)
        session.execute(text("CREATE TABLE made_inside (id integer)"))
        if raises:
            raise Broken

    will(do)
    attempt = write(act_in_session)
    outcome = app.perform(attempt.id)
    try:
        if database.name == "mysql":  # DDL commits there
            assert isinstance(outcome, Failed)
            assert outcome.reason.startswith("committed_inside")
        else:
            assert isinstance(outcome, Retried if raises else Succeeded)
            assert written(engine) == ([] if raises else ["kept"])
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS made_inside"))


def violate(session: Session) -> None:
    session.add(Effect(id=1, what="first"))
    session.flush()
    session.execute(effects.insert().values(id=1, what="second"))


def test_an_integrity_error_that_the_target_catches_never_leaves_half_of_its_writes_and_a_retry(
    app: AsyncTask, engine: Engine, write: Write, database: Database
) -> None:
    def do(session: Session) -> None:
        with contextlib.suppress(IntegrityError):
            violate(session)

    will(do)
    attempt = write(act_in_session)
    outcome = app.perform(attempt.id)
    if database.name == "postgresql":  # its transaction is aborted, and the next statement fails
        assert isinstance(outcome, Retried)
        assert written(engine) == []
    else:
        assert outcome == Succeeded(attempt.id)
        assert written(engine) == ["first"]


def test_an_integrity_error_caught_around_a_savepoint_undoes_that_savepoint_only(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    def do(session: Session) -> None:
        put(session)
        with contextlib.suppress(IntegrityError), session.begin_nested():
            violate(session)

    will(do)
    attempt = write(act_in_session)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert written(engine) == ["kept"]


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "sqlite")
def test_a_deferred_constraint_that_fails_undoes_the_writes_and_is_an_error_of_the_target(
    engine: Engine, door: str, async_engine_url: str, write: Write, database: Database
) -> None:
    metadata = MetaData()
    Table("parents", metadata, Column("id", Integer, primary_key=True))
    parent = ForeignKey("parents.id", deferrable=True, initially="DEFERRED")
    children = Table("children", metadata, Column("id", Integer, primary_key=True), Column("parent_id", parent))
    metadata.create_all(engine)
    own: Any = create_engine(database.sync_url) if door == "sync" else create_async_engine(async_engine_url)
    if database.name == "sqlite":
        listened = own if door == "sync" else own.sync_engine
        event.listen(listened, "connect", lambda connection, record: connection.execute("PRAGMA foreign_keys = ON"))
    app = AsyncTask(own, lease=1)

    def do(session: Session) -> None:
        put(session)
        session.execute(children.insert().values(parent_id=7))

    try:
        will(do)
        attempt = write(act_in_session)
        outcome = app.perform(attempt.id)
        assert isinstance(outcome, Retried)
        assert "IntegrityError" in str(outcome.error)
        row = row_of(engine, attempt.id)
        assert (row.num_attempts, row.num_errors) == (1, 1)
        assert written(engine) == []
    finally:
        if door == "sync":
            own.dispose()
        metadata.drop_all(engine)


@pytest.mark.slow
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("target", [act_in_session, act_in_session_leased])
def test_an_attempt_created_by_a_target_exists_exactly_if_the_targets_transaction_commits(
    app: AsyncTask, engine: Engine, write: Write, raises: bool, target: object
) -> None:
    def do(session: Session) -> None:
        put(session)
        calls.append(Attempt.create(target=Client, method_name="ping").id)
        if raises:
            raise Broken

    will(do)
    app.perform(write(target).id)
    assert app.perform(calls[0]) == (NotPending(calls[0], None) if raises else Succeeded(calls[0]))


@pytest.mark.slow
def test_every_kind_of_target_is_called(app: AsyncTask, engine: Engine, write: Write) -> None:
    arguments = {"customer_token": "c-1", "order_number": 7}
    for attempt in (
        write(Client, "fulfill", arguments),
        write(Client, "fulfill_later", arguments),
        write(Client, "ping"),
        write(instance, "greet", {"name": "you"}),
        write("test.module", "note", {"what": "by a module"}),
        write(effect),
    ):
        assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert calls == [("c-1", 7), ("c-1", 7), ("Client", "ping"), "hello you", "by a module"]
    assert written(engine) == ["done"]


@only_async
def test_a_target_with_an_async_session_writes_in_the_attempts_transaction(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    good, bad = write(effect_later), write(effect_later, None, {"what": "raise"})
    assert app.perform(good.id) == Succeeded(good.id)
    assert isinstance(app.perform(bad.id), Retried)
    assert written(engine) == ["done"]


@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize(
    ("target", "before", "after"),
    [
        (act_in_session_leased, "free", "locked"),
        (act_in_session, "locked", "locked"),
        (act_leased, "free", "free"),
        (act, "locked", "locked"),
        (act_later, "free", "free"),
        (act_later_locked, "locked", "locked"),
    ],
)
@pytest.mark.in_turns
def test_a_locked_call_locks_the_row_and_a_leased_one_only_from_the_first_use_of_its_session(
    app: AsyncTask, engine: Engine, write: Write, target: object, before: str, after: str
) -> None:
    attempt = write(target)

    def lock() -> str:
        try:
            with engine.begin() as connection:
                connection.execute(select(TABLE.c.id).where(TABLE.c.id == attempt.id).with_for_update(nowait=True))
            return "free"
        except OperationalError:
            return "locked"

    def do(*given: Session) -> None:
        calls.append(lock())
        for session in given:
            put(session)
        calls.append(lock())

    will(do)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert calls == [before, after]


def test_a_leased_call_that_does_not_use_its_session_opens_no_transaction(app: AsyncTask, write: Write) -> None:
    will(lambda session: calls.append(session.in_transaction()))
    attempt = write(act_in_session_leased)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert calls == [False]


# Limits


@pytest.mark.slow
def test_an_async_target_is_canceled_after_its_timeout(app: AsyncTask, engine: Engine, write: Write) -> None:
    async def sleep() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            calls.append("ended")
            raise

    will(sleep)
    attempt = write(act_brief_later)
    assert isinstance(app.perform(attempt.id), Retried)
    row = row_of(engine, attempt.id)
    late = "TimeoutError: the call took longer than its limit, 0.05 s, and was canceled"
    assert (row.num_errors, row.last_error, calls) == (1, late, ["ended"])


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_call_that_sleeps_past_its_limit_loses_its_transaction_and_is_charged_with_a_timeout(
    app: AsyncTask, engine: Engine, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    def do(session: Session) -> None:
        put(session)
        # The server says that it ends the connection: after the limit, which MariaDB counts in whole seconds.
        descriptor = descriptor_of(session.connection().connection.driver_connection)
        calls.extend(wait_for([descriptor], [], [], 30)[0])

    will(do)
    attempt = write(act_brief_in_session)
    outcome = app.perform(attempt.id)
    assert isinstance(outcome, Retried)
    assert len(calls) == 1
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors) == (1, 1)
    assert row.last_error.startswith("TimeoutError")
    assert "was not written at once" not in caplog.text
    assert written(engine) == []


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_statement_that_exceeds_the_limit_is_ended_and_the_call_is_charged_with_a_timeout(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    def do(session: Session) -> None:
        put(session)
        session.execute(text("SELECT pg_sleep(30)" if engine.dialect.name == "postgresql" else "SELECT SLEEP(30)"))

    will(do)
    attempt = write(act_brief_in_session)
    began = time.monotonic()
    outcome = app.perform(attempt.id)
    assert time.monotonic() - began < 10
    assert isinstance(outcome, Retried)
    row = row_of(engine, attempt.id)
    assert (row.num_attempts, row.num_errors) == (1, 1)
    assert row.last_error.startswith("TimeoutError")
    assert written(engine) == []


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("is_caught", [False, True])
def test_a_deadlock_of_two_targets_undoes_all_writes_of_one_and_a_retry_succeeds(
    app: AsyncTask, engine: Engine, write: Write, database: Database, is_caught: bool
) -> None:
    with engine.begin() as connection:
        connection.execute(effects.insert(), [{"id": 1, "what": "0"}, {"id": 2, "what": "0"}])
    both = threading.Barrier(2)
    order: dict[uuid.UUID, tuple[int, int]] = {}

    def add_one(session: Session, row: int) -> None:
        what = session.scalar(select(effects.c.what).where(effects.c.id == row).with_for_update())
        session.execute(update(effects).where(effects.c.id == row).values(what=str(int(str(what)) + 1)))

    def do(session: Session) -> None:
        first, second = order[current_attempt().id]
        add_one(session, first)
        if current_attempt().number == 1:
            both.wait(10)
        try:
            add_one(session, second)
        except OperationalError:
            if not is_caught:
                raise

    will(do)
    app.check_schema()
    attempts = [write(act_in_session), write(act_in_session)]
    order.update({attempts[0].id: (1, 2), attempts[1].id: (2, 1)})
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda one=one: outcomes.append(app.perform(one.id))) for one in attempts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost = [one for one in outcomes if not isinstance(one, Succeeded)]
    assert len(lost) == 1
    assert isinstance(lost[0], Parked | Retried | Failed if is_caught else Parked | Retried)
    assert written(engine) == ["1", "1"]
    if not isinstance(lost[0], Failed):
        let_pass(engine, 61)
        assert app.perform(lost[0].attempt_id) == Succeeded(lost[0].attempt_id)
        assert written(engine) == ["2", "2"]


@pytest.mark.in_turns
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("is_caught", [False, True])
@pytest.mark.parametrize("target", [act_in_session, act_in_session_leased])
def test_a_connection_lost_during_the_call_parks_the_attempt_uncharged_and_undoes_its_writes(
    app: AsyncTask, engine: Engine, write: Write, database: Database, target: object, is_caught: bool
) -> None:
    pid, kill = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
        "mysql": ("SELECT CONNECTION_ID()", "KILL {}"),
    }[database.name]

    def do(session: Session) -> None:
        put(session)
        with engine.connect() as other:
            other.execute(text(kill.format(session.scalar(text(pid)))))
        try:
            put(session)
        except OperationalError:
            if not is_caught:
                raise

    will(do)
    attempt = write(target)
    assert isinstance(app.perform(attempt.id), Parked)
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.num_errors, row.num_crashes) == (Status.PENDING, None, 0, 0)
    assert written(engine) == []


# Which attempt


@pytest.mark.slow
def test_current_attempt_has_id_number_and_deadline(app: AsyncTask, engine: Engine, write: Write) -> None:
    def look() -> Again:
        calls.append(current_attempt())
        return Again(after=1)

    will(look)
    attempt = write(act_later)
    for _ in range(2):
        app.perform(attempt.id)
        let_pass(engine, 2)
    assert [(one.id, one.number, one.deadline) for one in calls] == [(attempt.id, 1, None), (attempt.id, 2, None)]
    calls.clear()
    will(lambda *given: calls.append(current_attempt()))
    for target in (act_brief_later, act_brief_in_session):
        attempt = write(target)
        app.perform(attempt.id)
        limit = 0.05 if target is act_brief_later else 0.5
        started = row_of(engine, attempt.id).attempted_at
        assert calls.pop().deadline in (None, started + dt.timedelta(seconds=limit))


@pytest.mark.slow
@pytest.mark.parametrize("target", [act, act_leased, act_later, act_in_session])
def test_current_attempt_is_known_in_every_kind_of_call_and_in_coroutines_that_it_awaits(
    app: AsyncTask, write: Write, target: object
) -> None:
    async def later() -> None:
        calls.append(current_attempt().id)

    def do(*given: Any) -> Coroutine[Any, Any, None]:
        calls.append(current_attempt().id)
        return later()

    will(do)
    attempt = write(target)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert calls == [attempt.id, attempt.id]


def test_there_is_no_current_attempt_outside_of_a_call(app: AsyncTask, write: Write) -> None:
    app.perform(write(Client, "ping").id)
    with pytest.raises(AsyncTaskError, match="no attempt is being performed here"):
        current_attempt()
