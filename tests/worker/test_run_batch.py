"""`app.run_batch`: everything that was due when it began, once, whatever the database does meanwhile."""

import asyncio
import contextlib
import datetime as dt
import pathlib
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, make_url, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from async_task import (
    AsyncTask,
    Attempt,
    AttemptBatchJob,
    AttemptJob,
    BaseAttempt,
    BatchReport,
    ConfigurationError,
    Outcome,
    Retried,
    Status,
    Succeeded,
)
from async_task.database.lanes import Lane
from async_task.queue import backlog, fetch
from async_task.queue.claim import Claim
from async_task.schema.tables import Worker
from clockwork import let_pass, row_of
from databases import Database, _kill, _kill_all, close_file
from elsewhere import await_, notes
from outbox import Client, Elsewhere, Gate, Gated, acts, barriers, calls, effect, effects, gates
from workers import counted

Write = Callable[..., Attempt]
TABLE: Any = Attempt.__table__


@pytest.fixture
def frail_app(engine: Engine, database: Database, door: str) -> Iterator[AsyncTask]:
    """On an engine of its own, which does not look whether a connection still lives before it hands it out."""
    if door == "async":
        yield AsyncTask(create_async_engine(database.async_url), lease=1)
        return
    own = create_engine(database.sync_url)
    yield AsyncTask(own, lease=1)
    own.dispose()


@pytest.mark.slow
def test_everything_due_is_performed_once_and_the_report_counts_it(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    for method, arguments in (("ping", {}), ("fail", {}), ("poll", {}), ("give_up", {"reason": "no"}), ("ping", {})):
        write(Client, method, arguments)
    write("test.client", "ping", expires_at=_in(60))
    parked, unknown, sealed = (write(Client, "ping") for _ in range(3))
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == parked.id).values(encryptor="test.box"))
        connection.execute(update(TABLE).where(TABLE.c.id == sealed.id).values(encryptor="nobody.knows"))
        connection.execute(update(TABLE).where(TABLE.c.id == unknown.id).values(target="nobody.knows"))
    future = write(Client, "ping", scheduled_at=_in(3600))
    before = row_of(engine, future.id)
    report = app.run_batch()
    [failed] = report.failures
    assert (failed.call, failed.status, failed.count) == ("test.client.give_up", Status.FAILED, 1)
    ended = {"succeeded": 3, "retried": 2, "failed": 1, "parked": 1, "unknown": 2}
    assert report == BatchReport(claimed=7, **ended, seconds=report.seconds, failures=(failed,))
    assert row_of(engine, future.id) == before
    assert app.run_batch().claimed == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["poll", "ask_for_patience"])
def test_what_is_due_again_at_once_waits_for_the_next_batch(
    app: AsyncTask, engine: Engine, write: Write, method: str
) -> None:
    attempt = write(Client, method, {"seconds": 0})
    for number in (1, 2):
        assert (app.run_batch().claimed, row_of(engine, attempt.id).num_attempts) == (1, number)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_what_is_created_during_a_batch_waits_for_the_next_whenever_it_was_to_be(
    app: AsyncTask, engine: Engine, write: Write, late: bool
) -> None:
    made: list[uuid.UUID] = []

    def make_another() -> None:
        if len(made) < 3:
            options = {"scheduled_at": _in(-3600)} if late else {}
            made.append(write("test.act", None, **options).id)

    acts[:] = [make_another]
    write("test.act")
    assert [app.run_batch(concurrency=1).claimed for _ in range(5)] == [1, 1, 1, 1, 0]


