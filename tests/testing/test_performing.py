"""`perform_all`: calls are performed in the test's own transaction, and decided about as by a worker."""

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

import outbox
from async_task import (
    Again,
    AsyncTask,
    AsyncTaskError,
    Attempt,
    CallFacts,
    ConfigurationError,
    Discard,
    Expired,
    Failed,
    NoTransaction,
    Parked,
    Retried,
    RetryAfter,
    Status,
    Succeeded,
    current_attempt,
)
from async_task.database.clock import clock_now
from async_task.schema.tables import companion_tables, table_of
from async_task.testing import advance, perform_all, replaced, written
from outbox import Broken, Client, Effect, HookedAttempt, effects, will

Play = Callable[..., Any]


def call(session: Any, target: object, method_name: str | None = None, /, **arguments: Any) -> Attempt:
    return Attempt.create(target=target, method_name=method_name, method_args=arguments, session=session)


def whats(where: Any) -> list[Any]:
    return list(where.scalars(select(effects.c.what).order_by(effects.c.id)))


def test_what_is_due_is_performed_and_nothing_is_committed(session: Session, engine: Engine) -> None:
    attempt = call(session, Client, "fulfill", customer_token="c", order_number=17)
    assert perform_all(session) == [Succeeded(attempt.id)]
    assert outbox.calls == [("c", 17)]
    assert (attempt.status, attempt.num_attempts, attempt.claim_id) == (Status.SUCCEEDED, 1, None)
    assert perform_all(session) == []
    session.commit()
    with Session(engine) as other:
        assert other.scalars(select(Attempt)).all() == []


def test_a_call_that_takes_a_session_writes_on_the_connection_of_the_test(session: Session) -> None:
    call(session, outbox.effect, what="one")
    call(session, outbox.act_in_session)
    seen = Effect(what="mine")
    session.add(seen)

    def act(own: Session) -> None:
        assert own is not session
        own.add(Effect(what="two"))
        own.commit()
        own.add(Effect(what="never"))
        own.rollback()
        found = own.scalars(select(Effect).where(Effect.what == "mine")).one()
        found.what = "changed"

    will(act)
    assert [type(one) for one in perform_all(session)] == [Succeeded, Succeeded]
    assert seen.what == "changed"
    assert set(whats(session)) == {"one", "two", "changed"}


def test_the_session_and_its_savepoints_stay_intact(session: Session) -> None:
    session.add(Effect(what="outer"))
    nested = session.begin_nested()
    call(session, outbox.effect, what="inner")
    perform_all(session)
    assert set(whats(session)) == {"outer", "inner"}
    nested.rollback()
    assert whats(session) == ["outer"]
    assert written(session) == []
    session.rollback()
    assert whats(session) == []


def test_what_a_call_raises_is_raised_after_its_outcome_is_written_and_its_writes_are_undone(session: Session) -> None:
    failing = call(session, outbox.effect, what="raise")
    waiting = call(session, Client, "ping")
    with pytest.raises(Broken, match="after the write"):
        perform_all(session)
    assert (failing.status, failing.num_errors) == (Status.PENDING, 1)
    assert "Broken: after the write" in str(failing.last_error)
    assert whats(session) == []
    assert waiting.num_attempts == 0
    assert [type(one) for one in perform_all(session)] == [Succeeded]
    assert [event.kind for event in outbox_events(session, failing)] == ["error"]


def outbox_events(session: Session, attempt: Attempt) -> list[Any]:
    wanted = select(outbox.JobEvent).where(outbox.JobEvent.job_id == str(attempt.id))
    return list(session.scalars(wanted))


def test_without_raising_errors_are_outcomes(session: Session) -> None:
    made = [
        call(session, Client, "fail"),
        call(session, Client, "give_up", reason="no such customer"),
        call(session, Client, "poll"),
        call(session, Client, "fulfill_later", customer_token="c", order_number=1),
    ]
    outcomes = perform_all(session, raises=False)
    assert [type(one) for one in outcomes] == [Retried, Failed, Retried, Succeeded]
    assert [one.attempt_id for one in outcomes] == [one.id for one in made]
    assert [one.num_errors for one in made] == [1, 1, 0, 0]


