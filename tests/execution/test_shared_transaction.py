"""Calls that share a transaction, because their target says `batch=`: each counts for itself, whatever befalls them."""

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
from async_task.database.dialects import disconnect
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


def test_calls_that_share_a_transaction_are_committed_all_at_once(app: AsyncTask, engine: Engine) -> None:
    roots: list[Any] = []

    def look(session: Session, number: int) -> None:
        roots.append(session.connection().get_transaction())
        assert written(engine) == []

    does(look)
    numbered(engine, 8)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert counted(engine) == {"succeeded": 8}
    assert written(engine) == sorted(calls) == list(range(8))
    assert len(roots) == 8
    assert all(one is roots[0] for one in roots)


def test_there_are_never_more_in_one_transaction_than_batch_says(app: AsyncTask, engine: Engine) -> None:
    roots: list[Any] = []
    does(lambda session, number: roots.append(session.connection().get_transaction()))
    numbered(engine, 8, by_three)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert len(roots) == 8
    assert max(sum(one is root for one in roots) for root in roots) == 3


def test_the_calls_of_a_handful_share_it_also_when_others_stand_between_them(app: AsyncTask, engine: Engine) -> None:
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


def test_with_a_commit_for_each_outcome_there_is_nothing_to_share(app: AsyncTask, engine: Engine) -> None:
    roots: list[Any] = []
    does(lambda session, number: roots.append(session.connection().get_transaction()))
    numbered(engine, 5, by_default)
    with working(app, concurrency=1, settle_within=0):
        await_(lambda: at_rest(engine), "all are called")
    assert len({id(one) for one in roots}) == 5


