"""Writing a call down: `create`, `call`, `options` and `ensure`, in the caller's own transaction."""

import asyncio
import datetime as dt
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, inspect, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from async_task import (
    Attempt,
    ConfigurationError,
    InvalidArguments,
    InvalidState,
    Status,
    UnknownEncryptor,
    UnknownMethod,
    UnknownTarget,
    parse_call,
    target,
)
from async_task.database.clock import clock_now
from async_task.encryption.encryptors import register_encryptor
from clockwork import row_of
from writing import ARGS, SECRET, Client, Reversing, Sessions, book, count, database_clock, run_async, statements_of

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


def test_calls_of_a_flush_share_an_insert_that_names_no_column_of_a_claim(sessions: Sessions, engine: Engine) -> None:
    with statements_of(engine) as statements, sessions.begin() as session:
        Attempt.create(session, target=book, method_args={"number": 1})
        Attempt.create(session, target=book, method_args={"number": 2}, idempotence_token="two", max_attempts=3)
    (insert,) = [one for one in statements if one.startswith("INSERT INTO async_task_attempts")]
    columns = insert.partition("(")[2].partition(")")[0].split(", ")
    assert "idempotence_token" in columns
    assert {"claim_id", "lease_until", "completed_at", "last_error", "order_key"}.isdisjoint(columns)
    with sessions() as session:
        rows = session.execute(select(Attempt.idempotence_token, Attempt.max_attempts).order_by(Attempt.id))
        assert [tuple(row) for row in rows] == [(None, None), ("two", 3)]


def test_a_rollback_leaves_no_row(sessions: Sessions, engine: Engine) -> None:
    with sessions() as session:
        Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, session=session)
        session.flush()
        session.rollback()
    assert count(engine) == 0


def test_a_savepoint_that_is_rolled_back_takes_only_its_own_attempt_along(sessions: Sessions, engine: Engine) -> None:
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
def test_create_takes_every_kind_of_session(
    kind: str, sessions: Sessions, engine: Engine, async_engine_url: str
) -> None:
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


def test_another_object_than_a_session_is_refused(engine: Engine) -> None:
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
def test_invalid_options_are_refused_before_anything_is_written(options: dict[str, Any], why: str) -> None:
    with Session() as session:
        with pytest.raises(InvalidArguments) as refused:
            Attempt.create(target=Client, method_name="hurry", session=session, **options)
        assert str(refused.value).startswith(why)
        assert not session.new


# What is refused


@pytest.mark.parametrize(
    ("written", "says"),
    [(([],), "a call is a text"), (("writing.client.hurry", []), "arguments: takes a text in JSON, not list")],
)
def test_a_written_call_that_is_no_text_is_refused(written: Any, says: str) -> None:
    with pytest.raises(InvalidArguments, match=says):
        parse_call(*written)