@pytest.mark.in_turns
@pytest.mark.parametrize("error", [KeyboardInterrupt(), pytest.fail.Exception("it"), pytest.skip.Exception("it")])
def test_what_is_for_the_runner_of_the_test_is_raised_without_raising_too(
    session: Session, error: BaseException
) -> None:
    def act() -> None:
        raise error

    will(act)
    call(session, outbox.act)
    with pytest.raises(type(error)) as raised:
        perform_all(session, raises=False)
    assert raised.value is error


def test_what_only_ends_a_call_is_an_outcome_without_raising(session: Session) -> None:
    for error in (SystemExit(1), asyncio.CancelledError(), AssertionError()):
        will(mock.Mock(side_effect=error))
        attempt = call(session, outbox.act)
        assert [type(one) for one in perform_all(session, raises=False)] == [Retried]
        attempt.cancel()


@pytest.mark.slow
def test_what_is_retried_is_due_when_the_time_has_passed(session: Session) -> None:
    attempt = call(session, Client, "fail")
    for number in (1, 2, 3):
        assert [type(one) for one in perform_all(session, raises=False)] == [Retried]
        assert perform_all(session) == []
        assert attempt.num_errors == number
        advance(60, session=session)


def test_what_has_raised_is_not_tried_again_in_the_same_run(session: Session) -> None:
    def act() -> None:
        raise RetryAfter("at once", after=0)

    will(act)
    attempt = call(session, outbox.act)
    for number in (1, 2):
        assert [type(one) for one in perform_all(session, raises=False)] == [Retried]
        assert attempt.num_errors == number


def test_a_call_for_later_and_one_that_expires(session: Session) -> None:
    in_an_hour = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    later = Attempt.create(target=Client, method_name="ping", scheduled_at=in_an_hour, session=session)
    expiring = Attempt.create(
        target=Client, method_name="ping", scheduled_at=in_an_hour + dt.timedelta(hours=5), expires_at=in_an_hour,
        session=session,
    )  # fmt: skip
    assert perform_all(session) == []
    advance("61min", session=session)
    assert perform_all(session) == [Expired(expiring.id, "past its expires_at"), Succeeded(later.id)]
    assert later.scheduled_at is not None
    assert later.scheduled_at < dt.datetime.now(dt.UTC)


def test_calls_that_calls_write_are_performed_too(session: Session) -> None:
    def act(own: Session) -> None:
        if len(whats(own)) < 3:
            call(own, outbox.act_in_session)
        own.add(Effect(what=str(current_attempt().number)))

    will(act)
    call(session, outbox.act_in_session)
    assert len(perform_all(session)) == 4
    assert len(whats(session)) == 4


def test_a_call_does_not_find_the_session_of_the_test(session: Session) -> None:
    def act(own: Session) -> None:
        made = Attempt.call(Client.ping)
        assert made in own

    will(act)
    call(session, outbox.act_in_session)
    assert len(perform_all(session)) == 2
    will(lambda: Attempt.call(Client.ping))
    call(session, outbox.act)
    with pytest.raises(NoTransaction):
        perform_all(session)
    assert Attempt.call(Client.ping) in written(session)


def test_the_order_is_that_of_a_worker(session: Session) -> None:
    for number, options in enumerate(({"priority": 5}, {"priority": 0}, {"order_key": "k"}, {"order_key": "k"}, {})):
        Attempt.create(
            target=Client, method_name="fulfill", method_args={"customer_token": "c", "order_number": number},
            session=session, **options,
        )  # fmt: skip
        session.flush()
    perform_all(session)
    assert [number for _, number in outbox.calls] == [1, 2, 3, 4, 0]


def test_a_failing_call_holds_up_its_order_key_and_no_other(session: Session) -> None:
    made = [
        Attempt.create(target=Client, method_name=name, order_key=key, session=session)
        for name, key in (("fail", "a"), ("ping", "a"), ("ping", "b"))
    ]
    assert [type(one) for one in perform_all(session, raises=False)] == [Retried, Succeeded]
    assert [one.status for one in made] == [Status.PENDING, Status.PENDING, Status.SUCCEEDED]
    advance("1d", session=session)
    with replaced(Client.fail, lambda message="": None):
        perform_all(session)
    assert [one.status for one in made] == [Status.SUCCEEDED] * 3


