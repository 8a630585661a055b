"""Calls that share a transaction because their target says `batch=`: each is settled for itself, whatever happens."""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    func,
    select,
    text,
    update,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.sql import Select

import elsewhere
import outbox
from async_task import AsyncTask, Attempt, ConfigurationError, JobEvent, Status, Succeeded, policy, target
from async_task.database.disconnection import disconnect
from async_task.execution import batch_executor
from async_task.execution.batch_executor import BatchExecutor
from clockwork import forget_beats, let_pass, row_of
from databases import Database
from elsewhere import await_, notes
from outbox import Broken, Gate, HookedAttempt, act_in_session, act_shared, calls, effects
from shared_calls import claim_many, does, numbered, put, written
from workers import at_rest, at_work, counted, make, working

sync_only = pytest.mark.parametrize("door", ["sync"])
servers_only = pytest.mark.only_on("postgresql", "mysql")


@pytest.fixture(autouse=True)
def _many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_many(partial(monkeypatch.setattr, raising=False))


@target("test.shared.by_default", batch=20)
def by_default(session: Session, number: int) -> None:
    outbox.acts[0](session, number)


@target("test.shared.by_three", batch=3, settle_within=1)
def by_three(session: Session, number: int) -> None:
    outbox.acts[0](session, number)


@target("test.shared.soon", batch=20, settle_within=0.01)
def soon(session: Session, number: int) -> None:
    outbox.acts[0](session, number)


@pytest.mark.slow
def test_calls_that_share_a_transaction_are_committed_together(app: AsyncTask, engine: Engine) -> None:
    roots: list[Any] = []

    def check(session: Session, number: int) -> None:
        roots.append(session.connection().get_transaction())
        assert written(engine) == []

    does(check)
    numbered(engine, 8)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert counted(engine) == {"succeeded": 8}
    assert written(engine) == sorted(calls) == list(range(8))
    assert len(roots) == 8
    assert all(one is roots[0] for one in roots)


@pytest.mark.slow
def test_no_more_calls_than_batch_share_a_transaction(app: AsyncTask, engine: Engine) -> None:
    roots: list[Any] = []
    does(lambda session, number: roots.append(session.connection().get_transaction()))
    numbered(engine, 8, by_three)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert len(roots) == 8
    assert max(sum(one is root for one in roots) for root in roots) == 3


@pytest.mark.slow
def test_calls_of_one_method_share_a_transaction_although_others_wait_between_them(
    app: AsyncTask, engine: Engine
) -> None:
    roots: list[Any] = []
    outbox.acts[:] = [lambda session, *_: roots.append(session.connection().get_transaction())]
    with Session(engine) as session, session.begin():
        for number in range(4):
            Attempt.create(target=act_shared, method_args={"number": number}, session=session)
            Attempt.create(target=act_in_session, session=session)
            session.flush()
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert counted(engine) == {"succeeded": 8}
    assert max(sum(one is root for one in roots) for root in roots) == 4


