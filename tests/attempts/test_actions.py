"""The verbs of people: expire, fail, cancel, retry now, reschedule; and the selectables."""

import asyncio
import contextlib
import datetime as dt
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, Table, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from async_task import (
    AsyncTask,
    Attempt,
    ConfigurationError,
    InvalidArguments,
    InvalidState,
    NoTransaction,
    Retried,
    Status,
    Succeeded,
)
from async_task.queue import fetch
from claims import claimed
from clockwork import let_pass, row_of
from conftest import by_one_door
from outbox import Client, act, act_in_session, events_of, will
from writing import run_async

Write = Callable[..., Attempt]
Sessions = sessionmaker[Session]
TABLE: Table = Attempt.__table__  # type: ignore[assignment]
HOUR = dt.timedelta(hours=1)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


ENDS = {"expire": Status.EXPIRED, "fail": Status.FAILED, "cancel": Status.CANCELED}
VERBS: dict[str, dict[str, Any]] = {name: {} for name in (*ENDS, "retry_now")}
VERBS["reschedule"] = {"at": now() + HOUR}
each_verb = pytest.mark.parametrize("verb", VERBS)


def say(attempt: Attempt, verb: str, session: Session | None = None, **more: Any) -> None:
    getattr(attempt, verb)(session, **VERBS[verb], **more)


@each_verb
def test_a_verb_leaves_one_event_with_its_reason(engine: Engine, write: Write, sessions: Sessions, verb: str) -> None:
    attempt = write(Client, "ping")
    with sessions.begin() as session:
        say(attempt, verb, session, reason="the customer called")
    (event,) = events_of(engine, attempt.id)
    assert (event.job_type, event.kind, event.message) == ("async_task_attempts", verb, "the customer called")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ENDS)
@by_one_door
def test_the_reason_of_an_end_is_its_last_error_and_without_one_the_last_error_stays(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, verb: str
) -> None:
    for reason, said in (("wrong address", "wrong address"), (None, "Broken: no such order")):
        attempt = write(Client, "fail")
        app.perform(attempt.id)
        with sessions.begin() as session:
            say(attempt, verb, session, reason=reason)
        assert row_of(engine, attempt.id).last_error == said


@each_verb
def test_the_instance_has_the_new_state_after_a_verb(write: Write, sessions: Sessions, verb: str) -> None:
    attempt = write(Client, "ping", scheduled_at=now() + 2 * HOUR)
    with sessions.begin() as session:
        say(attempt, verb, session)
        assert attempt.status is ENDS.get(verb, Status.PENDING)
        assert (attempt.completed_at is None) == (verb not in ENDS)
        assert attempt.is_due == (verb == "retry_now")


@each_verb
def test_a_verb_is_part_of_the_callers_transaction(engine: Engine, write: Write, sessions: Sessions, verb: str) -> None:
    attempt = write(Client, "ping")
    before = row_of(engine, attempt.id)
    with sessions() as session:
        say(attempt, verb, session, reason="no")
        session.rollback()
    assert row_of(engine, attempt.id) == before
    assert events_of(engine, attempt.id) == []


def test_a_verb_flushes_earlier_changes_first(engine: Engine, sessions: Sessions) -> None:
    with sessions.begin() as session:
        attempt = Attempt.create(target=Client, method_name="ping", session=session)
        attempt.priority = 3
        attempt.cancel()
        attempt_id = attempt.id
    row = row_of(engine, attempt_id)
    assert (row.status, row.priority) == (Status.CANCELED, 3)


@pytest.mark.in_turns
@each_verb
def test_a_verb_runs_on_an_async_session_through_run_sync(
    engine: Engine, async_engine_url: str, write: Write, verb: str
) -> None:
    attempt = write(Client, "ping")

    async def say_it() -> None:
        async_engine = create_async_engine(async_engine_url, poolclass=NullPool)
        async with AsyncSession(async_engine) as session, session.begin():
            mine = await session.get_one(Attempt, attempt.id)
            await session.run_sync(getattr(mine, verb), **VERBS[verb], reason="async")
            assert mine.status is ENDS.get(verb, Status.PENDING)
        await async_engine.dispose()

    asyncio.run(say_it())
    assert row_of(engine, attempt.id).status is ENDS.get(verb, Status.PENDING)
    assert [event.message for event in events_of(engine, attempt.id)] == ["async"]


