"""Writing a call down: `create`, `call`, `options`, `ensure`, `create_many`, in the caller's own transaction."""

import asyncio
import contextlib
import datetime as dt
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, String, event, func, inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

import databases
from async_task import (
    Attempt,
    BaseAttempt,
    ConfigurationError,
    InvalidArguments,
    InvalidState,
    Status,
    UnknownEncryptor,
    UnknownMethod,
    UnknownTarget,
    policy,
    target,
)
from async_task.database.clock import clock_now
from async_task.encryption.encryptors import register_encryptor
from clockwork import row_of

SECRET = "canary-4711"
ARGS = {"token": SECRET, "number": 7}
Sessions = sessionmaker[Session]


@target("writing.client")
class Client:
    @staticmethod
    def fulfill(token: str, number: int = 0) -> None: ...

    @classmethod
    @policy(queue="slow", priority=7, max_age=60)
    def hurry(cls) -> None: ...


@target("writing.book", queue="books", priority=3)
def book(session: Session, number: int) -> None: ...


class Reversing:
    """Enough of an encryptor to see whether it was asked."""

    name = "reversing"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return context + plaintext[::-1]

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        if not ciphertext.startswith(context):
            raise ValueError(ciphertext)
        return ciphertext.removeprefix(context)[::-1]


@contextlib.contextmanager
def statements_of(engine: Engine) -> Iterator[list[str]]:
    """Every statement, with all its rows, that goes through this engine."""
    seen: list[str] = []

    def note(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Attempt)) or 0


def database_clock(engine: Engine) -> dt.datetime:
    with engine.connect() as connection:
        moment: dt.datetime = connection.execute(select(clock_now())).scalar_one()
    return moment


def run_async(url: str, body: Callable[[AsyncSession], Awaitable[Any]], **options: Any) -> Any:
    """`body` with an AsyncSession on an engine of its own."""

    async def run() -> Any:
        engine = create_async_engine(url)
        try:
            async with AsyncSession(engine, **options) as session:
                return await body(session)
        finally:
            await engine.dispose()

    return asyncio.run(run())


# The row


def test_a_call_is_written_as_it_was_given(sessions: Sessions, engine: Engine) -> None:
    before = database_clock(engine)
    with sessions.begin() as session:
        attempt = Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, session=session)
    row = row_of(engine, attempt.id)
    assert (row.status, row.target, row.method_name) == (Status.PENDING, "writing.client", "fulfill")
    assert (row.method_args, row.encryptor) == ('{"token": "canary-4711", "number": 7}', "null")
    assert (row.queue, row.priority, row.released) == ("default", 0, True)
    assert (row.num_attempts, row.num_errors, row.num_crashes, row.max_attempts) == (0, 0, 0, None)
    empty = (
        "idempotence_token order_key scheduled_at claim_id claimed_by lease_until expires_at completed_at last_error"
    )
    assert [getattr(row, name) for name in empty.split()] == [None] * 9
    after = database_clock(engine)
    assert all(before <= moment <= after for moment in (row.due_at, row.created_at, row.updated_at))


def test_a_rollback_leaves_no_row(sessions: Sessions, engine: Engine) -> None:
    with sessions() as session:
        Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, session=session)
        session.flush()
        session.rollback()
    assert count(engine) == 0


def test_a_savepoint_that_is_rolled_back_takes_its_attempt_along_and_no_other(
    sessions: Sessions, engine: Engine
) -> None:
    with sessions.begin() as session:
        kept = Attempt.create(target=book, method_args={"number": 1}, session=session)
        with session.begin_nested() as savepoint:
            Attempt.create(target=book, method_args={"number": 2}, session=session)
            session.flush()
            savepoint.rollback()
    assert count(engine) == 1
    assert row_of(engine, kept.id).method_args == '{"number": 1}'


def test_creating_does_no_io_and_the_row_is_written_at_the_flush(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session, statements_of(engine) as seen:
        attempt = Attempt.create(target=Client, method_name="hurry", idempotence_token="T", session=session)
        Attempt.call(book, 3)
        assert seen == []
        assert inspect(attempt).pending
        session.flush()
        assert {statement.split()[0] for statement in seen} == {"INSERT"}


def test_creating_on_an_async_session_awaits_nothing(engine: Engine, async_engine_url: str) -> None:
    async def body(session: AsyncSession) -> tuple[Any, Any]:
        with statements_of(session.get_bind()) as seen:  # type: ignore[arg-type]
            attempt = Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, session=session)
            assert seen == []
            before = attempt.id
            await session.commit()
        return before, attempt.id

    before, after = run_async(async_engine_url, body, expire_on_commit=True)
    assert before == after == row_of(engine, before).id