@pytest.mark.slow
def test_what_is_moved_to_the_past_while_it_is_performed_is_not_performed_twice_in_one_batch(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    moved = write(Client, "poll", {"seconds": 60})

    def move_it() -> None:
        with engine.begin() as connection:
            connection.execute(update(TABLE).where(TABLE.c.id == moved.id).values(due_at=_in(-3600)))

    acts[:] = [move_it]
    write("test.act", None, priority=9)
    assert app.run_batch(concurrency=1).claimed == 2
    assert app.run_batch().claimed == 1


@pytest.mark.slow
def test_a_suspect_that_dies_waits_for_the_next_batch(
    database: Database, door: str, engine: Engine, write: Write, tmp_path: pathlib.Path
) -> None:
    app = AsyncTask(database.sync_url if door == "sync" else database.async_url, lease=1)
    poison = write(Elsewhere, "die", {"folder": str(tmp_path), "how": "exit"})
    with engine.begin() as connection:
        connection.execute(update(TABLE).values(num_attempts=1, num_crashes=1))
    close_file(engine)
    report = app.run_batch()
    assert (report.claimed, report.parked, len(notes(tmp_path))) == (1, 1, 1)
    close_file(engine)
    assert app.run_batch().failed == 1
    assert row_of(engine, poison.id).status == Status.FAILED
    app.close()


@pytest.mark.slow
def test_at_most_limit_attempts_are_started(app: AsyncTask, write: Write) -> None:
    for _ in range(7):
        write(Client, "ping")
    assert [app.run_batch(limit=limit).claimed for limit in (0, 1, 4, None)] == [0, 1, 4, 2]
    assert len(calls) == 7


@pytest.mark.slow
def test_calls_run_concurrently_on_all_lanes(app: AsyncTask, write: Write) -> None:
    name = uuid.uuid4().hex
    barriers[name] = threading.Barrier(4)
    for _ in range(8):
        write(Gated, "meet", {"name": name})
    assert app.run_batch(concurrency=4).succeeded == 8
    del barriers[name]


@pytest.mark.slow
def test_each_queue_is_performed_by_priority_and_then_by_age(app: AsyncTask, write: Write) -> None:
    for priority in (3, 0, 9, 5, 1, 7, 2, 8, 4, 6):
        for order in (1, 2):
            arguments = {"customer_token": f"p{priority}", "order_number": order}
            write(Client, "fulfill", arguments, priority=priority, queue="one")
    write(Client, "fulfill", {"customer_token": "other", "order_number": 1}, queue="two")
    assert app.run_batch(concurrency=1).succeeded == 21
    assert [call for call in calls if call[0] != "other"] == [(f"p{n}", order) for n in range(10) for order in (1, 2)]
    assert ("other", 1) in calls


@pytest.mark.slow
def test_orphans_are_recovered_and_overdue_attempts_expire_before_anything_is_performed(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    past, lost = write(Client, "ping", expires_at=_in(1)), write(Client, "ping")
    fetch.claim_one(engine, TABLE, "gone:1:0", dt.timedelta(seconds=1), lost.id, uuid.uuid4())
    let_pass(engine, 2)
    report = app.run_batch()
    assert (report.recovered, report.expired, report.claimed) == (1, 1, 1)
    assert [row_of(engine, one.id).status for one in (past, lost)] == [Status.EXPIRED, Status.SUCCEEDED]


@pytest.mark.slow
def test_a_verb_inside_of_an_event_loop_is_refused_with_a_remedy_that_works(app: AsyncTask, write: Write) -> None:
    write(Client, "ping")

    async def run() -> BatchReport:
        with pytest.raises(ConfigurationError, match=r"await asyncio\.to_thread\(outbox\.run_batch\)"):
            app.run_batch()
        with pytest.raises(ConfigurationError, match=r"await asyncio\.to_thread\(outbox\.perform, attempt_id\)"):
            app.perform(uuid.uuid4())
        return await asyncio.to_thread(app.run_batch)

    assert asyncio.run(run()).succeeded == 1


@pytest.mark.parametrize("numbers", [{"limit": 1.5}, {"limit": -1}, {"limit": "3"}, {"limit": True}])
def test_an_invalid_limit_is_refused(app: AsyncTask, numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="limit is a whole number"):
        app.run_batch(**numbers)


@pytest.mark.in_turns
@pytest.mark.parametrize("concurrency", [0, 2.0, "4", None, True])
def test_an_invalid_concurrency_is_refused(app: AsyncTask, concurrency: Any) -> None:
    with pytest.raises(ConfigurationError, match="concurrency is a whole number of at least 1"):
        app.run_batch(concurrency=concurrency)


class Unmapped(BaseAttempt):
    """On no base."""


class Unfinished:
    """An encryptor that is given as a class."""

    name = "test.unfinished"

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        return plaintext

    def decrypt(self, ciphertext: bytes, *, context: bytes) -> bytes:
        return ciphertext


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"model": Worker}, "model takes a class that derives from BaseAttempt, not Worker"),
        ({"model": "Attempt"}, "model takes a class that derives from BaseAttempt, not an instance of str"),
        ({"model": BaseAttempt}, "model: BaseAttempt is mapped to no table"),
        ({"model": Unmapped}, "model: Unmapped is mapped to no table"),
        ({"modules": "shop.outbox"}, r"modules takes a list of names: modules=\['shop.outbox'\], not str"),
        ({"modules": None}, "modules takes a list of names"),
        ({"modules": [asyncio]}, "modules takes names, not the modules themselves"),
        ({"encryptors": Unfinished()}, "encryptors takes a list"),
        ({"encryptors": [Unfinished]}, r"Unfinished is a class: give an instance: Unfinished\(\)"),
        ({"encryptors": "fernet"}, "encryptors takes a list"),
        ({"attempt_job": AttemptBatchJob}, "attempt_job takes a class that derives from BaseAttemptJob"),
        ({"batch_job": object()}, "batch_job takes a class that derives from BaseAttemptBatchJob"),
    ],
)
def test_invalid_arguments_of_an_application_are_refused_in_a_sentence(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        AsyncTask("sqlite:///never_opened.sqlite", **given)


def missing(driver: str) -> str:
    """What is said of a database whose driver cannot be imported."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("psycopg", "psycopg2", "asyncpg", "aiosqlite", "MySQLdb", "mysql"):
            patch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigurationError) as refused:
            AsyncTask(f"{driver}somewhere/here")
    return str(refused.value)


def test_a_missing_driver_is_named_with_the_package_to_install() -> None:
    meant = make_url("postgresql://").get_dialect().driver  # another one in each line of SQLAlchemy
    assert meant in ("psycopg", "psycopg2")
    write_this = "write postgresql+psycopg:// and install async-task[postgres]"
    assert missing("postgresql://") == f"postgresql:// means the driver {meant}: {write_this}"
    assert missing("postgresql+psycopg://").endswith("is not installed: install async-task[postgres]")
    assert missing("postgresql+asyncpg://").endswith("is not installed: install asyncpg")
    assert missing("postgresql+psycopg2://").endswith(f"is not installed: install psycopg2, or {write_this}")
    assert missing("mysql+mysqldb://").endswith("is not installed: install mysqlclient")
    assert missing("mysql+mysqlconnector://").endswith("is not installed: install mysql-connector-python")
    assert missing("sqlite+aiosqlite:///").endswith("is not installed: install async-task[sqlite-async]")


def test_job_classes_of_the_users_own_are_used(engine: Engine, write: Write) -> None:
    seen: list[Any] = []

    class MyJob(AttemptJob):
        def run(self, lane: Lane, claim: Claim) -> Outcome:
            seen.append(claim.id)
            return super().run(lane, claim)

    class MyBatch(AttemptBatchJob):
        def perform(self, limit: int | None = None, concurrency: int = 1) -> BatchReport:
            seen.append("batch")
            return super().perform(limit, concurrency)

    app = AsyncTask(engine, attempt_job=MyJob, batch_job=MyBatch)
    one, two = write(Client, "ping"), write(Client, "ping")
    assert app.perform(one.id) == Succeeded(one.id)
    assert app.run_batch().succeeded == 1
    assert seen == [one.id, "batch", two.id]


@pytest.mark.slow
def test_every_kind_of_database_argument_works(engine: Engine, database: Database, write: Write) -> None:
    async_engine = create_async_engine(database.async_url)
    ways: list[Any] = [
        database.sync_url, engine.url, engine, database.async_url, async_engine, sessionmaker(engine),
        async_sessionmaker(async_engine), sessionmaker(engine, class_=Session, expire_on_commit=False),
    ]  # fmt: skip
    for way in ways:
        write(effect)
        app = AsyncTask(way)
        assert app.run_batch().succeeded == 1
        app.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:shop?mode=memory&cache=shared&uri=true", "in memory"),
        (sessionmaker(), "bound to no engine"),
        (async_sessionmaker(class_=AsyncSession), "bound to no engine"),
        ("nonsense", "cannot be read"),
        ("postgresql+psycopg://u:cret@host:port/shop", "port"),
        ("nosuch://host/shop", "nosuch"),
        ("oracle+oracledb://host/shop", "oracledb"),
        (42, "int"),
    ],
)
def test_an_invalid_database_is_refused_in_one_sentence_without_the_password(given: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        AsyncTask(given)
    assert "\n" not in str(refused.value)
    assert "cret" not in str(refused.value)


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_batches_leave_no_threads_connections_or_descriptors(app: AsyncTask, engine: Engine, write: Write) -> None:
    threads = threading.active_count()
    for _ in range(2):  # what is opened once is open now
        write(effect)
        app.run_batch(concurrency=2)
    await_(lambda: threading.active_count() <= threads, "threads that were ending have ended")
    before = _left(engine)
    for _ in range(7):
        app.run_batch(concurrency=2)
    for _ in range(5):
        write(effect)
        write(Client, "ping")
    await_(lambda: app.run_batch(concurrency=2) and counted(engine) == {"succeeded": 12}, "all are performed")
    await_(lambda: all(now <= then for now, then in zip(_left(engine), before, strict=True)), "nothing more is left")


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_connections_in_the_users_pool_stay_open_after_the_engine_was_disposed(
    engine: Engine, database: Database, write: Write
) -> None:
    mine = create_engine(database.sync_url)
    app = AsyncTask(mine)
    mine.dispose()
    mine.connect().close()
    pool: Any = mine.pool
    assert pool.checkedin() == 1
    write(Client, "ping")
    assert app.run_batch(concurrency=1).succeeded == 1
    assert pool.checkedin() >= 1
    app.close()
    mine.dispose()


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_connections_that_die_between_two_batches_charge_nothing(
    frail_app: AsyncTask, engine: Engine, write: Write
) -> None:
    for _ in range(3):
        ids = [write(Client, "ping").id for _ in range(6)]
        _kill_all(engine)
        assert frail_app.run_batch().succeeded == 6
        assert {(row.num_attempts, row.num_crashes, row.num_errors) for row in _rows(engine, ids)} == {(1, 0, 0)}


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("method", ["locked", "write_locked", "write_leased"])
def test_a_lane_whose_connection_dies_during_a_call_resumes_and_charges_nothing(
    frail_app: AsyncTask, engine: Engine, write: Write, method: str
) -> None:
    name = uuid.uuid4().hex
    gate = gates[name] = Gate()
    attempt = write(Gated, method, {"gate": name})
    others = [write(effect, None, priority=5).id for _ in range(4)]
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(frail_app.run_batch, concurrency=1)
        gate.await_call()
        _kill_all(engine)
        gate.opened.set()
        report = running.result()
    assert report.succeeded + report.parked == 5, [row.last_error for row in _rows(engine, [attempt.id, *others])]
    let_pass(engine, 60)
    frail_app.run_batch()
    rows = _rows(engine, [attempt.id, *others])
    assert {(row.status, row.num_crashes, row.num_errors) for row in rows} == {(Status.SUCCEEDED, 0, 0)}
    assert {row.num_attempts for row in rows} <= {1, 2}


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("which", ["claim", "outcome"])
def test_after_a_lost_commit_the_row_is_read_again(
    engine: Engine, database: Database, write: Write, moment: str, which: str
) -> None:
    attempt = write(effect)
    own = create_engine(database.sync_url)
    app = AsyncTask(own)
    app.run_batch(limit=0)
    with _losing_commit_of(own, engine, "lease_until" if which == "claim" else "completed_at", moment) as lost:
        report = app.run_batch(concurrency=1)
    assert lost == [moment]
    row = row_of(engine, attempt.id)
    assert (row.num_crashes, row.num_errors, row.num_attempts) == (0, 0, 1)
    if (which, moment) == ("outcome", "before"):
        assert (report.parked, row.status) == (1, Status.PENDING)
        let_pass(engine, 60)
        app.run_batch()
    else:
        assert report.succeeded == 1
    assert row_of(engine, attempt.id).status == Status.SUCCEEDED
    with engine.connect() as connection:
        assert len(connection.execute(select(effects)).all()) == 1
    own.dispose()


def test_a_retry_without_delay_is_reported_as_retried(app: AsyncTask, write: Write) -> None:
    attempt = write(Client, "ask_for_patience", {"seconds": 0})
    assert isinstance(app.perform(attempt.id), Retried)


@contextlib.contextmanager
def _losing_commit_of(engine: Engine, admin: Engine, column: str, moment: str) -> Iterator[list[str]]:
    """Once, the connection of a transaction that sets `column` is lost just before or just after the server commits."""
    lost: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(conn: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if (
            statement.startswith("UPDATE async_task_attempts")
            and f"{column}=" in statement
            and _sets(statement, column)
        ):
            conn.info["async_task.test"] = True

    @event.listens_for(engine, "commit")
    def lose(conn: Connection) -> None:
        if conn.info.pop("async_task.test", False) and not lost:
            lost.append(moment)
            raw: Any = conn.connection.dbapi_connection
            if moment == "after":
                raw.commit()
                raw.cursor().execute("SELECT 1")  # else psycopg knows that there is nothing to commit, and asks nobody
            _kill(admin, [raw.info.backend_pid if admin.dialect.name == "postgresql" else raw.thread_id()])

    try:
        yield lost
    finally:
        event.remove(engine, "before_cursor_execute", note)
        event.remove(engine, "commit", lose)


def _sets(statement: str, column: str) -> bool:
    return f"{column}=NULL" not in statement


def _rows(engine: Engine, ids: list[uuid.UUID]) -> list[Any]:
    return [row_of(engine, one) for one in ids]


def _left(engine: Engine) -> tuple[int, int, int]:
    """Threads, connections in use, descriptors."""
    if engine.dialect.name == "sqlite":
        engine.dispose()  # SQLite closes a file later if another connection locks it just then: at the last one's end
    pool: Any = engine.pool
    idle = pool.checkedin()
    return threading.active_count(), pool.checkedout(), len(list(pathlib.Path("/proc/self/fd").iterdir())) - idle


def _in(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)


@pytest.mark.only_on("mysql")
def test_a_queue_whose_rows_are_locked_for_a_moment_is_claimed_from_again(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, looked = write(Client, "ping"), threading.Event()
    look = backlog.with_due

    def look_and_tell(*where: Any, **which: Any) -> list[str]:
        looked.set()
        return look(*where, **which)

    monkeypatch.setattr(backlog, "with_due", look_and_tell)
    with engine.connect() as neighbour, ThreadPoolExecutor(1) as threads:
        neighbour.execute(select(Attempt.id).where(Attempt.id == attempt.id).with_for_update())
        report = threads.submit(app.run_batch)
        assert looked.wait(30)
        neighbour.rollback()
        assert report.result(30).succeeded == 1