@pytest.mark.in_turns
@each_verb
def test_a_verb_outside_of_run_sync_says_how_an_async_session_is_awaited(
    engine: Engine, async_engine_url: str, write: Write, verb: str
) -> None:
    attempt = write(Client, "ping")

    async def say_it(session: AsyncSession) -> None:
        mine = await session.get_one(Attempt, attempt.id)
        for blocking in (partial(say, mine, verb), partial(mine.add_note, text="a note")):
            with pytest.raises(ConfigurationError, match="AsyncSession must be awaited"):
                blocking()

    run_async(async_engine_url, say_it)


@pytest.mark.in_turns
@each_verb
@pytest.mark.parametrize("is_released", [False, True])
def test_a_savepoint_that_is_rolled_back_takes_a_verb_back_in_the_object_too(
    engine: Engine, write: Write, verb: str, is_released: bool
) -> None:
    known = write(Client, "ping").id
    with Session(engine, expire_on_commit=False) as session, session.begin():
        attempt = session.get_one(Attempt, known)
        before = (attempt.status, attempt.due_at, attempt.last_error)
        savepoint = session.begin_nested()
        with session.begin_nested() if is_released else contextlib.nullcontext():
            say(attempt, verb, session, reason="in vain")
        assert (attempt.status, attempt.due_at, attempt.last_error) != before
        savepoint.rollback()
        assert (attempt.status, attempt.due_at, attempt.last_error) == before
        say(attempt, verb, session)
        kept = (attempt.status, attempt.due_at)
    assert (attempt.status, attempt.due_at) == kept
    assert (row_of(engine, known).status, row_of(engine, known).due_at) == kept


@pytest.mark.slow
@pytest.mark.parametrize("savepoint", [False, True])
def test_a_new_attempt_that_was_canceled_in_what_is_rolled_back_can_be_written_again(
    engine: Engine, savepoint: bool
) -> None:
    with Session(engine) as session:
        around = session.begin_nested() if savepoint else session
        attempt = Attempt.create(session, target=Client, method_name="ping")
        session.flush()
        attempt.cancel(reason="in vain")
        around.rollback()
        assert (attempt.status, attempt.last_error, attempt.completed_at) == (Status.PENDING, None, None)
        session.add(attempt)
        session.commit()
        assert attempt.status is Status.PENDING


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["cancel", "reschedule"])
def test_a_new_attempt_with_an_order_key_keeps_its_values_in_a_rollback_around_its_savepoint(
    engine: Engine, verb: str
) -> None:
    with Session(engine) as session:
        attempt = Attempt.create(session, target=Client, method_name="ping", order_key="key")
        session.flush()
        due = attempt.due_at
        session.begin_nested()
        say(attempt, verb, session)
        session.get_transaction().rollback()  # type: ignore[union-attr]
        assert (attempt.status, attempt.due_at, attempt.target) == (Status.PENDING, due, "test.client")
        session.add(attempt)
        session.commit()
        assert (attempt.status, attempt.order_key) == (Status.PENDING, "key")


@pytest.mark.in_turns
@each_verb
def test_a_detached_attempt_needs_a_session(write: Write, verb: str) -> None:
    with pytest.raises(NoTransaction, match="attached to no session"):
        say(write(Client, "ping"), verb)


@pytest.mark.in_turns
@each_verb
def test_an_attempt_of_another_session_is_refused(engine: Engine, write: Write, sessions: Sessions, verb: str) -> None:
    attempt = write(Client, "ping")
    with sessions() as mine, sessions() as yours:
        mine.add(attempt)
        with pytest.raises(InvalidState, match="attached to another session"):
            say(attempt, verb, yours)
    assert row_of(engine, attempt.id).status is Status.PENDING


def test_a_second_instance_of_an_attached_attempt_is_refused(write: Write, sessions: Sessions) -> None:
    attempt = write(Client, "ping")
    with sessions.begin() as session:
        held = session.get_one(Attempt, attempt.id)
        with pytest.raises(InvalidState, match="has another instance"):
            attempt.cancel(session)
        held.cancel()


