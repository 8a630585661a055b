"""What a session may do with the object of an attempt: forget, expire, detach, merge, delete, pickle it."""

import pickle
import uuid
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, ForeignKey, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    defer,
    joinedload,
    mapped_column,
    relationship,
    sessionmaker,
)

import databases
from async_task import AsyncTask, Attempt, BaseAttempt, InvalidState, Status
from writing import Client, run_async

Sessions = sessionmaker[Session]
NUMBERS = range(1, 6)


class Base(DeclarativeBase): ...


class OrderAttempt(BaseAttempt, Base):
    __tablename__ = "order_attempts"


class Order(Base):
    __tablename__ = "orders_with_attempts"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("order_attempts.id"))
    attempt: Mapped[OrderAttempt | None] = relationship()


@pytest.fixture
def orders(engine: Engine, sessions: Sessions) -> Iterator[None]:
    databases.drop_own(engine, Base.metadata)
    Base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all(Order(number=number) for number in NUMBERS)
    yield
    databases.drop_own(engine, Base.metadata)


def attach_attempt(session: Session, number: int) -> None:
    """An attempt that only its order refers to."""
    order = session.get_one(Order, number)
    order.attempt = OrderAttempt.create(
        target=Client, method_name="fulfill", method_args={"token": "t", "number": number}, session=session
    )


def test_a_commit_returns_where_only_a_relationship_refers_to_the_attempt(orders: None, sessions: Sessions) -> None:
    for number in NUMBERS:
        with sessions.begin() as session:
            attach_attempt(session, number)
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(OrderAttempt)) == len(NUMBERS)


@pytest.mark.in_turns
@pytest.mark.parametrize("end", [Session.expire_all, Session.rollback, Session.close, Session.expunge_all])
def test_a_session_lets_go_of_an_attempt_that_only_a_relationship_refers_to(
    orders: None, sessions: Sessions, end: Callable[[Session], None]
) -> None:
    with sessions.begin() as session:
        attach_attempt(session, 1)
    with sessions() as session:
        order = session.get_one(Order, 1)
        assert order.attempt is not None
        end(session)


def test_an_expired_or_deferred_attempt_takes_a_merge_of_itself(
    sessions: Sessions, write: Callable[..., Attempt]
) -> None:
    detached = write(Client, "fulfill", {"token": "t"})
    with sessions.begin() as session:
        there = session.get_one(Attempt, detached.id)
        session.expire(there)
        assert session.merge(detached) is there
    with sessions.begin() as session:
        there = session.get_one(Attempt, detached.id, options=[defer(Attempt.encoded_args)])
        assert session.merge(pickle.loads(pickle.dumps(detached))) is there  # noqa: S301
        assert there.method_args == {"token": "t"}


def test_a_copy_that_is_older_than_its_row_is_not_merged(
    sessions: Sessions, engine: Engine, write: Callable[..., Attempt], orders: None
) -> None:
    """It would make the call a second time."""
    with sessions.begin() as session:
        attach_attempt(session, 1)
    with sessions() as session:
        order = session.get_one(Order, 1, options=[joinedload(Order.attempt)])
        session.expunge_all()
        assert order.attempt is not None
    AsyncTask(engine, model=OrderAttempt).perform(order.attempt.id)
    for copy in (order, order.attempt):
        with sessions() as session, pytest.raises(InvalidState, match="older than its row is not merged"):
            session.merge(copy)
    with sessions.begin() as session:
        attempt = session.get_one(OrderAttempt, order.attempt.id)
        assert attempt.num_attempts == 1
        session.expunge(attempt)
        session.merge(attempt)


def test_the_state_is_not_assigned(sessions: Sessions, write: Callable[..., Attempt]) -> None:
    attempt_id = write(Client, "fulfill", {"token": "t"}).id
    with sessions.begin() as session:
        there = session.get_one(Attempt, attempt_id)
        with pytest.raises(InvalidState, match=r"status is not assigned: verbs change it, as attempt.cancel\(\)"):
            there.status = Status.CANCELED
        there.cancel()
        assert there.status is Status.CANCELED


def test_the_call_of_an_expired_attempt_is_read_only(sessions: Sessions, write: Callable[..., Attempt]) -> None:
    attempt_id = write(Client, "fulfill", {"token": "t"}).id
    with sessions.begin() as session:
        there = session.get_one(Attempt, attempt_id)
        session.expire(there)
        with pytest.raises(InvalidState, match="encoded_args is written once"):
            there.encoded_args = "{}"
        session.expunge(there)
        session.expire_all()
        with pytest.raises(InvalidState, match="target is written once"):
            there.target = "other"


def test_an_attempt_of_an_async_session_is_read_only_and_keeps_its_id(async_engine_url: str) -> None:
    async def body(session: AsyncSession) -> None:
        there = Attempt.create(target=Client, method_name="fulfill", method_args={"token": "t"}, session=session)
        known = there.id
        await session.commit()
        assert there.id == known
        with pytest.raises(InvalidState, match="target is written once"):
            there.target = "other"
        await session.refresh(there)
        assert there.target == "writing.client"

    run_async(async_engine_url, body)


def test_a_rolled_back_or_deleted_attempt_keeps_its_id(sessions: Sessions) -> None:
    with sessions() as session:
        attempt = Attempt.create(target=Client, method_name="hurry", session=session)
        known = attempt.id
        session.flush()
        session.rollback()
        assert (attempt.id, attempt.method_args) == (known, {})
        session.add(attempt)
        session.commit()
        session.delete(attempt)
        session.commit()
        assert attempt.id == known
        assert str(known) in repr(attempt)