def test_encrypted_arguments_and_own_models_with_their_error_hook(session: Session) -> None:
    will(outbox.calls.append)
    call(session, outbox.act_boxed, card="4711")
    hooked = HookedAttempt.create(target=Client, method_name="fail", session=session)

    def decide(attempt: HookedAttempt, error: BaseException) -> None:
        attempt.note = str(error)
        attempt.fail(reason="enough")

    outbox.hooks[:] = [decide]
    try:
        outcomes = perform_all(session, raises=False)
    finally:
        outbox.hooks.clear()
    assert "4711" in outbox.calls
    assert {type(one) for one in outcomes} == {Succeeded, Failed}
    assert (hooked.status, hooked.note) == (Status.FAILED, "no such order")


def test_a_target_that_ends_the_transaction_itself_fails_as_in_life(session: Session) -> None:
    will(lambda own: own.connection().commit())
    attempt = call(session, outbox.act_in_session)
    with pytest.raises(Exception, match="ended the attempt's transaction itself"):
        perform_all(session)
    assert attempt.status is Status.FAILED
    assert str(attempt.last_error).startswith("committed_inside")


def test_a_rollback_of_the_whole_transaction_undoes_the_call_and_nothing_else(session: Session) -> None:
    def act(own: Session) -> None:
        own.add(Effect(what="undone"))
        own.flush()
        own.connection().rollback()

    will(act)
    attempt = call(session, outbox.act_in_session)
    session.add(Effect(what="kept"))
    assert [type(one) for one in perform_all(session, raises=False)] == [Failed]
    assert str(attempt.last_error).startswith("committed_inside")
    assert whats(session) == ["kept"]


def test_a_database_error_of_a_call_is_an_error_and_leaves_the_transaction_usable(session: Session) -> None:
    will(lambda own: own.execute(text("SELECT nothing FROM nowhere")))
    attempt = call(session, outbox.act_in_session)
    session.add(Effect(what="kept"))
    assert [type(one) for one in perform_all(session, raises=False)] == [Retried]
    assert attempt.num_errors == 1
    assert whats(session) == ["kept"]


def test_a_call_that_cannot_be_performed_here_is_refused(session: Session) -> None:
    attempt = call(session, outbox.effect_later, what="x")
    with pytest.raises(ConfigurationError, match=r"effect_later takes an AsyncSession, and this test has a Session"):
        perform_all(session)
    assert (attempt.num_attempts, attempt.claim_id) == (0, None)
    attempt.cancel()
    unknown = call(session, Client, "ping")
    session.flush()
    session.execute(Attempt.__table__.update().values(target="gone").where(Attempt.id == unknown.id))
    with pytest.raises(ConfigurationError, match="could not be performed: UnknownTarget: no target is registered"):
        perform_all(session)
    session.execute(Attempt.__table__.update().values(status="canceled", completed_at=func.now()))


def test_parked_calls_are_outcomes_without_raising(session: Session) -> None:
    unknown, known = call(session, Client, "ping"), call(session, Client, "ping")
    session.flush()
    session.execute(Attempt.__table__.update().values(target="gone").where(Attempt.id == unknown.id))
    outcomes = perform_all(session, raises=False)
    assert {one.attempt_id: type(one) for one in outcomes} == {unknown.id: Parked, known.id: Succeeded}


@pytest.mark.slow
def test_a_poll_that_is_due_again_at_once_ends(session: Session) -> None:
    will(lambda: Again(after=0))
    call(session, outbox.act)
    with (
        mock.patch("async_task.testing.performing.MOST_TRIES", 5),
        pytest.raises(AsyncTaskError, match="tried 5 times"),
    ):
        perform_all(session)


def test_a_paused_queue_waits(session: Session) -> None:
    queues = companion_tables(table_of(Attempt)).queues
    session.execute(queues.insert().values(name="paused", paused_at=clock_now()))
    waiting = Attempt.create(target=Client, method_name="ping", queue="paused", session=session)
    other = Attempt.create(target=Client, method_name="ping", queue="z", session=session)
    assert perform_all(session) == [Succeeded(other.id)]
    assert waiting.num_attempts == 0


def test_calls_of_all_queues_are_performed_in_the_order_in_which_they_are_due(session: Session) -> None:
    for number, queue in enumerate(("z", "a", "m")):
        Attempt.create(
            target=Client, method_name="fulfill", method_args={"customer_token": queue, "order_number": number},
            queue=queue, session=session,
        )  # fmt: skip
        session.flush()
        advance(1, session=session)
    perform_all(session)
    assert outbox.calls == [("z", 0), ("a", 1), ("m", 2)]


