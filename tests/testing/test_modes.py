"""The modes: manual, inline and off."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

import operations
import outbox
import reviews
from async_task import (
    Attempt,
    ConfigurationError,
    InvalidArguments,
    InvalidState,
    Retried,
    RetryAfter,
    Status,
    Succeeded,
    acting,
)
from async_task.asyncable.registration import register as register_asyncable
from async_task.polling.target import register
from async_task.testing import mode, perform_all, written
from outbox import Broken, Client, effects, will

Play = Callable[..., Any]


def whats(where: Any) -> list[Any]:
    return list(where.scalars(select(effects.c.what).order_by(effects.c.id)))


def test_inline_performs_a_call_when_its_session_commits(maker: sessionmaker[Session], session: Session) -> None:
    with mode("inline"):
        with maker.begin() as own:
            Attempt.options(session=own).call(outbox.effect, "one")
            with own.begin_nested():
                Attempt.options(session=own).call(outbox.effect, "two")
            assert whats(own) == []
        assert whats(session) == ["one", "two"]
    with maker.begin() as own:
        Attempt.options(session=own).call(outbox.effect, "three")
    assert whats(session) == ["one", "two"]


def test_inline_performs_the_calls_of_ensure_and_create_many_and_those_that_calls_write(
    maker: sessionmaker[Session], session: Session
) -> None:
    def act(own: Session) -> None:
        Attempt.options(session=own).call(outbox.effect, "by a call")

    will(act)
    with mode("inline"), maker.begin() as own:
        Attempt.ensure(own, target=outbox.effect, method_args={"what": "ensured"}, idempotence_token="t")
        Attempt.create_many(own, [{"target": outbox.effect, "method_args": {"what": "many"}}])
        Attempt.options(session=own).call(outbox.act_in_session)
    assert set(whats(session)) == {"ensured", "many", "by a call"}


def test_inline_performs_nothing_that_was_rolled_back(maker: sessionmaker[Session], session: Session) -> None:
    with mode("inline"):
        with maker() as own:
            Attempt.options(session=own).call(Client.ping)
            own.flush()
            own.rollback()
        with maker.begin() as own:
            nested = own.begin_nested()
            Attempt.options(session=own).call(Client.ping)
            nested.rollback()
    assert outbox.calls == []
    assert written(session) == []
    waiting = Attempt.options(session=session).call(Client.ping)
    session.commit()
    with mode("inline"), maker() as own:
        Attempt.options(session=own).call(Client.ping)
        own.begin_nested().commit()
        own.rollback()
    assert (outbox.calls, waiting.num_attempts) == ([], 0)


def test_inline_performs_no_call_that_a_failing_call_has_committed_in_its_own_session(
    maker: sessionmaker[Session], session: Session
) -> None:
    def act(own: Session) -> None:
        Attempt.options(session=own).call(Client.ping)
        own.commit()
        raise Broken

    will(act)
    with mode("inline"), pytest.raises(Broken), maker.begin() as own:
        Attempt.options(session=own).call(outbox.act_in_session)
    assert outbox.calls == []
    assert len(written(session)) == 1


def test_inline_raises_what_a_call_raises_and_its_outcome_stays(engine: Engine) -> None:
    with mode("inline"):
        session = Session(engine)
        attempt = Attempt.options(session=session).call(outbox.effect, "raise")
        with pytest.raises(Broken):
            session.commit()
        session.close()
        with pytest.raises(Broken), Session(engine) as own, own.begin():
            Attempt.options(session=own).call(Client.fail)
    with Session(engine) as session:
        found = session.get_one(Attempt, attempt.id)
        assert (found.status, found.num_errors, found.claim_id) == (Status.PENDING, 1, None)
        assert whats(session) == []


def test_inline_performs_no_call_that_waited_before(maker: sessionmaker[Session], session: Session) -> None:
    def act() -> None:
        raise RetryAfter("at once", after=0)

    def ping(queue: str) -> None:
        Attempt.options(session=session, queue=queue).call(Client.fulfill, queue, 1)

    will(act)
    earlier = Attempt.options(session=session, queue="a").call(Client.ping)
    session.commit()
    with mode("inline"):
        with maker() as own:
            failing = Attempt.options(session=own).call(outbox.act)
            behind = Attempt.options(session=own).call(outbox.effect, "behind")
            with pytest.raises(RetryAfter):
                own.commit()
        ping("b")
        session.flush()
        ping("a")
        session.commit()
        assert outbox.calls == [("b", 1), ("a", 1)]
        assert [session.get_one(Attempt, one.id).num_attempts for one in (earlier, failing, behind)] == [0, 1, 0]
        assert [type(one) for one in perform_all(session, raises=False)] == [Succeeded, Succeeded, Retried]


def test_inline_performs_an_attempt_that_is_to_be_retried_now(session: Session) -> None:
    attempt = Attempt.options(session=session).call(Client.ping)
    attempt.cancel()
    session.commit()
    with mode("inline"):
        with session.begin_nested():
            attempt.retry_now()
        session.commit()
    assert attempt.status is Status.SUCCEEDED


def test_inline_on_an_async_session(play: Play) -> None:
    async def test(session: AsyncSession) -> None:
        with mode("inline"):
            Attempt.options(session=session).call(outbox.effect_later, "awaited")
            Attempt.options(session=session).call(Client.fulfill_later, "c", 1)
            await session.commit()
        assert list(await session.scalars(select(effects.c.what))) == ["awaited"]
        assert outbox.calls == [("c", 1)]

    play(test)


def test_off_checks_calls_and_writes_nothing_also_without_tables(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    with mode("off"), Session(engine) as session:
        attempt = Attempt.options(session=session).call(Client.fulfill, "c", 17)
        assert (attempt.target, dict(attempt.method_args)) == (
            "test.client", {"customer_token": "c", "order_number": 17},
        )  # fmt: skip
        assert Attempt.call(Client.ping) not in session
        assert Attempt.ensure(session, target=Client, method_name="ping", idempotence_token="t").method_name == "ping"
        assert len(Attempt.create_many(session, [{"target": Client, "method_name": "ping"}])) == 1
        Attempt.options(session=session, order_key="k").call(Client.ping)
        with pytest.raises(InvalidArguments, match="no argument is named 'nmber'"):
            Attempt.create(target=Client, method_name="fulfill", method_args={"nmber": 1}, session=session)
        with pytest.raises(InvalidArguments, match="row 0"):
            Attempt.create_many(session, [{"target": Client, "method_name": "ping", "method_args": {"x": 1}}])
        session.commit()
    engine.dispose()


@pytest.mark.usefixtures("registered")
def test_off_also_submits_operations_and_rows_that_are_their_own_jobs(session: Session) -> None:
    register_asyncable(reviews.Review)
    register(operations.Batch)
    with mode("off"):
        row, batch = reviews.Review(), operations.Batch()
        row.submit_for_processing(session)
        batch.submit(session)
        session.commit()
    assert (row.submitted_at is not None, batch.status) == (True, "pending")
    assert written(session) == []


def test_off_lets_verbs_change_the_object_alone(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'empty.sqlite'}")
    at = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    with mode("off"), Session(engine) as session:
        attempt = Attempt.options(session=session).call(Client.ping)
        attempt.reschedule(session, at=at)
        assert attempt.due_at == at
        attempt.cancel(reason="no longer")
        assert (attempt.status, attempt.last_error, attempt.completed_at is None) == ("canceled", "no longer", False)
        with pytest.raises(InvalidState, match=r"cancel: attempt .* is canceled, and must be pending"):
            attempt.cancel(session)
        with pytest.raises(InvalidArguments, match="reason: takes a text"):
            attempt.retry_now(session, reason=7)  # type: ignore[arg-type]
        attempt.retry_now(session)
        assert (attempt.status, attempt.completed_at, attempt.due_at < at) == ("pending", None, True)
        with acting("anna"):
            assert attempt.add_note(session, text="said").author == "anna"
        with acting("anna"), pytest.raises(InvalidArguments, match="empty"):
            attempt.add_note(session, text=" ")
        assert attempt not in session
        session.commit()
    engine.dispose()


def test_off_changes_written_attempts_as_ever(session: Session) -> None:
    attempt = Attempt.options(session=session).call(Client.ping)
    session.flush()
    with mode("off"):
        attempt.cancel()
        assert not session.is_modified(attempt)
    assert [one.status for one in written(session)] == [Status.CANCELED]


def test_modes_end_with_their_block_also_nested(session: Session) -> None:
    with mode("off"):
        with mode("manual"):
            attempt = Attempt.options(session=session).call(Client.ping)
        other = Attempt.options(session=session).call(Client.ping)
    assert attempt in session
    assert other not in session
    with mode("inline"), mode("inline"):
        pass
    listeners = [name for name in ("after_commit", "after_transaction_end") if _listens(name)]
    assert listeners == []
    perform_all(session)


def _listens(name: str) -> bool:
    from async_task.testing import modes

    return any(event.contains(Session, name, one) for one in (modes._note, modes._perform))


def test_an_unknown_mode_is_refused() -> None:
    with (
        pytest.raises(ConfigurationError, match="mode is one of 'manual', 'inline', 'off', not 'eager'"),
        mode("eager"),
    ):
        raise AssertionError
