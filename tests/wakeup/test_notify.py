"""NOTIFY on PostgreSQL: sleeping workers are notified, nothing is sent if none sleeps, and it never costs a producer
what it wrote."""

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, event, func, make_url, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from ambient_run import run
from async_task import AsyncTask, Attempt, target
from async_task.queue import workers
from async_task.schema.tables import Worker
from async_task.wakeup import notify
from async_task.wakeup.notify import channel_of, payload, read_payload
from clockwork import let_pass
from databases import Database
from outbox import HookedAttempt
from receivers import Receiver

TABLE: Table = Attempt.__table__  # type: ignore[assignment]
Sessions = sessionmaker[Session]
on_postgresql = pytest.mark.only_on("postgresql")


@target("notify.note")
def note(number: int = 0) -> None: ...


CALL = {"target": "notify.note"}


@pytest.fixture(autouse=True)
def _fresh_notify_state() -> Iterator[None]:
    notify._known.clear()
    yield
    notify._known.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`clock(0.02)`: the time that `notify` sees moves on by these seconds, and not by itself."""
    now = [1000.0]
    monkeypatch.setattr(notify, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


@pytest.fixture
def asked(engine: Engine) -> Iterator[list[str]]:
    """The statements of this process: "ask" for the one that notifies, and the first word of each other."""
    with _statements(engine) as statements:
        yield statements


@contextlib.contextmanager
def _statements(engine: Engine) -> Iterator[list[str]]:
    statements: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append("ask" if "pg_notify" in statement else statement.split(maxsplit=1)[0])

    def execute(connection: Any, statement: str, *args: Any, **kwargs: Any) -> Any:
        listen(None, None, statement)
        return past_sqlalchemy(connection, statement, *args, **kwargs)

    past_sqlalchemy = psycopg.Connection.execute
    event.listen(engine, "before_cursor_execute", listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", execute)
        yield statements
    event.remove(engine, "before_cursor_execute", listen)


def produce(session: Session, *queues: str) -> None:
    for queue in queues or ("default",):
        Attempt.create(**CALL, session=session, queue=queue)
    session.commit()


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Attempt)) or 0


# Asleep, and awake


def test_a_worker_that_falls_asleep_beats_and_is_marked_until_it_wakes(engine: Engine) -> None:
    workers.mark_asleep(engine, TABLE, "worker", kind="worker")
    let_pass(engine, 50)
    with engine.connect() as connection:
        before = connection.execute(select(Worker.asleep, Worker.beat_at, Worker.kind)).one()
    workers.mark_awake(engine, TABLE, "worker")
    with engine.connect() as connection:
        after = connection.execute(select(Worker.asleep, Worker.beat_at, Worker.kind)).one()
    assert (before.asleep, after.asleep) == (True, False)
    assert after.beat_at > before.beat_at
    assert after.kind == "worker"


# When it is sent


@on_postgresql
def test_a_sleeper_is_notified_once_at_the_commit_of_a_transaction_of_all_its_queues(
    engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]
) -> None:
    with Session(engine) as session:
        for queue in ("mail", "print", "mail"):
            Attempt.create(**CALL, session=session, queue=queue)
            session.flush()
        assert "ask" not in asked
        session.commit()
    assert asked.count("ask") == 1
    assert receiver.received() == ["2 mail, 1 print"]


@on_postgresql
def test_nothing_is_sent_while_all_workers_are_awake(
    engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]
) -> None:
    workers.mark_awake(engine, TABLE, "sleeper")
    with Session(engine) as session:
        produce(session)
    assert asked.count("ask") == 1
    assert receiver.received() == []


@on_postgresql
def test_nobody_asks_for_20_ms_after_no_worker_slept(
    engine: Engine, receiver: Receiver, clock: Callable[[float], None], asked: list[str]
) -> None:
    with Session(engine) as session:
        produce(session)
        workers.mark_asleep(engine, TABLE, "sleeper")
        clock(0.019)
        produce(session)
        assert asked.count("ask") == 1
        clock(0.0011)
        produce(session)
        produce(session)
    assert asked.count("ask") == 3
    assert receiver.received() == ["1 default"] * 2


@on_postgresql
@pytest.mark.parametrize("how", ["dead for a minute", "of another table", "gone"])
def test_a_sleeper_is_not_notified_that_is(how: str, engine: Engine, receiver: Receiver) -> None:
    workers.mark_asleep(engine, TABLE if how != "of another table" else _table_of(HookedAttempt), "sleeper")
    if how == "dead for a minute":
        let_pass(engine, 60.5)
    elif how == "gone":
        workers.deregister(engine, TABLE, "sleeper")
    with Session(engine) as session:
        produce(session)
    assert receiver.received() == []


@on_postgresql
def test_a_sleeper_that_has_beaten_59_s_ago_is_notified(engine: Engine, receiver: Receiver, sleeper: None) -> None:
    let_pass(engine, 59)
    with Session(engine) as session:
        produce(session)
    assert receiver.received() == ["1 default"]


@on_postgresql
@pytest.mark.parametrize("how", ["rollback", "close", "scheduled", "nothing", "rolled back savepoint"])
def test_nothing_is_sent_for(how: str, engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]) -> None:
    with Session(engine) as session:
        if how == "scheduled":
            Attempt.create(**CALL, session=session, scheduled_at=session.scalar(select(func.now())))
        elif how == "rolled back savepoint":
            nested = session.begin_nested()
            Attempt.create(**CALL, session=session)
            nested.rollback()
        elif how != "nothing":
            Attempt.create(**CALL, session=session)
            session.flush()
            getattr(session, how)()
        session.execute(text("SELECT 1"))
        session.commit()
    assert "ask" not in asked
    assert receiver.received() == []


@on_postgresql
def test_a_released_savepoint_sends_nothing_and_a_rolled_back_one_is_left_out(
    engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]
) -> None:
    with Session(engine) as session, session.begin():
        with session.begin_nested():
            Attempt.create(**CALL, session=session, queue="kept")
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            Attempt.create(**CALL, session=session, queue="lost")
            raise ZeroDivisionError
        Attempt.create(**CALL, session=session, queue="kept")
        session.flush()
        assert "ask" not in asked
    assert asked.count("ask") == 1
    assert receiver.received() == ["2 kept"]


@on_postgresql
def test_a_sleeper_is_notified_of_an_attempt_that_is_rescheduled(
    engine: Engine, receiver: Receiver, sleeper: None, clock: Callable[[float], None]
) -> None:
    """It sleeps until the next attempt is due that it knows of."""
    with Session(engine) as session:
        attempt = Attempt.create(**CALL, session=session, delay="1h", queue="mail")
        session.commit()
        assert receiver.received() == []
        clock(1)
        attempt.reschedule(at=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5))
        session.commit()
    assert receiver.received() == ["1 mail"]


@on_postgresql
def test_a_commit_that_flushes_twice_asks_once(
    engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]
) -> None:
    with Session(engine) as session:

        @event.listens_for(session, "after_flush", once=True)
        def _(own: Session, _context: Any) -> None:
            HookedAttempt.create(**CALL, session=own, scheduled_at=own.scalar(select(func.now())))

        produce(session)
    assert asked.count("INSERT") == 2
    assert asked.count("ask") == 1


@on_postgresql
def test_a_transaction_that_is_rolled_back_after_it_asked_notifies_nobody(
    engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]
) -> None:
    with Session(engine) as session:

        @event.listens_for(session, "after_flush_postexec")
        def _(_session: Session, _context: Any) -> None:
            raise ZeroDivisionError

        Attempt.create(**CALL, session=session)
        with pytest.raises(ZeroDivisionError):
            session.commit()
    assert "ask" in asked
    assert receiver.received() == []


@on_postgresql
def test_the_commit_asks_as_late_as_possible_and_flushes_nothing_for_it(
    engine: Engine, sleeper: None, asked: list[str]
) -> None:
    seen: list[int] = []
    with Session(engine) as session:
        event.listen(session, "before_commit", lambda own: seen.append(len(own.new)))
        produce(session)
    assert seen == [1], "other listeners see what is new"
    assert [word for word in asked if word in ("INSERT", "ask")] == ["INSERT", "ask"]


@on_postgresql
def test_rows_that_a_listener_to_the_flush_makes_are_notified_too(
    engine: Engine, receiver: Receiver, sleeper: None
) -> None:
    with Session(engine) as session:

        @event.listens_for(session, "before_flush")
        def _(own: Session, _context: Any, _instances: Any) -> None:
            if any(isinstance(one, HookedAttempt) for one in own.new):
                Attempt.create(**CALL, session=own, queue="made in the flush")

        HookedAttempt.create(**CALL, session=session)
        session.commit()
    assert receiver.received() == ["1 made in the flush"]


@on_postgresql
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_session_notifies(
    driver: str, engine: Engine, async_engine_url: str, receiver: Receiver, sleeper: None
) -> None:
    async def body(async_engine: AsyncEngine) -> None:
        for _ in range(2):  # in a SAVEPOINT, and without
            async with async_sessionmaker(async_engine).begin() as session:
                Attempt.create(**CALL, session=session, queue="mail")

    url = make_url(async_engine_url).set(drivername=f"postgresql+{driver}")
    run(url.render_as_string(hide_password=False), body)
    assert receiver.received() == ["1 mail"] * 2


@on_postgresql
def test_create_many_on_a_connection_notifies(
    engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]
) -> None:  # fmt: skip
    with engine.connect() as connection:
        Attempt.create_many(connection, [CALL, {**CALL, "queue": "mail"}, CALL])
        assert asked.count("ask") == 1
        assert receiver.received() == []
        connection.commit()
        assert receiver.received() == ["2 default, 1 mail"]
        Attempt.create_many(connection, [CALL])
        connection.rollback()
        Attempt.create_many(connection, [])
        connection.commit()
    assert receiver.received() == []


@on_postgresql
def test_1500_queues_are_notified_in_one_statement(
    engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]
) -> None:  # fmt: skip
    rows = [{**CALL, "queue": f"{number:064}"} for number in range(1500)]
    with Session(engine) as session, session.begin():
        Attempt.create_many(session, rows)
    assert asked.count("ask") == 1
    (payload,) = receiver.received()
    assert payload.startswith(f"1 {0:064}, 1 {1:064}, ")


@on_postgresql
def test_notify_can_be_switched_off(engine: Engine, receiver: Receiver, sleeper: None, asked: list[str]) -> None:
    AsyncTask(engine, notify=False)
    try:
        with Session(engine) as session:
            produce(session)
        with engine.begin() as connection:
            Attempt.create_many(connection, [CALL])
        assert "ask" not in asked
    finally:
        AsyncTask(engine)
    with Session(engine) as session:
        produce(session)
    assert asked.count("ask") == 1
    assert receiver.received() == ["1 default"]


def test_other_databases_are_not_asked(engine: Engine, asked: list[str], request: pytest.FixtureRequest) -> None:
    workers.mark_asleep(engine, TABLE, "sleeper")
    with Session(engine) as session:
        produce(session)
    with engine.begin() as connection:
        Attempt.create_many(connection, [CALL])
    assert asked.count("ask") == (2 if engine.dialect.name == "postgresql" else 0)


# What it must never do


@on_postgresql
def test_a_two_phase_transaction_does_not_ask_because_it_could_not_be_prepared(
    engine: Engine, sleeper: None, asked: list[str]
) -> None:
    with Session(engine, twophase=True) as session:
        Attempt.create(**CALL, session=session)
        with contextlib.suppress(DBAPIError):  # servers refuse it unless they are configured for it
            session.prepare()
        session.rollback()
    assert "INSERT" in asked
    assert "ask" not in asked


@on_postgresql
@pytest.mark.parametrize("lack", ["table", "column", "privilege"])
def test_a_producers_transaction_continues_without_the(
    lack: str, engine: Engine, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "async_task")
    with lacking(lack, engine, database) as theirs, _statements(theirs) as asked:
        for _ in range(3):
            with Session(theirs) as session:
                produce(session)
            with theirs.begin() as connection:
                Attempt.create_many(connection, [CALL])
    assert count(engine) == 6
    assert asked.count("ask") == 1, "the failure is remembered"
    assert len(caplog.records) == 1


@on_postgresql
def test_nobody_asks_for_a_minute_after_a_failure(
    engine: Engine, database: Database, receiver: Receiver, sleeper: None, clock: Callable[[float], None]
) -> None:
    with lacking("table", engine, database), Session(engine) as session:
        produce(session)
    with Session(engine) as session:
        clock(59.9)
        produce(session)
        assert receiver.received() == []
        clock(0.2)
        produce(session)
        assert receiver.received() == ["1 default"]


@on_postgresql
@pytest.mark.parametrize("lack", ["table", "privilege"])
def test_a_producer_continues_although_asking_worked_a_moment_ago(
    lack: str, engine: Engine, database: Database, sleeper: None, receiver: Receiver
) -> None:
    with Session(engine) as session:
        produce(session)
    with lacking(lack, engine, database) as theirs:
        with Session(theirs) as session:
            produce(session)
        with theirs.begin() as connection:
            Attempt.create_many(connection, [CALL])
    assert count(engine) == 3
    assert receiver.received() == ["1 default"]


@on_postgresql
def test_no_savepoint_stays_open_on_a_connection_that_continues_to_write(
    engine: Engine, sleeper: None, asked: list[str]
) -> None:
    with engine.begin() as connection:
        for _ in range(3):
            Attempt.create_many(connection, [CALL])
            with Session(connection, join_transaction_mode="rollback_only") as session:
                produce(session)
    assert asked.count("SAVEPOINT") == asked.count("RELEASE") == asked.count("ask") == 6


@on_postgresql
@pytest.mark.parametrize("door", ["engine", "lane"])
def test_a_connection_in_autocommit_notifies(
    door: str, engine: Engine, lane_connection: Connection, sleeper: None, receiver: Receiver
) -> None:
    own = engine if door == "engine" else lane_connection.engine
    with Session(own.execution_options(isolation_level="AUTOCOMMIT")) as session:
        produce(session)
        produce(session)
    with own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        Attempt.create_many(connection, [CALL])
    assert count(engine) == 3
    assert receiver.received() == ["1 default"] * 3


@on_postgresql
@pytest.mark.parametrize("door", ["engine", "lane"])
def test_a_failed_transaction_notifies_nobody_and_the_next_one_does(
    door: str, engine: Engine, lane_connection: Connection, sleeper: None, receiver: Receiver,
    clock: Callable[[float], None],
) -> None:  # fmt: skip
    with Session(engine if door == "engine" else lane_connection.engine) as session:
        Attempt.create(**CALL, session=session)
        session.flush()
        with contextlib.suppress(DBAPIError):
            session.connection().exec_driver_sql("SELECT no_such_column")
        session.commit()
        session.connection()
        assert (count(engine), receiver.received()) == (0, [])
        clock(0.021)
        produce(session)
    assert (count(engine), receiver.received()) == (1, ["1 default"])


@on_postgresql
def test_sleepers_are_notified_in_a_schema_that_sqlalchemy_translates_to(
    engine: Engine, receiver: Receiver
) -> None:  # fmt: skip
    _execute(engine, "CREATE SCHEMA put_in")
    elsewhere = engine.execution_options(schema_translate_map={None: "put_in"})
    try:
        TABLE.metadata.create_all(elsewhere)
        workers.mark_asleep(elsewhere, TABLE, "sleeper")
        for number in (1, 10):
            with elsewhere.begin() as connection:
                Attempt.create_many(connection, [CALL] * number)
        with Session(elsewhere) as session:
            produce(session)
        assert (count(engine), count(elsewhere)) == (0, 12)
        assert receiver.received() == ["1 default", "10 default", "1 default"]
    finally:
        _execute(engine, "DROP SCHEMA put_in CASCADE")


@on_postgresql
@pytest.mark.parametrize("ends", [True, False])
def test_in_one_round_trip_the_savepoint_is_released_unless_the_commit_does_it(
    lane_connection: Connection, sleeper: None, receiver: Receiver, ends: bool
) -> None:
    again = "no such savepoint|does not exist"
    for _ in range(10):  # psycopg prepares it meanwhile
        with lane_connection.begin() as transaction:
            notify.notify_sleepers(lane_connection, TABLE, {"mail": 1}, ends=ends)
            [known] = notify._known.values()
            assert 0 < known.quiet_until <= time.monotonic(), "it has asked, and notified"
            with contextlib.nullcontext() if ends else pytest.raises(DBAPIError, match=again):
                lane_connection.exec_driver_sql(notify.UNDO)
            transaction.rollback()
    assert receiver.received() == []


@on_postgresql
def test_in_one_round_trip_too_it_is_known_whether_a_worker_sleeps(
    lane_connection: Connection, engine: Engine, receiver: Receiver, clock: Callable[[float], None]
) -> None:
    def ask() -> bool:
        """Whether it will ask again at once."""
        clock(60.0)
        with lane_connection.begin():
            notify.notify_sleepers(lane_connection, TABLE, {"mail": 1})
        return notify.may_notify(lane_connection.engine, TABLE)

    assert [ask() for _ in range(10)] == [False] * 10
    workers.mark_asleep(engine, TABLE, "sleeper")
    assert [ask() for _ in range(10)] == [True] * 10
    assert receiver.received() == ["1 mail"] * 10


@on_postgresql
def test_a_connection_that_is_lost_when_it_asks_raises_that(
    lane_connection: Connection, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "async_task")
    transaction = lane_connection.begin()
    pid = lane_connection.scalar(select(func.pg_backend_pid()))
    with engine.connect() as other:
        other.execute(select(func.pg_terminate_backend(pid, 10_000)))
    with pytest.raises(DBAPIError) as raised:
        notify.notify_sleepers(lane_connection, TABLE, {"mail": 1})
    assert raised.value.connection_invalidated
    assert caplog.messages == []
    transaction.rollback()


@contextlib.contextmanager
def lacking(lack: str, engine: Engine, database: Database) -> Iterator[Engine]:
    """An engine that may write attempts, in a database that lacks something."""
    engine.dispose()
    if lack == "privilege":
        with _poor_role(engine) as role:
            poor = create_engine(database.sync_url, connect_args={"options": f"-c role={role}"})
            yield poor
            poor.dispose()
        return
    if lack == "table":
        there, back = "async_task_workers RENAME TO strangers", "strangers RENAME TO async_task_workers"
    else:
        there, back = (f"async_task_workers RENAME {names}" for names in ("asleep TO snores", "snores TO asleep"))
    _execute(engine, f"ALTER TABLE {there}")
    try:
        yield engine
    finally:
        engine.dispose()
        _execute(engine, f"ALTER TABLE {back}")


@contextlib.contextmanager
def _poor_role(engine: Engine) -> Iterator[str]:
    role = f"poor_{engine.url.database}"
    _execute(engine, f"CREATE ROLE {role}", f"GRANT ALL ON async_task_attempts TO {role}")
    try:
        yield role
    finally:
        _execute(engine, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def _execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


# Channels and payloads


def test_a_channel_is_named_after_the_table_and_no_longer_than_63_bytes() -> None:
    assert channel_of(TABLE) == "async_task_attempts"
    assert channel_of(_table("attempts", schema="shop")) == "shop.attempts"
    exactly = _table("a" * 63)
    assert channel_of(exactly) == "a" * 63
    one, two = channel_of(_table("ä" * 32)), channel_of(_table("ä" * 33))
    assert one != two
    assert all(len(name) <= 63 and name.startswith("async_task_") for name in (one, two))


@pytest.mark.parametrize("queue", ["default", "a b", "7 up", "ü", " "])
def test_a_payload_is_numbers_and_queues(queue: str) -> None:
    counts = {queue: 12, "other": 1}
    assert read_payload(payload(counts)) == counts


def test_a_payload_is_no_longer_than_postgresql_allows() -> None:
    exactly = {f"{number:06}": 1 for number in range(1000 - 112)}  # 9 bytes each, with its end
    assert len(payload(exactly).encode()) == 888 * 9 - 1 == 7991
    assert read_payload(payload({**exactly, "12345": 1})) == {**exactly, "12345": 1}
    assert read_payload(payload({**exactly, "123456": 1})) == exactly
    assert read_payload(payload({f"{number:05}ü": 1 for number in range(2_000)})) != {}


@pytest.mark.parametrize("text", ["", "default", "x default", "-1 default", "² default", "12"])
def test_what_others_send_on_the_channel_is_ignored(text: str) -> None:
    assert read_payload(text) == {}


def _table(name: str, **options: Any) -> Table:
    return Table(name, MetaData(), Column("id", Integer, primary_key=True), **options)


def _table_of(model: type[Any]) -> Table:
    table: Table = model.__table__
    return table


@pytest.mark.parametrize(
    ("code", "quiet"), [("42P01", 60.0), ("42501", 60.0), ("25P02", 0.02), ("57014", 0.02), (None, 0.02)]
)
@pytest.mark.parametrize("name", ["sqlstate", "pgcode"])
def test_only_what_the_database_refuses_is_remembered_for_a_minute(name: str, code: str | None, quiet: float) -> None:
    error = Exception("refused")
    setattr(error, name, code)
    assert notify._quiet_after(error) == quiet