@pytest.mark.in_turns
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"target": "writing.cleint"}, UnknownTarget, "did you mean 'writing.client'?"),
        (
            {"target": "writing.client.fulfill"},
            UnknownTarget,
            "give target='writing.client', method_name='fulfill'",
        ),
        ({"target": dict}, UnknownTarget, "dict is not registered"),
        ({"target": Client, "method_name": "fulfil"}, UnknownMethod, "did you mean 'fulfill'?"),
        ({"target": Client}, UnknownMethod, "name it with method_name="),
        ({"target": Client, "method_name": 5}, InvalidArguments, "method_name: takes a text, not int"),
        ({"target": Client, "method_name": b"x"}, InvalidArguments, "method_name: takes a text, not bytes"),
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
def test_an_invalid_call_raises_before_anything_is_written_and_the_transaction_stays_usable(
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


def test_an_unknown_argument_of_create_is_named_with_its_row(sessions: Sessions) -> None:
    with sessions() as session:
        with pytest.raises(InvalidArguments, match=r"row 0: create_many: got an unexpected keyword argument 'sesion'"):
            Attempt.create_many(session, [{"target": book, "method_args": {"number": 1}, "sesion": 1}])
        with pytest.raises(InvalidArguments, match="row 1: takes a mapping of create"):
            Attempt.create_many(session, [{"target": book, "method_args": {"number": 1}}, 7])  # type: ignore[list-item]
        with pytest.raises(InvalidArguments, match=r"ensure: got an unexpected keyword argument 'targte'"):
            Attempt.ensure(session, targte=book)  # type: ignore[call-arg]


def test_the_call_of_an_attempt_is_read_only(sessions: Sessions) -> None:
    with sessions() as session:
        attempt = Attempt.create(target=book, method_args={"number": 1}, session=session)
        attempt.queue = "other"
        with pytest.raises(TypeError, match="does not support item assignment"):
            attempt.method_args["number"] = 2  # type: ignore[index]
        for state in ("pending", "persistent", "expired", "detached"):
            if state == "persistent":
                session.flush()
            if state == "expired":
                session.commit()
            if state == "detached":
                session.close()
            call = ["target", "method_name", "encoded_args", "encryptor"]
            for name in [*call, "id", "order_key", "scheduled_at", "created_at"]:
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


def test_a_token_is_unique_for_its_target_and_method_and_none_is_not(sessions: Sessions, engine: Engine) -> None:
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


def test_ensure_creates_once_and_then_returns_the_existing_attempt(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        first = Attempt.ensure(session, target=book, method_args={"number": 1}, idempotence_token="T", priority=4)
        assert inspect(first).persistent
        assert Attempt.ensure(session, target=book, method_args={"number": 2}, idempotence_token="T") is first
    with sessions.begin() as session:
        there = Attempt.ensure(session, target=book, method_args={"number": 3}, idempotence_token="T")
        assert (there.id, there.method_args, there.priority) == (first.id, {"number": 1}, 4)
        Attempt.options(session=session).call(book, 5)  # the transaction is alive
    assert count(engine) == 2


def test_ensure_finds_an_attempt_that_was_not_flushed(sessions: Sessions) -> None:
    with sessions.begin() as session:
        made = Attempt.options(session=session, idempotence_token="T").call(book, 1)
        assert Attempt.ensure(session, target=book, method_args={"number": 1}, idempotence_token="T") is made


@pytest.mark.parametrize("status", ["succeeded", "failed", "expired", "canceled"])
def test_ensure_returns_an_ended_attempt_too(sessions: Sessions, engine: Engine, status: str) -> None:
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
    with sessions() as session, pytest.raises(InvalidArguments, match="needs idempotence_token="):
        Attempt.ensure(session, target=book, method_args={"number": 1})


def test_ensure_runs_on_an_async_session(engine: Engine, async_engine_url: str) -> None:
    async def body(session: AsyncSession) -> set[Any]:
        call: Any = {"target": book, "method_args": {"number": 1}, "idempotence_token": "T"}
        first = await session.run_sync(Attempt.ensure, **call)
        second = await session.run_sync(Attempt.ensure, **call)
        await session.commit()
        return {first.id, second.id}

    assert len(run_async(async_engine_url, body)) == count(engine) == 1


@pytest.mark.slow
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
def test_ensure_finds_an_attempt_committed_after_its_transaction_began_to_read(
    sessions: Sessions, engine: Engine
) -> None:
    with sessions.begin() as session:
        assert session.scalars(select(Attempt)).all() == []
        with sessions.begin() as other:
            first = Attempt.ensure(other, target=book, method_args={"number": 1}, idempotence_token="T").id
        assert Attempt.ensure(session, target=book, method_args={"number": 2}, idempotence_token="T").id == first
    assert count(engine) == 1


@pytest.mark.only_on("postgresql", "mysql")
def test_ensure_waits_for_an_uncommitted_insert_and_creates_if_that_rolls_back(
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


# Secrets


def test_a_repr_has_the_call_and_the_status_and_loads_nothing(sessions: Sessions) -> None:
    with sessions() as session:
        attempt = Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, session=session)
        made = Attempt.options(session=session).call(book, 1)
        assert repr(attempt) == f"<Attempt {attempt.id} {attempt.status} writing.client.fulfill>"
        assert repr(made) == f"<Attempt {made.id} pending writing.book>"
        session.commit()
    assert repr(attempt) == f"<Attempt {attempt.id} not loaded>"
    assert repr(Attempt.__new__(Attempt)).startswith("<Attempt")


def test_no_repr_error_or_log_shows_arguments(
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
    """An encryptor that fails, and says what it was given."""

    name = "clumsy"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        raise ValueError(plaintext)

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        raise ValueError(ciphertext)


def test_an_encryptor_encrypts_the_arguments_for_their_row_only(sessions: Sessions, engine: Engine) -> None:
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


def test_the_message_of_a_failing_encryptor_is_not_repeated() -> None:
    with Session() as session, pytest.raises(ConfigurationError) as failed:
        Attempt.create(target=Client, method_name="fulfill", method_args=ARGS, encryptor=Clumsy(), session=session)
    assert str(failed.value) == "the encryptor 'clumsy' could not encrypt the arguments (ValueError)"
    assert (failed.value.__cause__, failed.value.__context__) == (None, None)


def test_an_encryptor_cannot_be_named_null() -> None:
    nameless = Reversing()
    nameless.name = "null"
    with pytest.raises(ConfigurationError, match="says that nothing is encrypted"):
        register_encryptor(nameless)


def charge() -> None:
    """A target that is renamed."""


def test_ensure_finds_a_token_from_before_its_target_was_renamed(sessions: sessionmaker[Session]) -> None:
    target(charge, name="test.billing_charge")
    with sessions.begin() as session:
        before = Attempt.ensure(session, target="test.billing_charge", idempotence_token="order-1").id
    target(charge, name="test.invoices_charge", aliases=["test.billing_charge"])
    with sessions.begin() as session:
        assert Attempt.ensure(session, target="test.invoices_charge", idempotence_token="order-1").id == before


@pytest.mark.in_turns
@pytest.mark.parametrize(
    "options",
    [
        {"queue": "a\0b"},
        {"queue": "\ud800"},
        {"scheduled_at": dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=1)))},
    ],
)
def test_a_text_that_no_database_can_store_is_refused_before_anything_is_written(
    sessions: sessionmaker[Session], options: dict[str, Any]
) -> None:
    target(charge, name="test.billing_charge")
    with sessions.begin() as session:
        with pytest.raises(InvalidArguments):
            Attempt.create(target="test.billing_charge", session=session, **options)
        assert not session.new
