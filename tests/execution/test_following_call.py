"""A call that takes a session commits in the round trip that locks the row of the call after it."""

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import ExecStatus
from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, make_url, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from async_task import AsyncTask, AsyncTaskError, Attempt, Status, Succeeded
from async_task.database.exchange import Exchange
from async_task.queue.fenced_writes import release_succeed_and_lock
from async_task.schema.states import UNCLAIMED
from async_task.wakeup import in_process
from async_task.wakeup.after_commit import call_after_commit
from async_task.wakeup.in_process import notifier_of
from claims import TABLE
from clockwork import row_of
from databases import Database
from elsewhere import await_
from following_calls import each, is_locked, limited, run, strict
from outbox import Broken, Client, calls
from shared_calls import does, lock, numbered, put, written
from workers import at_rest, counted, working

pytestmark = [pytest.mark.only_on("postgresql"), pytest.mark.usefixtures("many_at_once")]


@pytest.mark.slow
def test_a_call_is_committed_and_its_row_free_when_the_next_one_runs(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    seen: list[tuple[int, list[bool], list[int]]] = []

    def look(session: Session, number: int) -> None:
        locked = [is_locked(engine, one) for one in ids]
        seen.append((counted(engine).get("succeeded", 0), locked, written(engine)))

    does(look)
    ids = numbered(engine, 4, each)
    run(plain)
    assert seen == [(one, [one == other for other in range(4)], list(range(one))) for one in range(4)]
    assert followed == [True] * 3
    assert counted(engine) == {"succeeded": 4}


def test_a_call_that_raises_undoes_what_it_has_written_and_no_more(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    def act(session: Session, number: int) -> None:
        if number in (1, 2, 4):
            raise Broken

    does(act)
    ids = numbered(engine, 6, each)
    run(plain)
    assert written(engine) == [0, 3, 5]
    assert followed == [True, True]  # after 0 and 3
    assert [row_of(engine, one).num_errors for one in ids] == [0, 1, 1, 0, 1, 0]
    assert calls == list(range(6))


@pytest.fixture
def unique_at_commit(engine: Engine) -> Iterator[None]:
    """No two effects may say "2", which is checked at the COMMIT."""
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE effects ADD CONSTRAINT once UNIQUE (what) DEFERRABLE INITIALLY DEFERRED"))
    yield
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE effects DROP CONSTRAINT once"))


@pytest.mark.usefixtures("unique_at_commit")
def test_a_commit_that_fails_is_charged_to_its_call_and_the_next_one_is_performed(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    does(lambda session, number: put(session, "1") if number == 1 else None)
    ids = numbered(engine, 4, each)
    run(plain)
    assert written(engine) == [0, 2, 3]
    assert followed == [True, True]
    assert "violates unique constraint" in str(row_of(engine, ids[1]).last_error)
    assert [row_of(engine, one).num_attempts for one in ids] == [1] * 4
    assert calls == list(range(4))


def test_of_a_claim_that_was_lost_nothing_is_written_and_the_next_one_is_performed(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    """The target changes its own row, which no other session can while it is locked."""

    def change_itself(session: Session, number: int) -> None:
        if number == 1:
            session.execute(update(Attempt).where(Attempt.id == ids[1]).values(UNCLAIMED))

    does(change_itself)
    ids = numbered(engine, 3, each)
    run(plain)
    assert written(engine) == [0, 2]
    assert row_of(engine, ids[1]).status is Status.FAILED
    assert "changed the row of its own attempt" in row_of(engine, ids[1]).last_error
    assert followed == [True]
    assert calls == [0, 1, 2]


@pytest.mark.slow
def test_a_call_whose_claim_was_lost_meanwhile_is_not_made(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    gone = {**UNCLAIMED, "status": "canceled", "completed_at": func.now()}

    def take_next(session: Session, number: int) -> None:
        if number == 0:
            with engine.begin() as connection:
                connection.execute(update(Attempt).where(Attempt.id == ids[1]).values(gone))

    does(take_next)
    ids = numbered(engine, 3, each)
    run(plain)
    assert calls == [0, 2]
    assert written(engine) == [0, 2]
    assert [row_of(engine, one).status for one in ids] == [Status.SUCCEEDED, Status.CANCELED, Status.SUCCEEDED]
    assert followed == [False]


def test_a_row_that_cannot_be_locked_costs_the_call_before_nothing(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, followed = create_engine(database.sync_url, connect_args={"options": "-c lock_timeout=100ms"}), list[bool]()
    ids = numbered(engine, 3, each)
    with engine.connect() as other:

        def let_go(*given: Any) -> bool:
            followed.append(release_succeed_and_lock(*given))
            other.rollback()
            return followed[-1]

        monkeypatch.setattr("async_task.execution.transaction.release_succeed_and_lock", let_go)
        does(lambda session, number: lock(other, ids[1]) if number == 0 else None)
        run(AsyncTask(made))
    made.dispose()
    assert followed == [False, True]
    assert calls == [0, 1, 2]
    assert written(engine) == [0, 1, 2]
    assert [row_of(engine, one).num_attempts for one in ids] == [1] * 3


@pytest.mark.slow
@pytest.mark.parametrize("was_executed", [True, False])
def test_an_exchange_without_an_answer_loses_and_repeats_nothing(
    plain: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, *, was_executed: bool
) -> None:
    execute, on_loop, lost = Exchange.execute, Exchange.execute_on_loop, list[int]()

    def is_to_be_lost(self: Exchange) -> bool:
        return len(self._messages) == 5 and not lost

    def lose(self: Exchange) -> Any:
        return ended(self, execute(self) if was_executed else []) if is_to_be_lost(self) else execute(self)

    async def lose_on_loop(self: Exchange) -> Any:
        if is_to_be_lost(self):
            return ended(self, await on_loop(self) if was_executed else [])
        return await on_loop(self)

    def ended(self: Exchange, results: list[Any]) -> Any:
        lost.append(calls[-1])
        assert {one.status for one in results} <= {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}
        self._driver.pgconn.finish()
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(Exchange, "execute", lose)
    monkeypatch.setattr(Exchange, "execute_on_loop", lose_on_loop)
    ids = numbered(engine, 25, each)
    with working(plain, concurrency=1) as worker:
        await_(lambda: at_rest(engine), "all are called")
    (number,) = lost
    assert worker.tally[Succeeded] == 25
    assert written(engine) == list(range(25))
    assert sorted(calls) == sorted([*range(25), *([] if was_executed else [number])])
    assert {row_of(engine, one).num_errors for one in ids} == {0}


def test_what_a_call_has_set_for_its_transaction_ends_with_it(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    seen: list[str] = []

    def act(session: Session, number: int) -> None:
        seen.append(session.execute(text("SHOW work_mem")).scalar_one())
        session.execute(text("SET LOCAL work_mem = '77kB'"))
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))

    does(act)
    numbered(engine, 3, each)
    run(plain)
    assert len(set(seen)) == 1
    assert seen[0] != "77kB"
    assert followed == [True, True]


def test_each_call_has_its_own_limits(plain: AsyncTask, engine: Engine, followed: list[bool]) -> None:
    seen: list[str] = []

    def act(session: Session, number: int) -> None:
        seen.append(session.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one())

    does(act)
    for one in (limited, limited, each, each):
        numbered(engine, 1, one)
    run(plain)
    assert seen == ["5s", "5s", "1min", "1min"]
    assert followed == [True, True]


def test_calls_at_another_isolation_level_begin_by_themselves(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    seen: list[str] = []

    def act(session: Session, number: int) -> None:
        seen.append(session.execute(text("SHOW transaction_isolation")).scalar_one())

    does(act)
    for one in (each, each, strict, strict, each):
        numbered(engine, 1, one)
    run(plain)
    assert seen == ["read committed", "read committed", "serializable", "serializable", "read committed"]
    assert followed == [True]


def test_a_session_that_was_kept_cannot_write_into_the_next_call(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    kept: list[Session] = []

    def act(session: Session, number: int) -> None:
        kept.append(session)
        if number == 1:
            with pytest.raises(AsyncTaskError, match="has ended"):
                put(kept[0], "77")

    does(act)
    numbered(engine, 2, each)
    run(plain)
    assert written(engine) == [0, 1]
    assert followed == [True]


def test_where_the_user_listens_to_the_pool_each_connection_is_returned(
    database: Database, engine: Engine, followed: list[bool]
) -> None:
    made, resets = create_engine(database.sync_url), list[int]()
    event.listen(made, "checkin", lambda *given: resets.append(len(calls)))
    numbered(engine, 3, each)
    run(AsyncTask(made))
    made.dispose()
    assert followed == []
    assert {1, 2, 3} <= set(resets)


def test_where_the_user_listens_to_transactions_each_is_begun_and_committed(
    database: Database, engine: Engine, followed: list[bool]
) -> None:
    made, heard = create_engine(database.sync_url), list[tuple[str, int]]()
    event.listen(made, "begin", lambda connection: heard.append(("begin", len(calls))))
    event.listen(made, "commit", lambda connection: heard.append(("commit", len(calls))))
    numbered(engine, 2, each)
    run(AsyncTask(made))
    made.dispose()
    assert followed == []
    assert [one for one in heard if one in (("commit", 1), ("begin", 1), ("commit", 2))][:3] == [
        ("commit", 1),
        ("begin", 1),
        ("commit", 2),
    ]


def test_what_hears_of_an_outcome_holds_no_row(database: Database, engine: Engine, followed: list[bool]) -> None:
    made, seen = create_engine(database.sync_url), list[list[bool]]()
    app = AsyncTask(made, on_succeeded=lambda facts, outcome: seen.append([is_locked(engine, one) for one in ids]))
    ids = numbered(engine, 3, each)
    run(app)
    made.dispose()
    assert seen == [[False] * 3] * 3
    assert followed == []


def test_sessions_of_the_users_own_class_and_options_follow_one_another(
    database: Database, engine: Engine, followed: list[bool]
) -> None:
    class Own(Session):
        pass

    made, seen = create_engine(database.sync_url), list[tuple[bool, bool, Any]]()
    does(lambda session, number: seen.append((isinstance(session, Own), session.expire_on_commit, session.info["who"])))
    numbered(engine, 3, each)
    run(AsyncTask(sessionmaker(made, class_=Own, expire_on_commit=False, info={"who": "us"})))
    made.dispose()
    assert seen == [(True, False, "us")] * 3
    assert followed == [True, True]


def test_what_waits_for_the_commit_is_called_while_no_row_is_locked(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    seen: list[list[bool]] = []

    def look() -> None:
        seen.append([is_locked(engine, one) for one in ids])

    does(lambda session, number: call_after_commit(session, inspect(Attempt), look) if number == 0 else None)
    ids = numbered(engine, 3, each)
    run(plain)
    assert seen == [[False] * 3]
    assert followed == [True]


def test_progress_is_reported_while_no_row_is_locked(plain: AsyncTask, engine: Engine, followed: list[bool]) -> None:
    seen: list[list[bool]] = []
    ids = numbered(engine, 3, each)
    plain.run_batch(concurrency=1, progress=lambda report: seen.append([is_locked(engine, one) for one in ids]))
    assert len(seen) >= 4
    assert not any(map(any, seen))
    assert followed == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("ends", ["close", "rollback"])
@pytest.mark.parametrize("kept", ["a session", "a savepoint"])
def test_what_a_call_leaves_open_ends_with_it(
    plain: AsyncTask, engine: Engine, followed: list[bool], kept: str, ends: str
) -> None:
    left: list[Any] = []

    def act(session: Session, number: int) -> None:
        if number == 0:
            own = Session(bind=session.connection()) if kept == "a session" else session.connection().begin_nested()
            left.append(own)
            if isinstance(own, Session):
                put(own, "50")
        if number == 1:
            session.connection()
            getattr(left[0], ends)()

    does(act)
    numbered(engine, 4, each)
    run(plain)
    assert counted(engine) == {"succeeded": 4}
    assert written(engine) == [*range(4), *([50] if kept == "a session" else [])]
    assert followed == [True, True]


@pytest.mark.filterwarnings("ignore:.*:sqlalchemy.exc.SAWarning")
def test_a_transaction_that_a_call_leaves_in_a_generator_does_not_hinder_the_next_one(
    plain: AsyncTask, engine: Engine
) -> None:
    left: list[Any] = []

    def suspended(connection: Connection) -> Iterator[None]:
        with connection.begin_nested():
            yield

    def act(session: Session, number: int) -> None:
        if number == 0:
            left.append(suspended(session.connection()))
            next(left[0])

    does(act)
    numbered(engine, 3, each)
    run(plain)
    with contextlib.suppress(Exception):
        left[0].close()
    assert counted(engine) == {"succeeded": 3}
    assert written(engine) == [0, 1, 2]


def test_it_is_the_same_where_nothing_is_prepared(database: Database, engine: Engine, followed: list[bool]) -> None:
    """In psycopg's own pipeline."""
    made = create_engine(database.sync_url, connect_args={"prepare_threshold": None})

    def act(session: Session, number: int) -> None:
        if number == 2:
            raise Broken
        if number == 4:
            session.execute(update(Attempt).where(Attempt.id == ids[4]).values(UNCLAIMED))

    does(act)
    ids = numbered(engine, 6, each)
    run(AsyncTask(made))
    made.dispose()
    assert written(engine) == [0, 1, 3, 5]
    assert followed == [True] * 3
    assert calls == list(range(6))


def test_threads_are_woken_by_each_commit_that_has_written_calls_down(
    plain: AsyncTask, engine: Engine, database: Database, followed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "_notifiers", weakref.WeakValueDictionary())
    notifier = notifier_of(TABLE, make_url(database.sync_url))
    seen: list[Any] = []

    def act(session: Session, number: int) -> None:
        seen.append(notifier.wait(0))
        Attempt.create(target=Client, method_name="ping", session=session, queue=f"to-wake-{number}")

    does(act)
    numbered(engine, 3, each)
    run(plain)
    assert seen[1:] == [{"to-wake-0"}, {"to-wake-1"}]  # the first was told of these calls themselves
    assert followed == [True, True]


def test_a_fault_that_a_call_has_caught_is_not_that_of_the_next_one(
    plain: AsyncTask, engine: Engine, followed: list[bool]
) -> None:
    """An error of the infrastructure on another connection is charged, as that is not the attempt's own."""
    (busy,) = numbered(engine, 1, each, delay="1h")
    taken = select(Attempt.id).where(Attempt.id == busy).with_for_update(nowait=True)

    def act(session: Session, number: int) -> None:
        if number == 0:
            with contextlib.suppress(OperationalError), session.begin_nested():
                session.execute(taken)
        if number == 1:
            with engine.connect() as elsewhere:
                elsewhere.execute(taken)

    does(act)
    ids = numbered(engine, 3, each)
    with engine.connect() as holder:
        lock(holder, busy)
        run(plain)
    assert followed == [True]
    assert [row_of(engine, one).num_errors for one in ids] == [0, 1, 0]