def test_the_id_is_known_before_the_flush_and_after_the_commit(sessions: Sessions, engine: Engine) -> None:
    with sessions(expire_on_commit=True) as session:
        attempt = Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, session=session)
        before = attempt.id
        session.commit()
        with statements_of(engine) as seen:
            assert attempt.id == before
            assert seen == []
    assert attempt.id == before  # detached, too
    assert before.version == 7


def test_the_id_is_still_known_after_a_failed_flush(sessions: Sessions, engine: Engine) -> None:
    with sessions() as session:
        first = Attempt.create(target=book, method_args={"number": 1}, idempotence_token="T", session=session)
        session.commit()
        Attempt.create(target=book, method_args={"number": 1}, idempotence_token="T", session=session)
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        assert row_of(engine, first.id).idempotence_token == "T"


def test_an_attempt_reads_back_what_was_given(sessions: Sessions) -> None:
    with sessions.begin() as session:
        attempt = Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, session=session)
        assert attempt.method_args == ARGS
        session.flush()
        session.expire(attempt)
        assert attempt.method_args == ARGS
        assert not attempt.is_performing


@pytest.mark.parametrize("kind", ["session", "scoped", "async", "async scoped"])
def test_every_kind_of_session_is_a_door(kind: str, sessions: Sessions, engine: Engine, async_engine_url: str) -> None:
    from sqlalchemy.ext.asyncio import async_scoped_session

    async def write() -> None:
        async_engine = create_async_engine(async_engine_url)
        plain = async_sessionmaker(async_engine)
        registry = async_scoped_session(plain, scopefunc=asyncio.current_task)
        session = registry if kind == "async scoped" else plain()
        Attempt.create(target=book, method_args={"number": 1}, session=session)
        await session.commit()
        await session.close()
        await async_engine.dispose()

    if kind.startswith("async"):
        asyncio.run(write())
    else:
        door: Any = scoped_session(sessions) if kind == "scoped" else sessions()
        Attempt.create(target=book, method_args={"number": 1}, session=door)
        door.commit()
        door.close()
    assert count(engine) == 1


def test_what_is_no_session_is_refused_with_a_sentence(engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="takes a Session or an AsyncSession, not Engine"):
        Attempt.create(target=book, method_args={"number": 1}, session=engine)  # type: ignore[arg-type]


# Options


def test_queue_and_priority_are_those_given_else_the_targets_else_default_and_zero(sessions: Sessions) -> None:
    with sessions.begin() as session:
        given = Attempt.options(session=session, queue="mine", priority=9).call(book, 1)
        zero = Attempt.options(session=session, priority=0).call(book, 1)
        of_target = Attempt.options(session=session).call(book, 1)
        of_method = Attempt.options(session=session).call(Client.hurry)
        plain = Attempt.options(session=session).call(Client.fulfill, SECRET)
        found = [(one.queue, one.priority) for one in (given, zero, of_target, of_method, plain)]
    assert found == [("mine", 9), ("books", 0), ("books", 3), ("slow", 7), ("default", 0)]


def test_a_call_stores_its_arguments_under_their_names_and_leaves_defaults_to_the_target(sessions: Sessions) -> None:
    with sessions.begin() as session:
        first = Attempt.call(Client.fulfill, SECRET, number=7)
        second = Attempt.options(session=session).call(Client.fulfill, SECRET)
        assert first.method_args == ARGS
        assert second.method_args == {"token": SECRET}
        assert Attempt.call(book, 3).method_args == {"number": 3}