def test_an_attempt_that_was_deleted_is_refused(engine: Engine, write: Write, sessions: Sessions) -> None:
    attempt = write(Client, "ping")
    with sessions.begin() as session:
        held = session.get_one(Attempt, attempt.id)
        session.execute(TABLE.delete())
        with pytest.raises(InvalidState, match="there is no attempt"):
            held.cancel()


@pytest.mark.in_turns
@each_verb
@pytest.mark.parametrize(("door", "target"), [("sync", act), ("async", act_in_session)])
def test_a_verb_never_waits_for_a_running_call_and_leaves_the_transaction_usable(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, verb: str, target: object
) -> None:
    attempt, other = write(target), write(Client, "ping")
    took: list[float] = []

    def try_it(*given: object) -> None:
        with sessions.begin() as session:
            held = session.get_one(Attempt, attempt.id)
            began = time.monotonic()
            with pytest.raises(InvalidState, match="is being performed by"):
                say(held, verb)
            took.append(time.monotonic() - began)
            session.get_one(Attempt, other.id).cancel()

    will(try_it)
    assert app.perform(attempt.id) == Succeeded(attempt.id)
    assert took[0] < 4  # who waits for a lock waits longer: for 5 s on SQLite, elsewhere for much more
    assert row_of(engine, other.id).status is Status.CANCELED


@each_verb
@pytest.mark.only_on("postgresql", "mysql")
def test_a_verb_on_a_locked_row_raises_at_once(engine: Engine, write: Write, sessions: Sessions, verb: str) -> None:
    attempt = write(Client, "ping")
    with engine.begin() as connection, sessions.begin() as session:
        connection.execute(select(TABLE).where(TABLE.c.id == attempt.id).with_for_update())
        with pytest.raises(InvalidState, match="being changed by another transaction"):
            say(attempt, verb, session)
        assert session.scalar(select(func.count()).select_from(TABLE)) == 1


@pytest.mark.slow
@each_verb
@by_one_door
def test_a_verb_on_a_stale_instance_reports_the_current_state(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions, verb: str
) -> None:
    """A transaction of MySQL keeps reading what it read first."""
    attempt = write(Client, "ping")
    with sessions() as session:
        stale = session.get_one(Attempt, attempt.id)
        if engine.dialect.name == "sqlite":
            session.commit()  # there, an older snapshot cannot write at all
        assert app.perform(attempt.id) == Succeeded(attempt.id)
        with pytest.raises(InvalidState, match="is succeeded, and must be"):
            say(stale, verb)