@pytest.mark.slow
def test_no_calls_share_a_transaction_if_settle_within_is_0(app: AsyncTask, engine: Engine) -> None:
    committed: list[int] = []
    does(lambda session, number: committed.append(counted(engine).get("succeeded", 0)))
    numbered(engine, 5, by_default)
    with working(app, concurrency=1, settle_within=0):
        await_(lambda: at_rest(engine), "all are called")
    assert committed == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_no_further_call_begins_once_the_first_has_waited_settle_within_for_its_commit(
    app: AsyncTask, engine: Engine
) -> None:
    roots: list[Any] = []

    def outlast(session: Session, number: int) -> None:
        roots.append(session.connection().get_transaction())
        until = time.monotonic() + 0.011
        while time.monotonic() < until:
            pass

    does(outlast)
    numbered(engine, 6, soon)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert len(roots) == 6
    assert max(sum(one is root for one in roots) for root in roots) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["raises", "violates a constraint", "commits and raises", "violates a constraint in a flush"]
)
def test_a_call_that_raises_is_undone_alone(app: AsyncTask, engine: Engine, how: str) -> None:
    def act(session: Session, number: int) -> None:
        if number not in (2, 3):
            return
        if how.startswith("commits"):
            session.commit()
            session.execute(effects.insert().values(what="99"))
        if how == "violates a constraint in a flush":
            session.add(outbox.Effect(id=1, what="99"))
            session.flush()
            session.add(outbox.Effect(id=1, what="99"))
            session.flush()
        if how == "violates a constraint":
            session.execute(effects.insert().values(id=1, what="99"))
            session.execute(effects.insert().values(id=1, what="99"))
        raise Broken

    does(act)
    ids = numbered(engine, 6)
    with working(app, concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 4, "pending": 2}, "all are called")
        await_(lambda: [row_of(engine, one).claim_id for one in ids[2:4]] == [None] * 2, "the errors are written")
    assert written(engine) == [0, 1, 4, 5]
    assert sorted(calls) == [0, 1, 2, 3, 4, 5]
    for one in ids[2:4]:
        row = row_of(engine, one)
        assert (row.num_attempts, row.num_errors, row.num_crashes) == (1, 1, 0)
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).where(JobEvent.kind == "error")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("is_lost", ["before it", "after it"])
def test_after_a_failed_commit_each_row_is_read_and_calls_that_are_not_committed_run_again(
    app: AsyncTask, engine: Engine, is_lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost at the COMMIT, before the server has executed it or after: the client cannot know."""
    does(lambda session, number: seen.append(session.connection()))
    seen: list[Any] = []
    broken: list[Any] = []

    def lose(connection: Any) -> None:
        if seen and not broken and connection is seen[0]:
            broken.append(connection)
            if is_lost == "after it":
                connection.dialect.do_commit(connection.connection)
            if connection.dialect.name != "sqlite":
                disconnect(connection)
            if is_lost == "after it" or connection.dialect.name == "sqlite":
                raise connection.dialect.loaded_dbapi.OperationalError("the connection is lost")

    event.listen(Engine, "commit", lose)
    try:
        ids = numbered(engine, 6)
        with working(app, concurrency=1) as worker:
            await_(lambda: at_rest(engine), "all are called")
    finally:
        event.remove(Engine, "commit", lose)
    assert worker.tally == {Succeeded: 6}
    assert broken
    assert written(engine) == list(range(6))
    assert sorted(calls) == sorted(list(range(6)) * (2 if is_lost == "before it" else 1))
    for one in ids:
        row = row_of(engine, one)
        assert (row.status, row.num_attempts, row.num_errors) == (Status.SUCCEEDED, 1, 0)


@pytest.mark.slow
@pytest.mark.only_on("postgresql")
def test_a_constraint_that_fails_at_the_commit_is_charged_to_the_call_that_violated_it_alone(
    app: AsyncTask, engine: Engine
) -> None:
    metadata = MetaData()
    Table("shared_parents", metadata, Column("id", Integer, primary_key=True))
    parent = ForeignKey("shared_parents.id", deferrable=True, initially="DEFERRED")
    children = Table("shared_children", metadata, Column("id", Integer, primary_key=True), Column("parent_id", parent))
    metadata.create_all(engine)

    def act(session: Session, number: int) -> None:
        if number == 2:
            session.execute(children.insert().values(parent_id=7))

    does(act)
    try:
        ids = numbered(engine, 6)
        with working(app, concurrency=1):
            await_(lambda: counted(engine) == {"succeeded": 5, "pending": 1}, "all are called")
            await_(lambda: row_of(engine, ids[2]).num_errors == 1, "the error is written")
        assert written(engine) == [0, 1, 3, 4, 5]
        assert "IntegrityError" in str(row_of(engine, ids[2]).last_error)
        assert {row_of(engine, one).num_attempts for one in ids} == {1}
    finally:
        metadata.drop_all(engine)


def commit_between(session: Session) -> None:
    connection = session.connection()
    session.commit()
    connection.execute(text("COMMIT"))


ENDS: dict[str, Callable[[Session], Any]] = {
    "a raw COMMIT": lambda session: session.execute(text("COMMIT")),
    "a raw COMMIT and more writes": lambda session: (session.execute(text("COMMIT")), put(session, "77")),
    "connection().commit()": lambda session: session.connection().commit(),
    "a raw COMMIT between two session transactions": commit_between,
    "a raw ROLLBACK": lambda session: session.execute(text("ROLLBACK")),
    "connection().rollback()": lambda session: session.connection().rollback(),
}


# Each way once, and in turn with and without an error: what is decided about the error does not depend on the way.
@pytest.mark.slow
@pytest.mark.parametrize(("how", "raises"), [(how, number % 2 == 1) for number, how in enumerate(ENDS)])
def test_a_target_that_ends_the_shared_transaction_fails_and_all_others_are_committed_once(
    app: AsyncTask, engine: Engine, database: Database, how: str, raises: bool
) -> None:
    def act(session: Session, number: int) -> None:
        if number == 3:
            ENDS[how](session)
            if raises:
                raise Broken

    does(act)
    ids = numbered(engine, 6)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    row = row_of(engine, ids[3])
    assert (row.status, row.num_attempts, row.num_errors) == (Status.FAILED, 1, 1)
    assert str(row.last_error).startswith("committed_inside")
    others = [one for one in ids if one != ids[3]]
    assert {(row_of(engine, one).status, row_of(engine, one).num_attempts) for one in others} == {(Status.SUCCEEDED, 1)}
    kept = [3] if "COMMIT" in how or "commit" in how else []
    alone = (
        [77] if "more" in how and database.name == "sqlite" else []
    )  # there each further statement commits by itself
    assert written(engine) == sorted([0, 1, 2, 4, 5, *kept, *alone])
    undone = [] if kept else [0, 1, 2]  # these calls run again
    assert sorted(calls) == sorted([*range(6), *undone])


def work_in_batches(url: str) -> None:
    claim_many(setattr)
    AsyncTask(url, lease=1, modules=["outbox"]).worker(concurrency=1, poll=0.05).run()


@pytest.mark.slow
@pytest.mark.parametrize("lease", [1.0])
@pytest.mark.parametrize("at_third", ["killed", "commit"])
def test_a_process_that_dies_in_a_shared_transaction_commits_no_writes_without_their_outcome(
    app: AsyncTask, engine: Engine, database: Database, door: str, async_engine_url: str, tmp_path: pathlib.Path,
    at_third: str,
) -> None:  # fmt: skip
    """If it is killed in the third call, nothing is committed. If the third call commits and is killed then, the first
    two have succeeded, and do not run again."""
    url = database.sync_url if door == "sync" else async_engine_url
    arguments = {"folder": str(tmp_path), "at_third": at_third}
    ids = make(engine, outbox.Elsewhere, 5, method_name="write_together", method_args=arguments)
    with elsewhere.process(work_in_batches, url) as process:
        if at_third == "killed":
            await_(lambda: len(notes(tmp_path)) == 3, "the third call begins")
            process.kill()
        assert process.exit_code() == -signal.SIGKILL
    before = {one: row_of(engine, one) for one in ids}
    done = [one for one, row in before.items() if row.status is Status.SUCCEEDED]
    assert len(done) == (0 if at_third == "killed" else 2)
    with engine.connect() as connection:
        assert len(connection.scalars(select(effects.c.id)).all()) == len(done)
    assert all(row.num_attempts == 1 for row in before.values())
    begun = {one for one, *_ in notes(tmp_path)}  # the start of each other one is not counted
    pathlib.Path(tmp_path, "go").touch()
    let_pass(engine, 10)
    forget_beats(engine)
    if database.name == "sqlite":  # the quarantine forks: the file must not be open here
        engine.dispose()
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert counted(engine) == {"succeeded": 5}
    with engine.connect() as connection:
        rows = connection.execute(select(effects.c.attempt_id, effects.c.number)).all()
    by_start = {one.attempt_id: one.number for one in rows}
    assert len(rows) == len(by_start)
    assert by_start == {str(one): 2 if str(one) in begun and one not in done else 1 for one in ids}


@sync_only
def test_an_attempt_that_was_canceled_before_its_call_is_not_called_and_the_others_succeed(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    does(lambda session, number: None)
    ids = numbered(engine, 6)
    execute = BatchExecutor.execute
    canceled: list[Any] = []

    def after_a_cancel(self: BatchExecutor) -> None:
        if not canceled:
            canceled.extend((ids[0], ids[3]))
            ended = {"claim_id": None, "claimed_by": None, "lease_until": None, "status": Status.CANCELED}
            with engine.begin() as connection:
                cancel = update(Attempt).where(Attempt.id.in_(canceled))
                connection.execute(cancel.values(ended | {"completed_at": Attempt.created_at}))
        execute(self)

    monkeypatch.setattr(BatchExecutor, "execute", after_a_cancel)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are at rest")
    assert counted(engine) == {"succeeded": 4, "canceled": 2}
    assert sorted(calls) == written(engine) == [1, 2, 4, 5]


@pytest.mark.slow
def test_a_target_that_changes_its_own_row_fails_and_the_others_are_called_again(
    app: AsyncTask, engine: Engine
) -> None:
    def act(session: Session, number: int) -> None:
        if number == 3:
            mine = update(Attempt).where(Attempt.id == outbox.current_attempt().id)
            session.execute(mine.values(claim_id=None, claimed_by=None, lease_until=None))

    does(act)
    ids = numbered(engine, 6)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are at rest")
    assert row_of(engine, ids[3]).last_error.startswith("changed_itself")
    assert counted(engine) == {"succeeded": 5, "failed": 1}
    assert written(engine) == [0, 1, 2, 4, 5]


@pytest.mark.slow
@servers_only
def test_a_lost_connection_is_charged_to_no_call(app: AsyncTask, engine: Engine) -> None:
    """It is lost in the middle of a call: that one is parked, and those before it run again."""

    def act(session: Session, number: int) -> None:
        if number == 3 and calls.count(3) == 1:
            disconnect(session.connection())
            put(session, "77")

    does(act)
    ids = numbered(engine, 6)
    with working(app, concurrency=1):
        await_(lambda: len(written(engine)) >= 5, "the others are called")
        await_(lambda: row_of(engine, ids[3]).claim_id is None, "it is parked")
    assert written(engine) in ([0, 1, 2, 4, 5], [0, 1, 2, 3, 4, 5])
    assert {(row_of(engine, one).num_errors, row_of(engine, one).num_crashes) for one in ids} == {(0, 0)}


@pytest.mark.slow
@servers_only
@pytest.mark.parametrize("called", [act_shared, by_default])
def test_a_fault_of_one_call_is_not_taken_for_a_fault_of_the_next_one_on_the_same_connection(
    app: AsyncTask, engine: Engine, tmp_path: pathlib.Path, called: Any
) -> None:
    """The first call catches a lock error. The second one raises an error of another database."""
    elsewhere_closed = create_engine(f"sqlite:///{tmp_path}/missing/x.sqlite")
    [locked] = make(engine, act_in_session, queue="nobody's")

    def act(session: Session, number: int) -> None:
        if number == 0:
            lock: Select[Any] = select(Attempt.id).where(Attempt.id == locked).with_for_update(nowait=True)
            with contextlib.suppress(OperationalError), session.begin_nested():
                session.execute(lock)
        if number == 1:
            elsewhere_closed.connect()

    does(act)
    ids = numbered(engine, 2, called)
    with engine.begin() as connection:
        connection.execute(select(Attempt.id).where(Attempt.id == locked).with_for_update())
        with working(app, concurrency=1, queues={"default": None}, settle_within=0):
            await_(lambda: row_of(engine, ids[1]).last_error, "both are called")
    assert row_of(engine, ids[0]).status is Status.SUCCEEDED
    row = row_of(engine, ids[1])
    assert (row.num_errors, str(row.last_error).startswith("parked")) == (1, False)


@pytest.mark.slow
@servers_only
def test_a_lock_error_parks_the_call_that_met_it_and_no_other(app: AsyncTask, engine: Engine) -> None:
    [locked] = make(engine, act_in_session, queue="nobody's")

    def act(session: Session, number: int) -> None:
        if number == 2:
            lock: Select[Any] = select(Attempt.id).where(Attempt.id == locked).with_for_update(nowait=True)
            session.execute(lock)

    does(act)
    ids = numbered(engine, 5)
    with engine.begin() as connection:
        connection.execute(select(Attempt.id).where(Attempt.id == locked).with_for_update())
        with working(app, concurrency=1, queues={"default": None}):
            await_(lambda: row_of(engine, ids[2]).last_error, "all are called")
    assert written(engine) == [0, 1, 3, 4]
    assert set(calls[:5]) == set(range(5))
    row = row_of(engine, ids[2])
    assert (row.num_errors, row.num_crashes, row.last_error.startswith("parked")) == (0, 0, True)


@pytest.mark.slow
@servers_only
def test_a_slow_call_does_not_hold_up_the_calls_that_wait_for_its_transaction(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that ran before it wait for its commit. Those that have not started are released."""
    gate = Gate()
    does(lambda session, number: gate.pass_through() if number == 2 else None)
    ids = numbered(engine, 12)
    # The second worker begins later: two lanes that claim at once may each get some of the first three.
    with contextlib.ExitStack() as workers:
        workers.enter_context(working(app, concurrency=1))
        gate.await_call()
        workers.enter_context(working(app, concurrency=1))
        monkeypatch.setattr(batch_executor, "LONGEST_ALONE", 0.01)
        await_(lambda: counted(engine) == {"succeeded": 9, "pending": 3}, "another lane runs the released ones")
        assert written(engine) == list(range(3, 12))
        with engine.connect() as connection:
            lock: Select[Any] = select(Attempt.id).where(Attempt.id.in_(ids[:3])).with_for_update(skip_locked=True)
            assert connection.execute(lock).all() == []
        gate.opened.set()
        await_(lambda: at_rest(engine), "they are committed with it")
    assert written(engine) == list(range(12))
    assert sorted(calls) == list(range(12))
    with engine.connect() as connection:
        assert set(connection.scalars(select(Attempt.num_attempts))) == {1}


@pytest.mark.slow
def test_after_stop_the_running_call_is_committed_and_calls_that_have_not_started_are_released(
    app: AsyncTask, engine: Engine
) -> None:
    gate = Gate()
    does(lambda session, number: gate.pass_through() if number == 2 else None)
    ids = numbered(engine, 6)
    with at_work(app) as work:
        gate.await_call()
        work.stop()
        gate.opened.set()
        work.await_farewell()
    assert written(engine) == [0, 1, 2]
    assert [row_of(engine, one).status for one in ids[:3]] == [Status.SUCCEEDED] * 3
    assert {(row_of(engine, one).claim_id, row_of(engine, one).num_attempts) for one in ids[3:]} == {(None, 0)}


@pytest.mark.slow
@servers_only
def test_after_a_second_stop_all_calls_are_undone_and_released(app: AsyncTask, engine: Engine) -> None:
    gate = Gate()
    does(lambda session, number: gate.pass_through() if number == 2 else None)
    ids = numbered(engine, 6)
    with at_work(app) as work:
        gate.await_call()
        work.abandon()
        await_(lambda: all(row_of(engine, one).claim_id is None for one in ids), "they are released")
        gate.opened.set()
    assert written(engine) == []
    rows = [row_of(engine, one) for one in ids]
    assert [row.num_attempts for row in rows] == [1, 1, 1, 0, 0, 0]
    assert {(row.status, row.num_errors, row.num_crashes) for row in rows} == {(Status.PENDING, 0, 0)}


@pytest.mark.slow
def test_attempts_of_one_order_key_run_in_order(app: AsyncTask, engine: Engine) -> None:
    does(lambda session, number: None)
    numbered(engine, 8, order_key="one")
    with working(app, concurrency=2):
        await_(lambda: at_rest(engine), "all are called")
    assert calls == list(range(8))
    assert written(engine) == list(range(8))


@pytest.mark.slow
def test_the_error_hook_is_called_in_the_shared_transaction(engine: Engine, door: str, async_engine_url: str) -> None:
    app = outbox.application(engine, door, async_engine_url, model=HookedAttempt)
    outbox.heard.clear()
    seen: list[list[int]] = []

    def act(session: Session, number: int) -> None:
        if number == 1:
            raise Broken

    def hook(attempt: HookedAttempt, error: BaseException) -> None:
        seen.append(written(engine))
        attempt.fail(reason="enough")

    does(act)
    outbox.hooks[:] = [hook]
    try:
        with Session(engine) as session, session.begin():
            rows = [{"target": act_shared, "method_args": {"number": one}} for one in range(4)]
            HookedAttempt.create_many(session, rows)
        with working(app, concurrency=1):
            await_(lambda: len(written(engine)) == 3 and seen, "all are called")
        assert seen == [[]]
        with Session(engine) as session:
            rows_left = session.scalars(select(HookedAttempt.status)).all()
        assert sorted(status.value for status in rows_left) == ["failed", "succeeded", "succeeded", "succeeded"]
    finally:
        outbox.hooks.clear()
        app.close()


@pytest.mark.slow
def test_run_batch_shares_a_transaction_and_perform_does_not(app: AsyncTask, engine: Engine) -> None:
    roots: list[Any] = []
    does(lambda session, number: roots.append(session.connection().get_transaction()))
    numbered(engine, 3)
    assert app.run_batch(concurrency=1).succeeded == 3
    assert len({id(one) for one in roots}) == 1
    ids = numbered(engine, 2)
    assert [type(app.perform(one)) for one in ids] == [Succeeded] * 2
    assert len({id(one) for one in roots}) == 3


def test_batch_is_refused_for_a_target_that_cannot_share_a_transaction() -> None:
    class Ledger:
        @staticmethod
        def write(session: Session) -> None: ...

        @staticmethod
        @policy(batch=1)
        def ring() -> None: ...

    target("test.shared.ledger", batch=10)(Ledger)

    class Mixed:
        @staticmethod
        def write(session: Session) -> None: ...

        @staticmethod
        def ring() -> None: ...

    def write(session: Session) -> None: ...

    async def write_later(session: Session) -> None: ...

    for thing, settings, why in (
        (Mixed, {}, r"test.shared.refused.ring: batch= .*takes no session"),
        (write, {"isolate": True}, "a process of its own"),
        (write, {"mode": "leased"}, "no transaction is open"),
        (write_later, {}, "an async def runs beside others"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            target("test.shared.refused", batch=2, **settings)(thing)  # type: ignore[call-overload]
