"""A shared transaction and its neighbours: serialization failures, deadlocks, limits, pauses, and coroutines of its
queue."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.orm import Session
from sqlalchemy.sql import Select

import outbox
from async_task import AsyncTask, Attempt, Status, target
from async_task.worker.poller import Poller
from clockwork import row_of
from elsewhere import await_
from outbox import Gate, act_shared, calls, effect_later, effects, events_of
from shared_calls import claim_many, does, numbered, put, written
from workers import at_rest, counted, make, working


@pytest.fixture(autouse=True)
def _many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    claim_many(partial(monkeypatch.setattr, raising=False))


def charged(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        rows = connection.execute(select(Attempt.num_errors, Attempt.num_crashes)).all()
    return [tuple(one) for one in rows if any(one)]


# Serialization failures and deadlocks

Fail = Callable[[str, str, int], None]
FAIL = """
CREATE FUNCTION fail_some_times() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('times_failed') <= {times} THEN RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; END IF;
    RETURN NEW;
END $$
"""
WHERE = {
    "at the COMMIT": "CONSTRAINT TRIGGER fail AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW WHEN (NEW.what = '2')",
    "in a statement of the call": "TRIGGER fail BEFORE INSERT ON effects FOR EACH ROW WHEN (NEW.what = '2')",
    "where its outcome is written": "TRIGGER fail BEFORE UPDATE ON async_task_attempts"
    " FOR EACH ROW WHEN (NEW.status = 'succeeded' AND NEW.priority = 2)",
}


@pytest.fixture
def fail(engine: Engine) -> Iterator[Fail]:
    """`fail("at the COMMIT", "40001", 1)`: the third call meets this SQLSTATE there, once, whatever is rolled back."""

    def fail(where: str, state: str, times: int) -> None:
        with engine.begin() as connection:
            connection.execute(text("CREATE SEQUENCE times_failed"))
            connection.exec_driver_sql(FAIL.format(times=times, state=state))
            connection.execute(text(f"CREATE {WHERE[where]} EXECUTE FUNCTION fail_some_times()"))

    yield fail
    with engine.begin() as connection:
        connection.execute(text("DROP FUNCTION fail_some_times CASCADE"))
        connection.execute(text("DROP SEQUENCE times_failed"))


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    ("state", "times", "door"),
    [
        ("40001", 1, "sync"),
        ("40P01", 1, "async"),
        pytest.param("40P01", 2, "sync", marks=pytest.mark.long),
        pytest.param("40001", 2, "async", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("where", WHERE)
def test_after_a_serialization_failure_calls_run_again_and_none_is_charged_lost_or_doubled(
    app: AsyncTask, engine: Engine, fail: Fail, where: str, state: str, times: int
) -> None:
    does(lambda session, number: None)
    with Session(engine) as session, session.begin():
        rows = [{"target": act_shared, "method_args": {"number": one}, "priority": one} for one in range(5)]
        ids = Attempt.create_many(session, rows)
    fail(where, state, times)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert counted(engine) == {"succeeded": 5}
    assert (written(engine), charged(engine)) == ([0, 1, 2, 3, 4], [])
    again = {"at the COMMIT": [0, 1, 2, 3, 4], "where its outcome is written": [0, 1, 2]}.get(where, [2])
    assert Counter(calls) == Counter([0, 1, 2, 3, 4, *again, *([2] if times == 2 else [])])
    parked = times - 1 if where != "in a statement of the call" else 1
    assert len(events_of(engine, ids[2], "parked")) == parked


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_deadlock_over_the_row_of_the_next_call_undoes_all_and_charges_none(app: AsyncTask, engine: Engine) -> None:
    """Another transaction has locked the row of the fourth call, and wants that of the first."""
    is_locked = threading.Event()

    def lock(connection: Any, attempt_id: Any) -> None:
        found: Select[Any] = select(Attempt.id).where(Attempt.id == attempt_id).with_for_update()
        connection.execute(found).all()

    def rival() -> None:
        with engine.connect() as connection, connection.begin() as transaction:
            connection.execute(insert(effects), [{"what": "99"}] * 50)  # MariaDB ends the transaction with fewer writes
            if engine.dialect.name == "postgresql":
                connection.execute(
                    text("SET LOCAL deadlock_timeout = '30s'")
                )  # PostgreSQL the one whose timeout is shorter
            lock(connection, ids[3])
            is_locked.set()
            lock(connection, ids[0])
            transaction.rollback()

    thread = threading.Thread(target=rival)

    def act(session: Session, number: int) -> None:
        if number == 0 and calls.count(0) == 1:
            thread.start()
            assert is_locked.wait(30)

    does(act)
    ids = numbered(engine, 5)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    thread.join(timeout=30)
    assert counted(engine) == {"succeeded": 5}
    assert (written(engine), charged(engine)) == ([0, 1, 2, 3, 4], [])
    assert Counter(calls) == Counter([0, 1, 2, 0, 1, 2, 3, 4])
    assert {row_of(engine, one).num_attempts for one in ids} == {1}


# Limits, pauses, coroutines


def noted(session: Session, number: int) -> None:
    calls.append(number)
    put(session, str(number))
    outbox.acts[0](session, number)


@pytest.fixture
def few(registered: None) -> Any:
    return target("test.beside.few", batch=10, settle_within=1, max_running=3)(noted)


@pytest.fixture
def rare(registered: None) -> Any:
    return target("test.beside.rare", batch=10, settle_within=1, rate=4)(noted)


@pytest.mark.slow
def test_no_more_calls_share_a_transaction_than_max_running(app: AsyncTask, engine: Engine, few: Any) -> None:
    roots: list[Any] = []
    does(lambda session, number: roots.append(session.connection().get_transaction()))
    ids = numbered(engine, 7, few)
    with working(app, concurrency=2):
        await_(lambda: at_rest(engine), "all are called")
    assert (counted(engine), written(engine), sorted(calls)) == ({"succeeded": 7}, [*range(7)], [*range(7)])
    assert max(sum(one is root for one in roots) for root in roots) == 3
    assert {row_of(engine, one).num_attempts for one in ids} == {1}


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_a_call_that_waits_for_its_commit_counts_as_running(app: AsyncTask, engine: Engine, few: Any) -> None:
    gate = Gate()
    does(lambda session, number: gate.pass_through() if number == 2 else None)
    numbered(engine, 7, few)
    with working(app, concurrency=2):
        gate.await_call()
        make(engine, outbox.Client, method_name="ping")
        await_(lambda: counted(engine).get("succeeded") == 1, "the other lane works")
        with engine.connect() as connection:
            claimed = select(Attempt.id).where(Attempt.claim_id.is_not(None))
            assert len(connection.scalars(claimed).all()) == 3
        assert calls[:3] == [0, 1, 2]
        gate.opened.set()
        await_(lambda: at_rest(engine), "all are called")
    assert written(engine) == [*range(7)]


@pytest.mark.slow
def test_no_more_calls_share_a_transaction_than_the_rate_allows(app: AsyncTask, engine: Engine, rare: Any) -> None:
    roots: list[Any] = []
    does(lambda session, number: roots.append(session.connection().get_transaction()))
    numbered(engine, 6, rare)
    with working(app, concurrency=1):
        await_(lambda: at_rest(engine), "all are called")
    assert (counted(engine), written(engine), sorted(calls)) == ({"succeeded": 6}, [*range(6)], [*range(6)])
    assert max(sum(one is root for one in roots) for root in roots) == 4


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("has_its_own_queue", [True, False])
def test_a_pause_lets_running_calls_end_and_starts_no_others(
    app: AsyncTask, engine: Engine, monkeypatch: pytest.MonkeyPatch, few: Any, has_its_own_queue: bool
) -> None:
    """For a target that has a queue of its own, and for one that shares it with others."""
    called = few if has_its_own_queue else act_shared
    gate = Gate()
    does(lambda session, number: gate.pass_through() if number == 2 else None)
    first = numbered(engine, 3, called)
    person = AsyncTask(engine)
    look, looks = Poller._poll, list[Any]()
    monkeypatch.setattr(Poller, "_poll", lambda *given: looks.append(look(*given)) or looks[-1])
    with working(app, concurrency=1):
        gate.await_call()
        assert person.pause(target=called)
        known = len(looks) + 2
        await_(lambda: len(looks) >= known, "the worker has seen it")
        later = numbered(engine, 3, called)
        gate.opened.set()
        await_(lambda: all(row_of(engine, one).status is Status.SUCCEEDED for one in first), "they end")
        make(engine, outbox.Client, method_name="ping")
        await_(lambda: counted(engine) == {"succeeded": 4, "pending": 3}, "other targets run")
        assert {(row_of(engine, one).num_attempts, row_of(engine, one).claim_id) for one in later} == {(0, None)}
        assert [one for one in calls if isinstance(one, int)] == [0, 1, 2]
        assert person.resume(target=called)
        await_(lambda: at_rest(engine), "all are called")
    assert written(engine) == [0, 0, 1, 1, 2, 2]
    assert charged(engine) == []


@pytest.mark.slow
@pytest.mark.parametrize("door", ["async"])
def test_coroutines_with_a_session_are_committed_by_themselves_beside_it(app: AsyncTask, engine: Engine) -> None:
    """Neither waits for the other, nor is undone with it."""
    roots: list[Any] = []

    def act(session: Session, number: int) -> None:
        roots.append(session.connection().get_transaction())
        if number == 3:
            raise outbox.Broken

    does(act)
    with Session(engine) as session, session.begin():
        for number in range(6):
            Attempt.create(target=act_shared, method_args={"number": number}, session=session)
            what = "raise" if number == 4 else "7"
            Attempt.create(target=effect_later, method_args={"what": what}, session=session)
            session.flush()
    with working(app, concurrency=1):
        await_(lambda: counted(engine) == {"succeeded": 10, "pending": 2}, "all are called")
        await_(lambda: len(charged(engine)) == 2, "both errors are written")
    assert written(engine) == [0, 1, 2, 4, 5, 7, 7, 7, 7, 7]
    assert all(one is roots[0] for one in roots)
    assert sorted(calls) == [*range(6)]