def test_a_call_with_long_arguments_and_one_whose_process_has_died(session: Session) -> None:
    long = call(session, outbox.effect, what="y" * 200)
    suspect = call(session, Client, "fulfill", customer_token="x" * 20_000, order_number=1)
    session.flush()
    session.execute(Attempt.__table__.update().values(num_crashes=1, num_attempts=1).where(Attempt.id == suspect.id))
    assert [one.attempt_id for one in perform_all(session)] == [long.id, suspect.id]
    assert outbox.calls == [("x" * 20_000, 1)]


def test_nothing_is_committed_where_the_session_has_written_nothing_itself(engine: Engine, write: Any) -> None:
    attempt = write(Client, "ping")
    with Session(engine) as session:
        assert perform_all(session) == [Succeeded(attempt.id)]
        session.rollback()
        assert session.get_one(Attempt, attempt.id).status is Status.PENDING


@pytest.mark.only_on("mysql")
def test_the_limits_of_the_connection_stay_those_of_the_test(session: Session) -> None:
    call(session, outbox.effect, what="x")
    perform_all(session)
    assert session.execute(text("SELECT @@max_statement_time, @@idle_transaction_timeout")).one() == (0, 0)


@pytest.mark.only_on("postgresql")
def test_the_limits_of_the_transaction_stay_those_of_the_test(session: Session) -> None:
    session.execute(text("SET LOCAL statement_timeout = '71s'"))
    call(session, outbox.effect, what="x")
    perform_all(session)
    assert session.scalar(text("SHOW statement_timeout")) == "71s"
    assert session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "0"


LIMITS = text("SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('statement_timeout')")


@pytest.mark.only_on("postgresql")
def test_the_server_does_not_end_a_call_that_takes_longer_than_its_limit(session: Session) -> None:
    limits: list[Any] = []

    def act(own: Session) -> None:
        limits.append(tuple(own.execute(LIMITS).one()))
        time.sleep(0.7)  # its limit is 0.5 s

    will(act)
    call(session, outbox.act_brief_in_session)
    assert [type(one) for one in perform_all(session)] == [Succeeded]
    will(lambda: limits.append(tuple(session.execute(LIMITS).one())))
    Attempt.options(session=session, timeout=0.5).call(outbox.act)
    assert [type(one) for one in perform_all(session)] == [Succeeded]
    assert limits == [("0", "0")] * 2


@pytest.mark.only_on("postgresql")
def test_the_server_does_not_limit_the_calls_of_an_async_session(play: Play) -> None:
    limits: list[Any] = []

    async def act(own: AsyncSession) -> None:
        limits.append(tuple((await own.execute(LIMITS)).one()))

    async def test(session: AsyncSession) -> None:
        will(act)
        call(session, outbox.act_in_async_session_locked)
        await perform_all(session)

    play(test)
    assert limits == [("0", "0")]


