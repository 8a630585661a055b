"""Calls that a type checker refuses: a comment that ignores nothing is an error, so each of these is one.

mypy reads `type: ignore`, pyright reads `pyright: ignore`. Checked by `make check`, never run.
"""

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, CallFacts, Schedule, Succeeded, target


@target
class Client:
    @staticmethod
    def fulfill(token: str, number: int = 0) -> None: ...


@target
def book(session: Session, number: int, *, note: str | None = None) -> None: ...


@target
async def book_async(session: AsyncSession, number: int) -> None: ...


def arguments_that_do_not_fit(session: Session) -> None:
    Attempt.call(Client.fulfill)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    Attempt.call(Client.fulfill, 7)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    Attempt.call(Client.fulfill, "t", "7")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    Attempt.call(Client.fulfill, "t", 7, 8)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    Attempt.call(Client.fulfill, "t", numbre=7)  # type: ignore[type-var, call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    Attempt.call(book)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    Attempt.call(book, "1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    Attempt.call(book, 1, "note")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    Attempt.call(book_async, 1, 2)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    Attempt.call("test.client", 1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    options = Attempt.options(session=session)
    options.call(Client.fulfill)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    options.call(book, "1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    options.call(book_async, number="1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def options_that_there_are_not(session: Session, engine: Engine, connection: Connection) -> None:
    Attempt.options(prioritty=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Attempt.options(priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Attempt.options(session=engine)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Attempt.create(method_name="fulfill")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Attempt.create(Client)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    Attempt.create(session, session=session, target=Client)  # type: ignore[misc]  # pyright: ignore[reportCallIssue]
    Attempt.create(session, target=Client, delay=True, retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Attempt.create(session, target=Client, within="1h")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Attempt.ensure(session, target=Client, until_done="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Attempt.create(target=Client, queu="q")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Attempt.ensure(session, targte=Client)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Attempt.ensure(session, target=Client, priority="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Attempt.ensure(connection, target=Client)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Attempt.create_many(engine, [])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    target("name", retry_on="ValueError")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    target("name", prioritty=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    target("name", priority="1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def entries_that_there_are_not(schedule: Schedule) -> None:
    schedule.every(call=Client.fulfill, catchup="all")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    schedule.every(minuets=5, call=book)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    schedule.every(minutes="5", call=book)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    schedule.at("02:30", tz="UTC")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    schedule.cron("5 * * * *", tz=1, call=book)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def through_run_sync(session: AsyncSession) -> None:
    await session.run_sync(Attempt.ensure, targte=Client)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def count_success(facts: CallFacts, outcome: Succeeded) -> None: ...


def hooks_that_do_not_fit() -> None:
    AsyncTask("sqlite://", around=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncTask("sqlite://", around=lambda facts: 7)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    AsyncTask("sqlite://", on_failed=count_success)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