def test_no_further_call_begins_once_the_first_has_waited_for_its_commit_long_enough(
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


@pytest.mark.parametrize("how", ["raises", "breaks a rule", "commits and raises", "breaks a rule in a flush"])
def test_what_raises_is_undone_alone(app: AsyncTask, engine: Engine, how: str) -> None:
    def act(session: Session, number: int) -> None:
        if number not in (2, 3):
            return
        if how.startswith("commits"):
            session.commit()
            session.execute(effects.insert().values(what="99"))
        if how == "breaks a rule in a flush":
            session.add(outbox.Effect(id=1, what="99"))
            session.flush()
            session.add(outbox.Effect(id=1, what="99"))
            session.flush()
        if how == "breaks a rule":
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


@pytest.mark.parametrize("is_lost", ["before it", "after it"])
def test_when_the_commit_fails_each_row_is_read_and_what_is_not_written_is_called_once_more(
    app: AsyncTask, engine: Engine, is_lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost at the COMMIT, before the server has heard of it or after: nobody knows."""
    does(lambda session, number: seen.append(session.connection()))
    seen: list[Any] = []
    broken: list[Any] = []

    def cut_off(connection: Any) -> None:
        if seen and not broken and connection is seen[0]:
            broken.append(connection)
            if is_lost == "after it":
                connection.dialect.do_commit(connection.connection)
            if connection.dialect.name != "sqlite":
                disconnect(connection)
            if is_lost == "after it" or connection.dialect.name == "sqlite":
                raise connection.dialect.loaded_dbapi.OperationalError("the connection is lost")

    event.listen(Engine, "commit", cut_off)
    try:
        ids = numbered(engine, 6)
        with working(app, concurrency=1) as worker:
            await_(lambda: at_rest(engine), "all are called")
    finally:
        event.remove(Engine, "commit", cut_off)
    assert worker.tally == {Succeeded: 6}
    assert broken
    assert written(engine) == list(range(6))
    assert sorted(calls) == sorted(list(range(6)) * (2 if is_lost == "before it" else 1))
    for one in ids:
        row = row_of(engine, one)
        assert (row.status, row.num_attempts, row.num_errors) == (Status.SUCCEEDED, 1, 0)


@pytest.mark.only_on("postgresql")
def test_a_constraint_that_fails_at_the_commit_is_the_error_of_who_broke_it_and_of_nobody_else(
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
    "a raw COMMIT between two of its transactions": commit_between,
    "a raw ROLLBACK": lambda session: session.execute(text("ROLLBACK")),
    "connection().rollback()": lambda session: session.connection().rollback(),
}


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("how", ENDS)
def test_who_ends_the_transaction_of_all_has_failed_and_all_others_are_written_once(
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
    alone = [77] if "more" in how and database.name == "sqlite" else []  # it commits each further statement by itself
    assert written(engine) == sorted([0, 1, 2, 4, 5, *kept, *alone])
    undone = [] if kept else [0, 1, 2]  # these calls are made again
    assert sorted(calls) == sorted([*range(6), *undone])


def work_in_handfuls(url: str) -> None:
    claim_many(setattr)
    AsyncTask(url, lease=1, modules=["outbox"]).worker(concurrency=1, poll=0.05).run()


@pytest.mark.parametrize("at_third", ["killed", "commit"])
def test_of_a_process_that_dies_in_the_middle_nothing_is_committed_without_its_outcome(
    app: AsyncTask, engine: Engine, database: Database, door: str, async_engine_url: str, tmp_path: pathlib.Path,
    at_third: str,
) -> None:  # fmt: skip
    """Killed in the third call: nothing of the first two is committed. Killed after a COMMIT of the third's own: the
    first two are at rest, and are not called again."""
    url = database.sync_url if door == "sync" else async_engine_url
    arguments = {"folder": str(tmp_path), "at_third": at_third}
    ids = make(engine, outbox.Elsewhere, 5, method_name="write_together", method_args=arguments)
    with elsewhere.process(work_in_handfuls, url) as process:
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
    pathlib.Path(tmp_path, "go").touch()
    let_pass(engine, 10)
    forget_beats(engine)
    if database.name == "sqlite":  # the quarantine forks: its file must not be open here
        engine.dispose()
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert counted(engine) == {"succeeded": 5}
    with engine.connect() as connection:
        rows = connection.execute(select(effects.c.attempt_id, effects.c.number)).all()
    by_start = {one.attempt_id: one.number for one in rows}
    assert len(rows) == len(by_start)
    assert by_start == {str(one): 1 if one in done else 2 for one in ids}


@sync_only
def test_what_was_taken_over_before_its_call_is_not_called_and_takes_no_neighbour_along(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    does(lambda session, number: None)
    ids = numbered(engine, 6)
    perform = BatchExecutor.perform
    stolen: list[Any] = []

    def after_a_theft(self: BatchExecutor) -> None:
        if not stolen:
            stolen.extend((ids[0], ids[3]))
            taken = {"claim_id": None, "claimed_by": None, "lease_until": None, "status": Status.CANCELED}
            with engine.begin() as connection:
                theft = update(Attempt).where(Attempt.id.in_(stolen))
                connection.execute(theft.values(taken | {"completed_at": Attempt.created_at}))
        perform(self)

    monkeypatch.setattr(BatchExecutor, "perform", after_a_theft)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are at rest")
    assert counted(engine) == {"succeeded": 4, "canceled": 2}
    assert sorted(calls) == written(engine) == [1, 2, 4, 5]


def test_who_changes_its_own_row_has_failed_and_the_others_are_called_again(app: AsyncTask, engine: Engine) -> None:
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


@servers_only
def test_what_the_infrastructure_did_to_one_is_charged_to_nobody(app: AsyncTask, engine: Engine) -> None:
    """The connection is lost in the middle of a call: it is parked, and those before it are called again."""

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


@servers_only
@pytest.mark.parametrize("called", [act_shared, by_default])
def test_what_one_call_met_is_not_held_against_the_next_on_the_same_connection(
    app: AsyncTask, engine: Engine, tmp_path: pathlib.Path, called: Any
) -> None:
    """The first one swallows a lock that is not to be had; the second one's error is of another database."""
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


@servers_only
def test_a_lock_that_is_not_to_be_had_parks_who_asked_for_it_and_nobody_else(app: AsyncTask, engine: Engine) -> None:
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


@servers_only
def test_a_slow_call_holds_back_none_of_those_that_were_to_share_its_transaction(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was called before it waits for its commit, which would commit half of it; the rest is given back."""
    gate = Gate()
    does(lambda session, number: gate.pass_through() if number == 2 else None)
    ids = numbered(engine, 12)
    with working(app, concurrency=2):
        gate.await_call()
        monkeypatch.setattr(batch_executor, "LONGEST_ALONE", 0.01)
        await_(lambda: counted(engine) == {"succeeded": 9, "pending": 3}, "the others did not wait")
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


def test_it_stops_when_what_is_in_hand_is_done_and_gives_back_what_was_not_begun(
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


@servers_only
def test_asked_again_it_abandons_them_all_and_gives_them_back(app: AsyncTask, engine: Engine) -> None:
    gate = Gate()
    does(lambda session, number: gate.pass_through() if number == 2 else None)
    ids = numbered(engine, 6)
    with at_work(app) as work:
        gate.await_call()
        work.abandon()
        await_(lambda: all(row_of(engine, one).claim_id is None for one in ids), "they are given back")
        gate.opened.set()
    assert written(engine) == []
    rows = [row_of(engine, one) for one in ids]
    assert [row.num_attempts for row in rows] == [1, 1, 1, 0, 0, 0]
    assert {(row.status, row.num_errors, row.num_crashes) for row in rows} == {(Status.PENDING, 0, 0)}


def test_attempts_of_one_key_go_on_in_order(app: AsyncTask, engine: Engine) -> None:
    does(lambda session, number: None)
    numbered(engine, 8, order_key="one")
    with working(app, concurrency=2):
        await_(lambda: at_rest(engine), "all are called")
    assert calls == list(range(8))
    assert written(engine) == list(range(8))


def test_the_users_hook_is_told_of_an_error_after_the_commit_of_all(
    engine: Engine, door: str, async_engine_url: str
) -> None:
    app = outbox.application(engine, door, async_engine_url, model=HookedAttempt)
    outbox.heard.clear()
    seen: list[int] = []

    def act(session: Session, number: int) -> None:
        if number == 1:
            raise Broken

    def hook(attempt: HookedAttempt, error: BaseException) -> None:
        seen.extend(written(engine))
        attempt.fail(reason="enough")

    does(act)
    outbox.hooks[:] = [hook]
    try:
        with Session(engine) as session, session.begin():
            rows = [{"target": act_shared, "method_args": {"number": one}} for one in range(4)]
            HookedAttempt.create_many(session, rows)
        with working(app, concurrency=1):
            await_(lambda: len(written(engine)) == 3 and seen, "all are called")
        assert seen == [0, 2, 3]
        with Session(engine) as session:
            rows_left = session.scalars(select(HookedAttempt.status)).all()
        assert sorted(status.value for status in rows_left) == ["failed", "succeeded", "succeeded", "succeeded"]
    finally:
        outbox.hooks.clear()
        app.close()


def test_calls_share_a_transaction_in_a_batch_too_and_are_performed_alone_by_perform(
    app: AsyncTask, engine: Engine
) -> None:
    roots: list[Any] = []
    does(lambda session, number: roots.append(session.connection().get_transaction()))
    numbered(engine, 3)
    assert app.run_batch(concurrency=1).succeeded == 3
    assert len({id(one) for one in roots}) == 1
    ids = numbered(engine, 2)
    assert [type(app.perform(one)) for one in ids] == [Succeeded] * 2
    assert len({id(one) for one in roots}) == 3


def test_batch_is_refused_where_there_is_nothing_to_share() -> None:
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