def test_max_age_is_stamped_from_the_databases_clock_or_from_when_it_is_scheduled(
    sessions: Sessions, engine: Engine
) -> None:
    later = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    before = database_clock(engine)
    with sessions.begin() as session:
        now = Attempt.options(session=session).call(Client.hurry)
        scheduled = Attempt.options(session=session, scheduled_at=later).call(Client.hurry)
        said = Attempt.options(session=session, expires_at=later).call(Client.hurry)
    minute = dt.timedelta(seconds=60)
    assert before + minute <= row_of(engine, now.id).expires_at <= database_clock(engine) + minute
    row = row_of(engine, scheduled.id)
    assert (row.scheduled_at, row.due_at, row.expires_at) == (later, later, later + minute)
    assert row_of(engine, said.id).expires_at == later


def test_instants_of_any_zone_are_kept_to_the_microsecond(sessions: Sessions, engine: Engine) -> None:
    moment = dt.datetime(2040, 6, 1, 12, 0, 0, 123456, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30)))
    with sessions.begin() as session:
        attempt = Attempt.options(session=session, scheduled_at=moment).call(book, 1)
    assert row_of(engine, attempt.id).due_at == moment


FUTURE = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"scheduled_at": dt.datetime(2040, 1, 1)}, "scheduled_at: a naive datetime names no instant"),
        ({"expires_at": dt.datetime(2040, 1, 1)}, "expires_at: a naive datetime names no instant"),
        ({"scheduled_at": dt.date(2040, 1, 1)}, "scheduled_at: takes an aware datetime, not date"),
        ({"scheduled_at": FUTURE}, "scheduled_at: the target's max_age after it is past the year 9999"),
        ({"order_key": ""}, "order_key: takes a printable text of 1 to 255 characters"),
        ({"order_key": "a\nb"}, "order_key: takes"),
        ({"order_key": 7}, "order_key: takes"),
        ({"idempotence_token": ""}, "idempotence_token: takes a printable text of 1 to 255 characters"),
        ({"idempotence_token": "x" * 256}, "idempotence_token: takes"),
        ({"idempotence_token": "a\0b"}, "idempotence_token: takes"),
        ({"idempotence_token": 7}, "idempotence_token: takes"),
        ({"priority": 10}, "priority is a whole number from 0"),
        ({"priority": True}, "priority is a whole number from 0"),
        ({"queue": ""}, "queue is a printable name of 1 to 64"),
        ({"max_attempts": 0}, "max_attempts: takes a whole number from 1"),
        ({"method_args": [SECRET]}, "method_args: takes a mapping of names to values, not list"),
    ],
)
def test_options_that_cannot_be_kept_are_refused_before_anything_is_written(options: dict[str, Any], why: str) -> None:
    with Session() as session:
        with pytest.raises(InvalidArguments) as refused:
            Attempt.create(target=Client, method_name="hurry", session=session, **options)
        assert str(refused.value).startswith(why)
        assert not session.new


# What is refused


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"target": "writing.cleint"}, UnknownTarget, "did you mean 'writing.client'?"),
        ({"target": dict}, UnknownTarget, "dict is not registered"),
        ({"target": Client, "method_name": "fulfil"}, UnknownMethod, "did you mean 'fulfill'?"),
        ({"target": Client}, UnknownMethod, "name it with method_name="),
        ({"target": book, "method_name": "open"}, UnknownMethod, "leave method_name out"),
        ({"target": Client, "method_name": "fulfill"}, InvalidArguments, "the argument 'token' is missing"),
        (
            {"target": Client, "method_name": "fulfill", "method_args": {**ARGS, "numbre": 1}},
            InvalidArguments,
            "no argument is named 'numbre'; it takes token, number",
        ),
        (
            {"target": Client, "method_name": "fulfill", "method_args": {"token": "t", "number": SECRET}},
            InvalidArguments,
            "writing.client.fulfill: number: Input should be a valid integer",
        ),
        (
            {"target": book, "method_args": {"number": 1}, "encryptor": "none such"},
            UnknownEncryptor,
            "no encryptor is named 'none such'",
        ),
    ],
)
def test_a_wrong_call_raises_before_anything_is_written_and_the_transaction_goes_on(
    sessions: Sessions, engine: Engine, call: dict[str, Any], error: type[Exception], says: str
) -> None:
    with sessions.begin() as session:
        verbs: list[Callable[[], Attempt]] = [
            lambda: Attempt.create(**call, session=session),
            lambda: Attempt.ensure(session, **call),
        ]
        for verb in verbs:
            with pytest.raises(error) as refused:
                verb()
            assert says in str(refused.value)
            assert SECRET not in str(refused.value)
        with pytest.raises(error, match=r"^row 1: "):
            Attempt.create_many(session, [{"target": book, "method_args": {"number": 1}}, call])
        Attempt.create(target=book, method_args={"number": 2}, session=session)
    assert count(engine) == 1