def test_a_session_on_an_engine_commits_what_was_performed(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        attempt = call(session, outbox.effect, what="x")
        perform_all(session)
        kept = attempt.id
    with Session(engine) as session:
        assert session.get_one(Attempt, kept).status is Status.SUCCEEDED
        assert whats(session) == ["x"]


def test_other_sessions_on_the_connection_can_be_used_in_a_call(session: Session, maker: sessionmaker[Session]) -> None:
    def act() -> None:
        with maker.begin() as own:
            own.add(Effect(what="own"))

    will(act)
    call(session, outbox.act)
    perform_all(session)
    assert whats(session) == ["own"]


def test_a_coroutine_runs_under_a_synchronous_session_also_in_an_asynchronous_test(session: Session) -> None:
    async def test() -> None:
        call(session, Client, "fulfill_later", customer_token="c", order_number=1)
        perform_all(session)

    asyncio.run(test())
    assert outbox.calls == [("c", 1)]


def test_without_a_session_it_says_what_to_do(engine: Engine) -> None:
    with pytest.raises(NoTransaction, match=r"give session=, or name the fixture .* async_task_session"):
        perform_all()
    with pytest.raises(ConfigurationError, match="takes a Session or an AsyncSession"):
        perform_all(engine)  # type: ignore[call-overload]


def test_the_ambient_session_is_the_default(session: Session) -> None:
    call(session, Client, "ping")
    session.flush()
    assert [type(one) for one in perform_all()] == [Succeeded]


def test_a_session_may_be_bound_for_its_own_models_alone(connection: Connection) -> None:
    with Session(binds={HookedAttempt: connection}, join_transaction_mode="create_savepoint") as session:
        attempt = HookedAttempt.create(target=Client, method_name="ping", session=session)
        assert perform_all(session) == [Succeeded(attempt.id)]
    with pytest.raises(ConfigurationError, match="bound to no engine and no connection"):
        perform_all(Session())


# On an AsyncSession.


@pytest.mark.slow
def test_all_kinds_of_targets_run_on_an_async_session(play: Play) -> None:
    loops: list[Any] = []

    async def act_later() -> None:
        loops.append(asyncio.get_running_loop())

    def act(own: Any = None) -> Any:
        if isinstance(own, AsyncSession):
            return write(own)
        if isinstance(own, Session):
            own.add(Effect(what="in session"))
            return None
        return act_later() if own is None and not loops else None

    async def write(own: AsyncSession) -> None:
        own.add(Effect(what="in async session"))
        await own.commit()

    async def test(session: AsyncSession) -> None:
        mine = Effect(what="mine")
        session.add(mine)
        will(act)
        for target in (outbox.act_later, outbox.act, outbox.act_in_session, outbox.act_in_async_session):
            call(session, target)
        call(session, outbox.effect_later, what="raise")
        outcomes = await perform_all(session, raises=False)
        assert [type(one) for one in outcomes] == [Succeeded] * 4 + [Retried]
        assert loops == [asyncio.get_running_loop()]
        assert set(await session.scalars(select(effects.c.what))) == {
            "mine", "in session", "in async session",
        }  # fmt: skip
        assert mine.what == "mine"  # it is loaded
        await advance("1h", session=session)
        with pytest.raises(Broken):
            await perform_all(session)
        assert [one.num_errors for one in await written(session, outbox.effect_later)] == [2]

    play(test)


def test_the_cancellation_of_the_test_itself_is_no_outcome(play: Play) -> None:
    async def test(session: AsyncSession) -> None:
        started = asyncio.Event()

        async def act() -> None:
            started.set()
            await asyncio.Event().wait()

        will(act)
        call(session, outbox.act_later)
        performing = asyncio.ensure_future(_awaited(perform_all(session, raises=False)))
        await started.wait()
        performing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await performing

    play(test)


async def _awaited(waiting: Awaitable[Any]) -> Any:
    return await waiting


@pytest.mark.slow
def test_an_order_key_and_an_own_model_on_an_async_session(play: Play) -> None:
    async def test(session: AsyncSession) -> None:
        made = [
            Attempt.create(target=Client, method_name="ping", order_key="k", session=session),
            Attempt.create(target=Client, method_name="fail", order_key="k", session=session),
            Attempt.create(target=Client, method_name="ping", order_key="k", session=session),
        ]
        outcomes = await perform_all(session, raises=False)
        assert [type(one) for one in outcomes] == [Succeeded, Retried]
        assert [one.num_attempts for one in made] == [1, 1, 0]
        call(session, Client, "give_up", reason="no")
        with pytest.raises(Discard):
            await perform_all(session)

    play(test)


def test_a_sessionmaker_on_a_connection_is_refused_with_the_way_to_test(connection: Connection) -> None:
    with pytest.raises(ConfigurationError, match=r"bound to a connection.*async_task\.testing\.perform_all\(session\)"):
        AsyncTask(sessionmaker(connection))


def test_a_call_is_made_inside_of_the_hooks_of_the_application(session: Session, engine: Engine) -> None:
    heard: list[str] = []

    @contextlib.contextmanager
    def around(facts: CallFacts) -> Iterator[None]:
        heard.append(f"{facts.method}, try {facts.number}")
        yield
        heard.append("left")

    AsyncTask(engine, around=around, on_succeeded=lambda facts, outcome: heard.append("never"))
    call(session, Client, "fulfill", customer_token="c", order_number=17)
    perform_all(session)
    assert heard == ["fulfill, try 1", "left"]
    AsyncTask(engine)
    call(session, Client, "fulfill", customer_token="c", order_number=18)
    perform_all(session)
    assert len(heard) == 2