@by_one_door
def test_a_stale_instance_of_a_failed_attempt_can_be_retried(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    attempt = write(Client, "give_up", {"reason": "gone"})
    with sessions() as session:
        stale = session.get_one(Attempt, attempt.id)
        if engine.dialect.name == "sqlite":
            session.commit()
        app.perform(attempt.id)
        stale.retry_now()
        session.commit()
    row = row_of(engine, attempt.id)
    assert (row.status, row.num_errors) == (Status.PENDING, 0)


@each_verb
def test_a_verb_takes_a_row_with_a_past_lease_and_counts_its_start_as_lost(
    engine: Engine, write: Write, sessions: Sessions, verb: str
) -> None:
    attempt = write(Client, "ping")
    fetch.claim_one(engine, TABLE, "another-worker", dt.timedelta(seconds=1), attempt.id, uuid.uuid4())
    with sessions.begin() as session, pytest.raises(InvalidState, match="being performed by another-worker since"):
        say(session.get_one(Attempt, attempt.id), verb)
    let_pass(engine, 2)
    with sessions.begin() as session:
        say(session.get_one(Attempt, attempt.id), verb)
    row = row_of(engine, attempt.id)
    assert (row.status, row.claim_id, row.lease_until) == (ENDS.get(verb, Status.PENDING), None, None)
    assert (row.num_attempts, row.num_crashes, row.num_losses) == (1, 0, 1)


@pytest.mark.slow
@by_one_door
def test_retry_now_clears_a_deadline_that_has_passed_and_keeps_one_that_has_not(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    past, future = (write(Client, "ping", expires_at=now() + hours * HOUR) for hours in (1, 3))
    let_pass(engine, 2 * HOUR)
    app.sweep()
    with sessions.begin() as session:
        for one in (past, future):
            held = session.get_one(Attempt, one.id)
            if held.status is Status.PENDING:
                held.fail()
            held.retry_now()
    assert row_of(engine, past.id).expires_at is None
    assert row_of(engine, future.id).expires_at > now()
    assert app.run_batch().succeeded == 2


@pytest.mark.in_turns
@pytest.mark.parametrize("at", [dt.datetime(2030, 1, 1), "2030-01-01", 5, None])
def test_reschedule_refuses_a_naive_datetime_and_other_types(
    engine: Engine, write: Write, sessions: Sessions, at: Any
) -> None:
    attempt = write(Client, "ping")
    before = row_of(engine, attempt.id)
    with sessions.begin() as session, pytest.raises(InvalidArguments, match=r"at: .*datetime"):
        attempt.reschedule(session, at=at)
    assert row_of(engine, attempt.id) == before


def test_reschedule_takes_any_time_zone(engine: Engine, write: Write, sessions: Sessions) -> None:
    attempt, zone = write(Client, "ping"), dt.timezone(dt.timedelta(hours=-7))
    with sessions.begin() as session:
        attempt.reschedule(session, at=dt.datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=zone))
    assert row_of(engine, attempt.id).due_at == dt.datetime(2031, 5, 6, 14, 8, 9, 123456, tzinfo=dt.UTC)


def test_a_reason_may_hold_any_character(engine: Engine, write: Write, sessions: Sessions) -> None:
    attempt = write(Client, "ping")
    with sessions.begin() as session:
        attempt.cancel(session, reason="NUL \0, half a pair \ud800, 😀")
    assert row_of(engine, attempt.id).last_error == "NUL \\0, half a pair \\ud800, 😀"
    (event,) = events_of(engine, attempt.id)
    assert event.message == "NUL \\0, half a pair \\ud800, 😀"


@pytest.mark.in_turns
@each_verb
def test_a_reason_is_a_text_given_by_its_keyword(engine: Engine, write: Write, sessions: Sessions, verb: str) -> None:
    attempt = write(Client, "ping")
    before = row_of(engine, attempt.id)
    with sessions.begin() as session:
        with pytest.raises(InvalidArguments, match="reason: takes a text, not int"):
            say(attempt, verb, session, reason=5)
        text: Any = "the customer called"
        with pytest.raises(ConfigurationError, match=r"reason is a keyword: cancel\(reason=\.\.\.\)"):
            say(attempt, verb, text)
    assert row_of(engine, attempt.id) == before


@by_one_door
def test_retry_now_on_a_succeeded_row_names_all_states_in_which_it_is_legal(
    app: AsyncTask, write: Write, sessions: Sessions
) -> None:
    attempt = write(Client, "ping")
    app.perform(attempt.id)
    with sessions.begin() as session, pytest.raises(InvalidState) as refused:
        session.get_one(Attempt, attempt.id).retry_now()
    assert "is succeeded, and must be canceled or expired or failed or pending" in str(refused.value)


def test_an_attempt_that_is_not_flushed_is_not_due(sessions: Sessions) -> None:
    with sessions.begin() as session:
        attempts = [
            Attempt.create(target=Client, method_name="ping", session=session, scheduled_at=at)
            for at in (None, now() - HOUR)
        ]
        assert [one.is_due for one in attempts] == [False, False]
        session.flush()
        assert attempts[1].is_due


@pytest.mark.slow
@by_one_door
def test_selectables_find_attempts_by_state(app: AsyncTask, engine: Engine, write: Write, sessions: Sessions) -> None:
    ids: dict[str, set[uuid.UUID]] = {name: set() for name in ("due", "later", "overdue", "failing")}
    ids["due"].add(write(Client, "ping").id)
    ids["later"].add(write(Client, "ping", scheduled_at=now() + HOUR).id)
    ids["overdue"].add(write(Client, "ping", expires_at=now() + HOUR / 2).id)
    with engine.begin() as connection:
        past = {"expires_at": now() - HOUR}
        connection.execute(update(TABLE).where(TABLE.c.id.in_(ids["overdue"])).values(past))
    failing = write(Client, "fail")
    assert isinstance(app.perform(failing.id), Retried)
    ids["failing"].add(failing.id)
    succeeded = write(Client, "ping")
    app.perform(succeeded.id)
    ended = {verb: write(Client, "ping") for verb in ENDS}
    with sessions.begin() as session:
        for verb, attempt in ended.items():
            getattr(attempt, verb)(session)
    ends = {verb: {session_id.id} for verb, session_id in ended.items()}

    def found(selectable: Any) -> set[uuid.UUID]:
        with sessions() as session:
            return {attempt.id for attempt in session.scalars(selectable)}

    assert found(Attempt.pending()) == set().union(*ids.values())
    assert found(Attempt.succeeded()) == {succeeded.id}
    assert found(Attempt.failed()) == ends["fail"]
    assert found(Attempt.expired()) == ends["expire"]
    assert found(Attempt.canceled()) == ends["cancel"]
    assert found(Attempt.due()) == ids["due"]
    stuck = ids["due"] | ids["overdue"] | ids["failing"] | ends["fail"] | ends["expire"]
    assert found(Attempt.potentially_stuck()) == stuck


def test_an_attempt_that_is_being_performed_is_not_due(app: AsyncTask, write: Write, sessions: Sessions) -> None:
    attempt = write(act)
    found: list[Any] = []

    def look() -> None:
        with sessions() as session:
            found.extend([*session.scalars(Attempt.due()), session.get_one(Attempt, attempt.id)])

    will(look)
    app.perform(attempt.id)
    (held,) = found
    assert (held.is_due, held.is_performing) == (False, True)


@pytest.mark.slow
@by_one_door
def test_an_attempt_is_performing_while_it_is_claimed_in_a_row_in_a_value_and_in_a_list(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    attempt = write(Client, "ping")

    def said() -> tuple[bool, bool, bool]:
        with sessions() as session:
            row = session.get_one(Attempt, attempt.id)
            listed = app.attempts.list(status="performing").attempts
            return row.is_performing, app.attempts.get(attempt.id).is_performing, attempt.id in {o.id for o in listed}

    assert said() == (False, False, False)
    claimed(engine, attempt.id)
    assert said() == (True, True, True)
    let_pass(engine, 2)  # the lease has passed: the row may be locked by its call, or its worker may be dead
    assert said() == (True, True, True)
    app.sweep()
    assert said() == (False, False, False)
    app.perform(attempt.id)
    assert said() == (False, False, False)


@pytest.mark.slow
@by_one_door
def test_an_attempt_is_due_in_a_row_in_a_value_and_in_a_selectable_alike(
    app: AsyncTask, engine: Engine, write: Write, sessions: Sessions
) -> None:
    written = {
        "due": write(Client, "ping"), "later": write(Client, "ping", scheduled_at=now() + HOUR),
        "late": write(Client, "ping", expires_at=now() + HOUR / 2), "first": write(Client, "ping", order_key="k"),
        "second": write(Client, "ping", order_key="k"), "claimed": write(Client, "ping"),
        "ended": write(Client, "ping"),
    }  # fmt: skip
    app.perform(written["ended"].id)
    with engine.begin() as connection:
        late = TABLE.c.id == written["late"].id
        connection.execute(update(TABLE).where(late).values(expires_at=now() - HOUR))
    app.run_batch(limit=0)
    claimed(engine, written["claimed"].id)
    with sessions() as session:
        selected = set(session.scalars(select(Attempt.id).where(Attempt.due().whereclause)))
        for name, attempt in written.items():
            row = session.get_one(Attempt, attempt.id)
            answers = (row.is_due, app.attempts.get(attempt.id).is_due, attempt.id in selected)
            assert len(set(answers)) == 1, (name, answers)
    assert written["due"].id in selected


def test_an_async_session_is_refused_with_what_to_write_instead(write: Write) -> None:
    attempt = write(Client, "ping")
    session: Any = AsyncSession()
    for verb in (attempt.cancel, attempt.fail, attempt.expire, attempt.retry_now):
        with pytest.raises(ConfigurationError, match=r"await session\.run_sync\(attempt\.cancel"):
            verb(session)
    with pytest.raises(ConfigurationError, match="run_sync"):
        Attempt.ensure(session, target=Client, method_name="ping", idempotence_token="t")
    with pytest.raises(ConfigurationError, match="run_sync"):
        Attempt.create_many(session, [])
