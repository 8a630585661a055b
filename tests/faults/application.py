"""The application under fire. Each call notes in a file that it began and that it ended, by a clock that no fault
moves. Calls that take the session also insert into `effect`, which has no unique key."""

import asyncio
import json
import os
import time
import uuid
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    Uuid,
    create_engine,
    event,
    insert,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from async_task import Again, AsyncTask, Attempt, Retry, current_attempt, target
from faults import control

URL, MARKS = "FAULTS_URL", "FAULTS_MARKS"
LEASE, IS_ASYNC, IS_BROKEN = "FAULTS_LEASE", "FAULTS_ASYNC", "FAULTS_BROKEN"

metadata = MetaData()
orders = Table(
    "orders", metadata,
    Column("no", Integer, primary_key=True, autoincrement=True),
    Column("attempt_id", Uuid, index=True), Column("kind", String(32)), Column("order_key", String(32)),
    Column("seq", BigInteger),
)  # fmt: skip
effect = Table(
    "effect", metadata,
    Column("no", Integer, primary_key=True, autoincrement=True),
    Column("attempt_id", Uuid, index=True), Column("number", Integer), Column("pid", Integer),
)  # fmt: skip

is_async = bool(os.environ.get(IS_ASYNC))
SOON = Retry.every(0.5)


def make_app(url: str) -> AsyncTask:
    """An application on this database, of the kind of engine that the environment asks for."""
    if url.startswith("sqlite"):  # the library's own settings
        return AsyncTask(url, lease=_lease())
    make: Any = create_async_engine if is_async else create_engine
    engine = make(url, hide_parameters=True)
    if url.startswith("mysql"):
        _drop_dead_clients(engine)
    return AsyncTask(engine, lease=_lease())


def _lease() -> float:
    return float(os.environ.get(LEASE, "2"))


def _drop_dead_clients(engine: Any) -> None:
    """MariaDB notices late that a client has gone, and keeps its locks until then."""

    @event.listens_for(getattr(engine, "sync_engine", engine), "connect")
    def _(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("SET SESSION idle_transaction_timeout = 10")
        cursor.close()


def mark(what: str, kind: str = "") -> None:
    """Note that the present call began, raised or ended."""
    attempt = current_attempt()
    said = {
        "what": what, "kind": kind, "id": str(attempt.id), "number": attempt.number, "pid": os.getpid(),
        "at": time.monotonic(),
    }  # fmt: skip
    os.write(_marks, (json.dumps(said) + "\n").encode())


def place_order(session: Session, attempt_id: uuid.UUID, kind: str, key: str | None = None, seq: int = 0) -> None:
    """The data that causes the call."""
    session.execute(insert(orders).values(attempt_id=attempt_id, kind=kind, order_key=key, seq=seq))


def _write(session: Session) -> None:
    attempt = current_attempt()
    session.execute(insert(effect).values(attempt_id=attempt.id, number=attempt.number, pid=os.getpid()))


def _work(session: Session, seconds: float) -> None:
    mark("start")
    _write(session)
    time.sleep(seconds)


@target("faults.plain", retry=SOON)
def plain(seconds: float) -> None:
    mark("start")
    time.sleep(seconds)
    mark("end")


@target("faults.writing", retry=SOON, timeout=8)
def writing(session: Session, seconds: float) -> None:
    _work(session, seconds)
    mark("end")


@target("faults.keyed", retry=SOON, timeout=8)
def keyed(session: Session, seconds: float) -> None:
    _work(session, seconds)
    mark("end")


@target("faults.leased", retry=SOON, mode="leased")
def leased(session: Session, seconds: float) -> None:
    mark("start")
    time.sleep(seconds)
    _write(session)
    mark("end")


@target("faults.batched", retry=SOON, batch=20, settle_within=0.1)
def batched(session: Session, seconds: float) -> None:
    _work(session, 0)
    mark("end")


@target("faults.isolated", retry=SOON, isolate=True, timeout=8)
def isolated(session: Session, seconds: float) -> None:
    _work(session, seconds)
    mark("end")


@target("faults.polled", retry=SOON)
def polled(seconds: float) -> object:
    mark("start")
    mark("end")
    return Again(after=0.3) if current_attempt().number < 3 else None


@target("faults.flaky", retry=SOON)
def flaky(session: Session, seconds: float) -> None:
    _work(session, seconds)
    if current_attempt().number == 1:
        mark("raise")
        raise ValueError("the first try")
    mark("end")


@target("faults.doomed", retry=Retry.every(0.2, max_attempts=2))
def doomed(session: Session, seconds: float) -> None:
    _work(session, 0)
    mark("raise")
    raise ValueError("each try")


@target("faults.parent", retry=SOON)
def parent(session: Session, seconds: float) -> None:
    _work(session, 0)
    place_order(session, Attempt.options(session=session).call(writing, seconds=seconds).id, "writing")
    mark("end")


POISONED = 9
"""The exit code of a process that a poison has ended."""


@target("faults.poison", retry=SOON)
def poison(seconds: float) -> None:
    mark("start", "poison")
    os._exit(POISONED)


@target("faults.coroutine", retry=SOON)
async def coroutine(seconds: float) -> None:
    mark("start")
    await asyncio.sleep(seconds)
    mark("end")


if is_async:

    @target("faults.writing_coroutine", retry=SOON, timeout=8)
    async def writing_coroutine(session: AsyncSession, seconds: float) -> None:
        mark("start")
        await asyncio.sleep(seconds)
        await session.run_sync(_write)
        mark("end")

else:

    @target("faults.writing_coroutine", retry=SOON, timeout=8)
    async def writing_coroutine(session: Session, seconds: float) -> None:
        mark("start")
        await asyncio.sleep(seconds)
        _write(session)
        mark("end")


if os.environ.get(IS_BROKEN):
    control.break_the_fence()
if os.environ.get(URL):  # in a worker or a producer, and not in the program that reads the tables
    _marks = os.open(os.environ[MARKS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    app = make_app(os.environ[URL])