def test_a_name_that_create_does_not_take_is_said_with_its_row(sessions: Sessions) -> None:
    with sessions() as session:
        with pytest.raises(InvalidArguments, match=r"row 0: create_many: got an unexpected keyword argument 'sesion'"):
            Attempt.create_many(session, [{"target": book, "method_args": {"number": 1}, "sesion": 1}])
        with pytest.raises(InvalidArguments, match="row 1: takes a mapping of create"):
            Attempt.create_many(session, [{"target": book, "method_args": {"number": 1}}, 7])  # type: ignore[list-item]
        with pytest.raises(InvalidArguments, match=r"ensure: got an unexpected keyword argument 'targte'"):
            Attempt.ensure(session, targte=book)  # type: ignore[call-arg]


def test_what_is_written_once_cannot_be_changed(sessions: Sessions) -> None:
    with sessions() as session:
        attempt = Attempt.create(target=book, method_args={"number": 1}, session=session)
        attempt.queue = "other"
        for state in ("pending", "persistent", "expired", "detached"):
            if state == "persistent":
                session.flush()
            if state == "expired":
                session.commit()
            if state == "detached":
                session.close()
            for name in ("target", "method_name", "encoded_args", "encryptor"):
                with pytest.raises(InvalidState, match=f"{name} is written once"):
                    setattr(attempt, name, "another")
    transient = Attempt(target="a", method_name="b", encoded_args="{}", encryptor="null")
    with pytest.raises(InvalidState, match="target is written once"):
        transient.target = "c"
    transient.target = "a"


def test_a_detached_attempt_can_be_merged(sessions: Sessions) -> None:
    with sessions(expire_on_commit=False) as session, session.begin():
        attempt = Attempt.create(target=book, method_args={"number": 1}, session=session)
    with sessions.begin() as other:
        assert other.merge(attempt).target == "writing.book"


# Idempotence


