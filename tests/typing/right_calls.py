"""Calls that a type checker accepts, and the exact types of what they answer. Checked by `make check`."""

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any, assert_type

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session

from async_task import (
    Around,
    AsyncTask,
    Attempt,
    BaseAttempt,
    CallFacts,
    CallToMake,
    Failed,
    NullEncryptor,
    Pollable,
    Polling,
    PollState,
    Retried,
    Retry,
    Schedule,
    Status,
    Succeeded,
    policy,
    target,
)


class OwnSession(Session): ...


class OwnAsyncSession(AsyncSession): ...


@target
class Client:
    @staticmethod
    def fulfill(token: str, number: int = 0) -> None: ...

    @classmethod
    def ping(cls, host: str) -> None: ...

    @staticmethod
    @policy(priority=3, retry=Retry.never())
    async def later(token: str) -> int:
        return 1


@target("typing.booked", aliases=["typing.old"], queue="slow", timeout=dt.timedelta(minutes=1), max_age=60.0)
def book(session: Session, number: int, *, note: str | None = None) -> None: ...


@target
def book_own(session: OwnSession, number: int) -> None: ...


@target
async def book_async(session: AsyncSession, number: int) -> None: ...


@target
async def book_own_async(session: OwnAsyncSession, number: int) -> None: ...


@target
def only_session(session: Session) -> None: ...


class Mailer:
    def send(self, to: str) -> None: ...


class Base(DeclarativeBase): ...


class Own(BaseAttempt, Base):
    __tablename__ = "own"

    tenant: Mapped[str | None] = mapped_column()

    def handle_perform_error(self, error: BaseException) -> None:
        self.fail(reason="once")


class OwnLater(BaseAttempt, Base):
    __tablename__ = "own_later"

    async def handle_perform_error(self, error: BaseException) -> None:
        self.fail(reason="once")


mailer = target(Mailer(), name="typing.mailer")


def decorating_keeps_the_type() -> None:
    assert_type(Client, type[Client])
    assert_type(mailer, Mailer)
    checked: Callable[[Session, int], None] = book
    assert_type(checked(Session(), 1), None)


def calls() -> None:
    assert_type(Attempt.call(Client.fulfill, "token"), Attempt)
    assert_type(Attempt.call(Client.fulfill, "token", number=7), Attempt)
    assert_type(Attempt.call(Client.ping, "host"), Attempt)
    assert_type(Attempt.call(Client.later, token="t"), Attempt)
    assert_type(Attempt.call(mailer.send, "me"), Attempt)
    # A first parameter that is a session is not passed.
    assert_type(Attempt.call(book, 1), Attempt)
    assert_type(Attempt.call(book, number=1, note="x"), Attempt)
    assert_type(Attempt.call(book_own, 1), Attempt)
    assert_type(Attempt.call(book_async, 1), Attempt)
    assert_type(Attempt.call(book_own_async, number=1), Attempt)
    assert_type(Attempt.call(only_session), Attempt)


def options(session: Session, scoped: scoped_session[Session], asynchronous: AsyncSession) -> None:
    now = dt.datetime.now(dt.UTC)
    assert_type(Attempt.options(session=session, scheduled_at=now).call(Client.fulfill, "t", 1), Attempt)
    assert_type(Attempt.options(session=scoped, expires_at=now, priority=3, queue="q").call(book, 1), Attempt)
    assert_type(Attempt.options(session=asynchronous, encryptor=NullEncryptor()).call(book_async, 1), Attempt)
    assert_type(Attempt.options(idempotence_token="t", max_attempts=3, encryptor="null").call(only_session), Attempt)


def by_name(session: Session, registry: async_scoped_session[AsyncSession], connection: Connection) -> None:
    row: dict[str, Any] = {"target": Client, "method_name": "fulfill", "method_args": {"token": "t"}}
    assert_type(Attempt.create(target="typing.booked", method_args={"number": 1}, session=registry), Attempt)
    assert_type(Attempt.ensure(session, target=Client, method_name="ping", idempotence_token="t"), Attempt)
    assert_type(Attempt.create_many(connection, [row]), list[uuid.UUID])
    assert_type(Attempt.create_many(session, (row for _ in range(3))), list[uuid.UUID])


def what_a_call_says_for_itself(session: Session, attempt: Attempt) -> None:
    rules = Attempt.options(delay="2h", retry=Retry.every(60), timeout=dt.timedelta(seconds=5))
    assert_type(rules.call(book, 1), Attempt)
    assert_type(rules.of(only_session), CallToMake)
    assert_type(Attempt.create(session, target=book, delay=60.5, timeout=3), Attempt)
    assert_type(Attempt.ensure(session, target=book, within=dt.timedelta(hours=1)), Attempt)
    assert_type(Attempt.ensure(session=session, target=book, until_done=True), Attempt)
    target("typing.kinds", retry_on=ConnectionError, discard_on=[ValueError, KeyError])
    policy(retry_on=(ConnectionError, TimeoutError), discard_on=())
    assert_type(Attempt.create_many(session=session, rows=[{"target": book}]), list[uuid.UUID])
    attempt.expire(session)
    attempt.expire(session=session, reason="late")
    attempt.reschedule(session=session, at=dt.datetime.now(dt.UTC))


async def through_run_sync(session: AsyncSession, connection: AsyncConnection, attempt: Attempt) -> None:
    assert_type(await session.run_sync(Attempt.ensure, target=Client, method_name="ping"), Attempt)
    assert_type(await session.run_sync(Attempt.create_many, [{"target": book}]), list[uuid.UUID])
    assert_type(await connection.run_sync(Attempt.create_many, [{"target": book}]), list[uuid.UUID])
    await session.run_sync(attempt.fail, reason="because")
    await session.run_sync(attempt.reschedule, at=dt.datetime.now(dt.UTC))


def a_model_of_ones_own_answers_its_own(session: Session) -> None:
    assert_type(Own.call(book, 1), Own)
    assert_type(Own.options(queue="q").call(Client.fulfill, "t"), Own)
    assert_type(Own.create(target=Client, method_name="ping", method_args={"host": "h"}), Own)
    assert_type(Own.ensure(session, target=book, idempotence_token="t"), Own)
    assert_type(Own.call(book, 1).tenant, str | None)


def a_schedule(schedule: Schedule) -> None:
    schedule.every(minutes=5, call=only_session, jitter=dt.timedelta(seconds=30))
    schedule.cron("5 * * * *", tz="Europe/London", call="typing.booked", args={"number": 1}, catch_up="all(24)")
    schedule.at("02:30", tz="UTC", days="mon-fri", call=Client.fulfill, args={"token": "t"}, when=lambda at: at.day < 8)
    assert_type(Own.options(queue="slow", columns={"tenant": "acme"}).of(Client.fulfill), CallToMake)
    schedule.every(hours=1, call=Own.options(queue="slow").of(book), args={"number": 1}, key="k", overlap="skip")


class Operation(Pollable, Base):
    __tablename__ = "operations"
    polling = Polling(name="typing.operation", schedule=(60, dt.timedelta(minutes=2)), transient_errors=(OSError,))

    id: Mapped[int] = mapped_column(primary_key=True)

    def start(self, idempotency_key: str) -> None: ...

    async def check(self) -> PollState:
        return PollState.ENDED

    async def fetch(self) -> None: ...

    def handle(self) -> None: ...


async def an_operation(session: Session, async_session: AsyncSession) -> None:
    operation = Operation(id=1)
    operation.submit(session)
    await async_session.run_sync(operation.submit)
    operation.fail(reason="no longer")
    assert_type(operation.status, str)
    assert_type(operation.next_poll_at, dt.datetime | None)


def a_row(attempt: Attempt, session: Session) -> None:
    assert_type(attempt.id, uuid.UUID)
    assert_type(attempt.status, Status)
    assert_type(attempt.method_args, Mapping[str, Any])
    assert_type(attempt.is_due, bool)
    assert_type(attempt.expires_at, dt.datetime | None)
    attempt.cancel(session, reason="no longer")
    session.scalars(Attempt.pending().where(Attempt.queue == "q").limit(3)).all()


@contextmanager
def as_tenant(facts: CallFacts) -> Iterator[None]:
    yield


@asynccontextmanager
async def as_tenant_later(facts: CallFacts) -> AsyncIterator[str]:
    yield facts.call


class Span:
    def __enter__(self) -> "Span":
        return self

    def __exit__(self, *_: object) -> None: ...


def count_success(facts: CallFacts, outcome: Succeeded) -> int:
    return facts.number


def note_crash(facts: CallFacts, outcome: Retried | Failed) -> None: ...


def some_hooks(several: Sequence[Around]) -> None:
    AsyncTask("sqlite://", around=as_tenant, on_succeeded=count_success, on_crashed=note_crash)
    AsyncTask("sqlite://", around=[as_tenant, as_tenant_later, lambda facts: Span(), lambda _: nullcontext()])
    AsyncTask("sqlite://", around=several, on_retried=lambda facts, outcome: outcome.after)


outbox_of_flask: AsyncTask = AsyncTask(SQLAlchemy())