def test_a_used_token_is_an_integrity_error_at_the_flush(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        Attempt.options(session=session, idempotence_token="T").call(book, 1)
    with sessions() as session:
        Attempt.options(session=session, idempotence_token="T").call(book, 2)
        with pytest.raises(IntegrityError):
            session.flush()
    assert count(engine) == 1


def test_a_token_belongs_to_its_target_and_method_and_no_token_is_never_used(
    sessions: Sessions, engine: Engine
) -> None:
    with sessions.begin() as session:
        for _ in range(2):
            Attempt.options(session=session).call(book, 1)
        Attempt.options(session=session, idempotence_token="T").call(book, 1)
        Attempt.options(session=session, idempotence_token="T").call(Client.hurry)
        Attempt.options(session=session, idempotence_token="T").call(Client.fulfill, "x")
    assert count(engine) == 5


TOKENS = ["T", "t", "T ", "T  ", " T", "Ť", "ß", "ss", "é", "e\u0301", "🂡", "🂢"]


def test_tokens_are_compared_exactly(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        ids = {Attempt.ensure(session, target=Client, method_name="hurry", idempotence_token=one).id for one in TOKENS}
        again = [Attempt.ensure(session, target=Client, method_name="hurry", idempotence_token=one) for one in TOKENS]
        assert {one.id for one in again} == ids
        assert [one.idempotence_token for one in again] == TOKENS
    assert count(engine) == len(TOKENS)


def test_ensure_creates_once_and_then_answers_what_is_there(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        first = Attempt.ensure(session, target=book, method_args={"number": 1}, idempotence_token="T", priority=4)
        assert inspect(first).persistent
        assert Attempt.ensure(session, target=book, method_args={"number": 2}, idempotence_token="T") is first
    with sessions.begin() as session:
        there = Attempt.ensure(session, target=book, method_args={"number": 3}, idempotence_token="T")
        assert (there.id, there.method_args, there.priority) == (first.id, {"number": 1}, 4)
        Attempt.options(session=session).call(book, 5)  # the transaction is alive
    assert count(engine) == 2


def test_ensure_sees_what_is_not_flushed_yet(sessions: Sessions) -> None:
    with sessions.begin() as session:
        made = Attempt.options(session=session, idempotence_token="T").call(book, 1)
        assert Attempt.ensure(session, target=book, method_args={"number": 1}, idempotence_token="T") is made


@pytest.mark.parametrize("status", ["succeeded", "failed", "expired", "canceled"])
def test_ensure_answers_what_is_at_rest_too(sessions: Sessions, engine: Engine, status: str) -> None:
    with sessions.begin() as session:
        made = Attempt.ensure(session, target=book, method_args={"number": 1}, idempotence_token="T")
        at_rest = {"status": Status(status), "completed_at": clock_now(), "num_attempts": 1}
        session.execute(update(Attempt).where(Attempt.id == made.id).values(at_rest))
    with sessions.begin() as session:
        there = Attempt.ensure(session, target=book, method_args={"number": 1}, idempotence_token="T")
        assert (there.id, there.status) == (made.id, status)


def test_ensure_stamps_max_age_and_takes_the_one_open_transaction(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin():
        made = Attempt.ensure(target=Client, method_name="hurry", idempotence_token="T")
        assert made.expires_at is not None
        assert (made.queue, made.priority) == ("slow", 7)
    assert count(engine) == 1


def test_ensure_without_a_token_is_refused(sessions: Sessions) -> None:
    with sessions() as session, pytest.raises(InvalidArguments, match="nothing says which attempt is the same one"):
        Attempt.ensure(session, target=book, method_args={"number": 1})


def test_ensure_through_an_async_session(engine: Engine, async_engine_url: str) -> None:
    async def body(session: AsyncSession) -> set[Any]:
        call: Any = {"target": book, "method_args": {"number": 1}, "idempotence_token": "T"}
        first = await session.run_sync(Attempt.ensure, **call)
        second = await session.run_sync(Attempt.ensure, **call)
        await session.commit()
        return {first.id, second.id}

    assert len(run_async(async_engine_url, body)) == count(engine) == 1


@pytest.mark.parametrize("there_before", [False, True])
def test_two_sessions_that_race_for_a_token_get_one_attempt(
    sessions: Sessions, engine: Engine, there_before: bool
) -> None:
    if there_before:
        with sessions.begin() as session:
            Attempt.ensure(session, target=book, method_args={"number": 0}, idempotence_token="T")
    start = threading.Barrier(4)

    def race(number: int) -> Any:
        with sessions.begin() as session:
            start.wait(10)
            made = Attempt.ensure(session, target=book, method_args={"number": number}, idempotence_token="T")
            Attempt.options(session=session).call(Client.hurry)  # each transaction goes on
            return made.id

    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(race, range(4)))
    assert len(ids) == 1
    assert count(engine) == 5


@pytest.mark.only_on("postgresql", "mysql")  # on SQLite nobody can commit meanwhile
def test_ensure_finds_what_was_committed_after_its_transaction_began_to_read(
    sessions: Sessions, engine: Engine
) -> None:
    with sessions.begin() as session:
        assert session.scalars(select(Attempt)).all() == []
        with sessions.begin() as other:
            first = Attempt.ensure(other, target=book, method_args={"number": 1}, idempotence_token="T").id
        assert Attempt.ensure(session, target=book, method_args={"number": 2}, idempotence_token="T").id == first
    assert count(engine) == 1


@pytest.mark.only_on("postgresql", "mysql")
def test_ensure_waits_for_an_uncommitted_winner_and_takes_its_place_if_it_rolls_back(
    sessions: Sessions, engine: Engine
) -> None:
    with sessions() as winner, ThreadPoolExecutor(1) as pool:
        first = Attempt.ensure(winner, target=book, method_args={"number": 1}, idempotence_token="T").id
        begun = threading.Event()

        def second() -> Any:
            with sessions.begin() as session:
                session.connection()
                begun.set()
                return Attempt.ensure(session, target=book, method_args={"number": 2}, idempotence_token="T").id

        answer = pool.submit(second)
        begun.wait(10)
        winner.rollback()
        assert answer.result(10) != first
    assert count(engine) == 1


# Many at once


def rows_of(number: int, **options: Any) -> list[dict[str, Any]]:
    return [{"target": book, "method_args": {"number": one}, **options} for one in range(number)]


def test_many_calls_are_one_statement_with_their_ids_in_order(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        session.connection()
        with statements_of(engine) as seen:
            ids = Attempt.create_many(session, rows_of(100))
    assert len([one for one in seen if "INSERT" in one]) == (0 if engine.name == "postgresql" else 1)
    assert len(seen) <= 2  # the clock, and the rows; a COPY is none of SQLAlchemy's cursors
    with engine.connect() as connection:
        stored = dict(connection.execute(select(Attempt.id, Attempt.encoded_args)).all())
    assert [stored[one] for one in ids] == [f'{{"number": {one}}}' for one in range(100)]


@pytest.mark.only_on("postgresql")
def test_psycopg_copies(engine: Engine) -> None:
    copies: list[str] = []
    import psycopg

    class Watched(psycopg.Cursor[Any]):
        def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
            copies.append(statement)
            return super().copy(statement, *args, **kwargs)

    with engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        driver.cursor_factory = Watched
        try:
            Attempt.create_many(connection, rows_of(30))
        finally:
            driver.cursor_factory = psycopg.Cursor
    assert len(copies) == 1
    assert copies[0].startswith("COPY async_task_attempts (")


def test_what_is_created_one_by_one_and_what_is_created_at_once_is_the_same(sessions: Sessions, engine: Engine) -> None:
    moment = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    calls: list[dict[str, Any]] = [
        {"target": book, "method_args": {"number": 1}},
        {"target": Client, "method_name": "hurry"},
        {"target": Client, "method_name": "hurry", "scheduled_at": moment, "idempotence_token": "T", "priority": 2},
        {"target": Client, "method_name": "fulfill", "method_args": {"token": "ä\\\t\n'%s"}, "expires_at": moment},
        {"target": book, "method_args": {"number": 1}, "encryptor": Reversing(), "max_attempts": 3, "queue": "q"},
    ]
    with sessions.begin() as session:
        many = Attempt.create_many(session, calls)
    together = [row_of(engine, one) for one in many]
    with sessions.begin() as session:
        session.execute(Attempt.__table__.delete())  # type: ignore[attr-defined]
    with sessions.begin() as session:
        single = [Attempt.create(**one, session=session).id for one in calls]
    own = {"id", "due_at", "created_at", "updated_at", "expires_at", "method_args"}
    for one, other in zip(together, (row_of(engine, one) for one in single), strict=True):
        assert one._asdict().keys() == other._asdict().keys()
        assert {k: v for k, v in one._mapping.items() if k not in own} == {
            k: v for k, v in other._mapping.items() if k not in own
        }
        assert (one.expires_at is None) == (other.expires_at is None)
        assert one.encryptor != "null" or one.method_args == other.method_args
        assert all(row.due_at == (row.scheduled_at or row.due_at) for row in (one, other))
    expiring = together[1]
    assert expiring.expires_at - expiring.created_at == dt.timedelta(seconds=60)


def test_no_row_takes_the_method_of_another_row(sessions: Sessions) -> None:
    # Each name is a new object, at the place of one that is gone.
    names = [("fulfill", "hurry")[one // 2 % 2] for one in range(300)]
    with sessions.begin() as session:
        ids = Attempt.create_many(
            session,
            (
                {"target": Client, "method_name": "".join(iter(name)), "method_args": ARGS if name[0] == "f" else {}}
                for name in names
            ),
        )
        found = dict(session.execute(select(Attempt.id, Attempt.method_name)).all())
    assert [found[one] for one in ids] == names


def test_a_used_token_among_many_is_an_integrity_error_and_nothing_is_written(
    sessions: Sessions, engine: Engine
) -> None:
    with sessions.begin() as session:
        Attempt.options(session=session, idempotence_token="T").call(book, 1)
    call = {"target": Client, "method_name": "fulfill", "method_args": ARGS}
    with sessions() as session:
        with pytest.raises(IntegrityError) as refused:
            Attempt.create_many(session, [call, *rows_of(1, idempotence_token="T")])
        assert SECRET not in str(refused.value)
        session.rollback()
    assert count(engine) == 1


@pytest.mark.parametrize("kind", ["connection", "session", "async session", "async connection"])
def test_many_calls_through_every_door(kind: str, sessions: Sessions, engine: Engine, async_engine_url: str) -> None:
    async def through_async() -> list[Any]:
        async_engine = create_async_engine(async_engine_url)
        try:
            if kind == "async connection":
                async with async_engine.begin() as connection:
                    return await connection.run_sync(Attempt.create_many, rows_of(3))
            async with AsyncSession(async_engine) as session, session.begin():
                return await session.run_sync(Attempt.create_many, rows_of(3))
        finally:
            await async_engine.dispose()

    if kind == "connection":
        with engine.begin() as connection:
            ids = Attempt.create_many(connection, rows_of(3))
    elif kind == "session":
        with sessions.begin() as session:
            ids = Attempt.create_many(session, rows_of(3))
    else:
        ids = asyncio.run(through_async())
    assert count(engine) == 3
    assert [row_of(engine, one).method_args for one in ids] == [f'{{"number": {one}}}' for one in range(3)]


def test_many_of_none_is_nothing_and_what_waits_is_flushed_first(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        waiting = Attempt.options(session=session, idempotence_token="T").call(book, 1)
        assert Attempt.create_many(session, []) == []
        assert inspect(waiting).persistent
    assert count(engine) == 1


def test_ten_thousand_calls_are_written_quickly(engine: Engine) -> None:
    began = time.perf_counter()
    with engine.begin() as connection:
        Attempt.create_many(connection, rows_of(10_000))
    took = time.perf_counter() - began
    assert count(engine) == 10_000
    assert took < 6, f"10,000 rows took {took:.1f} s"


@pytest.mark.only_on("postgresql")
def test_under_row_level_security_rows_are_inserted(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("ALTER TABLE async_task_attempts ENABLE ROW LEVEL SECURITY"))
        connection.execute(text("CREATE POLICY all_rows ON async_task_attempts USING (true) WITH CHECK (true)"))
        connection.execute(text("CREATE ROLE tenant_of_writing NOLOGIN"))
        connection.execute(text("GRANT ALL ON async_task_attempts TO tenant_of_writing"))
        connection.execute(text("SET LOCAL ROLE tenant_of_writing"))
        with statements_of(engine) as seen:
            assert len(Attempt.create_many(connection, rows_of(3))) == 3
        assert any(one.startswith("INSERT") for one in seen)
        connection.rollback()


class Own(DeclarativeBase):
    """A base of the user's own."""


class TenantAttempt(BaseAttempt, Own):
    """A model with columns of its own, with every kind of default."""

    __tablename__ = "tenant_attempts"

    tenant: Mapped[str] = mapped_column(String(20), default=lambda: "nobody")
    region: Mapped[str] = mapped_column(String(20), server_default="eu")
    note: Mapped[str | None] = mapped_column(String(20))


@pytest.fixture
def own_table(engine: Engine) -> Iterator[None]:
    databases.drop_own(engine, Own.metadata)
    Own.metadata.create_all(engine)
    yield
    databases.drop_own(engine, Own.metadata)


def test_columns_of_a_model_of_ones_own_get_their_defaults_through_every_verb(
    own_table: None, sessions: Sessions
) -> None:
    with sessions.begin() as session:
        TenantAttempt.create_many(session, rows_of(2))
        TenantAttempt.ensure(session, target=Client, method_name="hurry", idempotence_token="T")
        TenantAttempt.options(session=session).call(book, 1)
        session.flush()
        found = session.scalars(select(TenantAttempt)).all()
        assert [(one.tenant, one.region, one.note) for one in found] == [("nobody", "eu", None)] * 4


# Secrets


def test_a_repr_says_which_call_it_is_and_where_it_stands_and_loads_nothing(sessions: Sessions) -> None:
    with sessions() as session:
        attempt = Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, session=session)
        made = Attempt.options(session=session).call(book, 1)
        assert repr(attempt) == f"<Attempt {attempt.id} {attempt.status} writing.client.fulfill>"
        assert repr(made) == f"<Attempt {made.id} pending writing.book>"
        session.commit()
    assert repr(attempt) == f"<Attempt {attempt.id} not loaded>"
    assert repr(Attempt.__new__(Attempt)).startswith("<Attempt")


def test_arguments_show_in_no_repr_no_error_and_no_log(
    sessions: Sessions, database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy import create_engine

    loud = create_engine(database.sync_url, echo=True)  # as a user's engine may be: hide_parameters is off
    call: dict[str, Any] = {"target": Client, "method_name": "fulfill", "method_args": ARGS, "idempotence_token": "T"}
    said: list[str] = []
    with caplog.at_level("INFO", "sqlalchemy.engine"), sessionmaker(loud)() as session:
        attempt = Attempt.create(**call, session=session)
        said += [repr(attempt), str(attempt)]
        session.commit()
        Attempt.ensure(session, **call)
        Attempt.create(**call, session=session)
        with pytest.raises(IntegrityError) as refused:
            session.flush()
        session.rollback()
        said.append(str(refused.value))
        with pytest.raises(IntegrityError) as refused:
            Attempt.create_many(session, [call])
        session.rollback()
        said.append(str(refused.value))
    loud.dispose()
    assert "INSERT INTO async_task_attempts" in caplog.text
    assert SECRET not in "".join(said) + caplog.text
    logging_of_engine_stays_quiet()


def logging_of_engine_stays_quiet() -> None:
    import logging

    logging.getLogger("sqlalchemy.engine.Engine").handlers.clear()


class Clumsy:
    """An encryptor that fails and tells what it was given."""

    name = "clumsy"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        raise ValueError(plaintext)

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        raise ValueError(ciphertext)


def test_an_encryptor_seals_the_arguments_and_binds_them_to_their_row(sessions: Sessions, engine: Engine) -> None:
    from async_task import DecryptionFailed

    with sessions.begin() as session:
        sealed = Attempt.create(
            target=Client, method_name="fulfill", method_args=ARGS, encryptor=Reversing(), session=session
        )
        other = Attempt.create(
            target=Client, method_name="fulfill", method_args=ARGS, encryptor="reversing", session=session
        )
        assert sealed.method_args == ARGS
    row = row_of(engine, sealed.id)
    assert row.encryptor == "reversing"
    assert SECRET not in row.method_args
    with sessions.begin() as session:
        moved = session.get_one(Attempt, other.id)
        session.execute(update(Attempt).where(Attempt.id == other.id).values(encoded_args=row.method_args))
        session.refresh(moved)
        with pytest.raises(DecryptionFailed) as failed:
            _ = moved.method_args
        assert "4711" not in str(failed.value)
        assert failed.value.__cause__ is None


def test_what_a_failing_encryptor_says_is_not_repeated() -> None:
    with Session() as session, pytest.raises(ConfigurationError) as failed:
        Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, encryptor=Clumsy(), session=session)
    assert str(failed.value) == "the encryptor 'clumsy' could not encrypt the arguments (ValueError)"
    assert (failed.value.__cause__, failed.value.__context__) == (None, None)


def test_no_encryptor_can_call_itself_null_and_thereby_be_left_out() -> None:
    nameless = Reversing()
    nameless.name = "null"
    with pytest.raises(ConfigurationError, match="says that nothing is encrypted"):
        register_encryptor(nameless)


def charge() -> None:
    """A target that is renamed."""


def test_ensure_knows_a_token_from_before_its_target_was_renamed(sessions: sessionmaker[Session]) -> None:
    target(charge, name="test.billing_charge")
    with sessions.begin() as session:
        before = Attempt.ensure(session, target="test.billing_charge", idempotence_token="order-1").id
    target(charge, name="test.invoices_charge", aliases=["test.billing_charge"])
    with sessions.begin() as session:
        assert Attempt.ensure(session, target="test.invoices_charge", idempotence_token="order-1").id == before


@pytest.mark.parametrize(
    "options",
    [
        {"queue": "a\0b"},
        {"queue": "\ud800"},
        {"scheduled_at": dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=1)))},
    ],
)
def test_what_no_database_can_store_is_refused_before_anything_is_written(
    sessions: sessionmaker[Session], options: dict[str, Any]
) -> None:
    target(charge, name="test.billing_charge")
    with sessions.begin() as session:
        with pytest.raises(InvalidArguments):
            Attempt.create(target="test.billing_charge", session=session, **options)
        assert not session.new
