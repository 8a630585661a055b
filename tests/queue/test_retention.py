"""Pruning: what it deletes, empties and leaves, and what happens beside it."""

import datetime as dt
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, String, delete, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.orm.attributes import set_committed_value

import outbox
from async_task import (
    AsyncTask,
    Attempt,
    BaseAttempt,
    ConfigurationError,
    InvalidArguments,
    InvalidState,
    JobEvent,
    PruneReport,
    Status,
    UnknownTarget,
    policy,
    target,
)
from async_task.queue import retention
from async_task.queue.retention import Retention, Rule, prune
from async_task.queue.workers import register
from async_task.schema.columns import uuid7
from async_task.targets.keeping import ages_of
from async_task.worker import poller
from async_task.worker.heartbeat import WORKER
from async_task.worker.pruner import Pruner
from async_task.worker.runtime import Runtime
from claims import TABLE, claimed
from clockwork import let_pass, row_of
from conftest import by_one_door
from elsewhere import await_
from ended import ended, events_in, ids_in
from outbox import Client, Gate, Gated, act, act_boxed, gates
from workers import working

Write = Callable[..., Attempt]
MONTH = Retention((Rule(ages_of("30d")),))


def test_what_ended_longer_ago_than_the_age_is_deleted_with_its_events(
    app: AsyncTask, engine: Engine, write: Write
) -> None:
    old, young = ended(engine, write, 31, events=2), ended(engine, write, 29, events=1)
    pending = write(Client, "ping").id
    assert _figures(app.prune("30d")) == (1, 0, 2)
    assert ids_in(engine) == {young, pending}
    assert events_in(engine) == [str(young)]
    assert old not in ids_in(engine)


@by_one_door
def test_the_age_counts_from_the_end_and_not_from_the_creation(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = ended(engine, write, 400)
    with engine.begin() as connection:
        now = TABLE.c.completed_at
        moved = connection.scalar(select(now).where(TABLE.c.id == attempt)) + dt.timedelta(days=399)
        connection.execute(update(TABLE).values(completed_at=moved))
    assert app.prune("30d").deleted == 0
    assert app.prune("12h").deleted == 1


@by_one_door
def test_what_failed_is_pruned_only_if_it_is_named(app: AsyncTask, engine: Engine, write: Write) -> None:
    by_status = {status: ended(engine, write, 31, status) for status in ("succeeded", "failed", "expired", "canceled")}
    assert app.prune("30d").deleted == 3
    assert ids_in(engine) == {by_status["failed"]}
    assert app.prune("30d", statuses=["failed"]).deleted == 1


@by_one_door
def test_only_a_target_or_a_queue_is_pruned_where_it_is_named(app: AsyncTask, engine: Engine, write: Write) -> None:
    mail = ended(engine, write, 31, queue="mail")
    acted, other = ended(engine, write, 31, target=act), ended(engine, write, 31)
    assert app.prune("30d", queue="mail").deleted == 1
    assert mail not in ids_in(engine)
    assert app.prune("30d", target=act).deleted == 1
    assert ids_in(engine) == {other}
    assert acted != other


@by_one_door
def test_a_name_that_nobody_knows_is_refused_with_the_nearest_one(app: AsyncTask, engine: Engine, write: Write) -> None:
    ended(engine, write, 31)
    with pytest.raises(UnknownTarget, match=r"did you mean 'test\.client'"):
        app.prune("30d", target="test.clinet")
    with pytest.raises(ConfigurationError, match="did you mean 'default'"):
        app.prune("30d", queue="defualt")


@pytest.mark.in_turns
@by_one_door
@pytest.mark.parametrize(
    "given",
    [
        {}, {"older_than": "soon"}, {"older_than": -1}, {"older_than": "30d", "statuses": ["pending"]},
        {"older_than": "30d", "statuses": []}, {"older_than": "30d", "page": 0}, {"older_than": "30d", "queue": 7},
        {"older_than": "30d", "keep_tokens": "1 y"}, {"older_than": "30d", "dry_run": "no"}, {"statuses": ["failed"]},
        {"older_than": True}, {"older_than": "9" * 12 + "y"},
    ],
)  # fmt: skip
def test_a_prune_without_an_age_or_with_a_wrong_value_is_refused(app: AsyncTask, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        app.prune(**given)


@by_one_door
def test_a_dry_run_counts_what_a_run_then_does(app: AsyncTask, engine: Engine, write: Write) -> None:
    rows = {ended(engine, write, 31, events=2) for _ in range(3)}
    rows.add(ended(engine, write, 31, idempotence_token="order-17"))
    dry = app.prune("30d", dry_run=True)
    assert ids_in(engine) == rows
    assert _figures(dry) == _figures(app.prune("30d")) == (3, 1, 6)


@by_one_door
def test_events_stay_if_that_is_asked_for(app: AsyncTask, engine: Engine, write: Write) -> None:
    old = ended(engine, write, 31, events=2)
    assert _figures(app.prune("30d", keep_events=True)) == (1, 0, 0)
    assert events_in(engine) == [str(old)] * 2
    assert len(app.attempts.events(str(old))) == 2


def test_a_prune_continues_page_by_page_and_stops_after_a_page(
    engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STRETCH", 4)
    for number in range(11):
        ended(engine, write, 31, "failed" if number % 3 == 1 else "succeeded")
    told: list[int] = []
    stop = threading.Event()

    def tell(number: int) -> None:
        told.append(number)
        stop.set()

    assert prune(engine, Attempt, MONTH, page=2, stop=stop, tell=tell).deleted == 2
    assert prune(engine, Attempt, MONTH, page=2, tell=told.append).deleted == 5
    assert (told[0], told[-1], max(b - a for a, b in zip([0, *told[1:]], told[1:], strict=False))) == (2, 5, 2)
    assert len(ids_in(engine)) == 4


def test_an_attempt_with_more_events_than_a_transaction_deletes_is_pruned(
    engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EVENTS", 3)
    ended(engine, write, 31, events=8)
    assert _figures(prune(engine, Attempt, MONTH)) == (1, 0, 8)
    assert (ids_in(engine), events_in(engine)) == (set(), [])


# Tokens.


@by_one_door
def test_a_token_is_remembered_and_nothing_else_of_its_attempt(app: AsyncTask, engine: Engine, write: Write) -> None:
    args = {"card": "4111 1111"}
    given = {"idempotence_token": "order-17", "timeout": 5}
    attempt = ended(engine, write, 31, target=act_boxed, method_args=args, events=1, **given)
    before = row_of(engine, attempt)
    assert _figures(app.prune("30d")) == (0, 1, 1)
    row = row_of(engine, attempt)
    assert (row.method_args, row.encryptor, row.last_error, row.trace_context) == ("pruned", "null", None, None)
    assert row.call_settings is None
    kept = ("status", "completed_at", "created_at", "target", "method_name", "idempotence_token", "num_attempts")
    assert [getattr(row, name) for name in kept] == [getattr(before, name) for name in kept]
    assert _figures(app.prune("30d")) == (0, 0, 0)


@by_one_door
def test_ensure_with_a_remembered_token_returns_what_is_left_and_makes_no_second_call(
    app: AsyncTask, engine: Engine, write: Write, sessions: sessionmaker[Session]
) -> None:
    attempt = ended(engine, write, 31, idempotence_token="order-17")
    app.prune("30d")
    with sessions.begin() as session:
        there = Attempt.ensure(session, target=Client, method_name="ping", idempotence_token="order-17")
        assert (there.id, there.status, there.is_pruned) == (attempt, Status.SUCCEEDED, True)
        with pytest.raises(InvalidArguments, match="was pruned"):
            _ = there.method_args
    assert ids_in(engine) == {attempt}


@by_one_door
def test_a_token_is_forgotten_when_its_time_is_over(
    app: AsyncTask, engine: Engine, write: Write, sessions: sessionmaker[Session]
) -> None:
    old, young = (ended(engine, write, days, idempotence_token=f"order-{days}") for days in (400, 300))
    assert _figures(app.prune("30d")) == (0, 2, 0)
    assert _figures(app.prune("30d", keep_tokens="1y")) == (1, 0, 0)
    assert ids_in(engine) == {young}
    with sessions.begin() as session:
        again = Attempt.ensure(session, target=Client, method_name="ping", idempotence_token="order-400")
        assert again.status is Status.PENDING
        assert again.id != old
    assert _figures(app.prune("30d", keep_tokens=0)) == (1, 0, 0)


@by_one_door
def test_what_was_emptied_is_not_retried_and_says_why(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = ended(engine, write, 31, "failed", idempotence_token="order-17")
    app.prune("30d", statuses=["failed"])
    with pytest.raises(InvalidState, match="was pruned: its arguments are gone"):
        app.write(lambda session: session.get(Attempt, attempt).retry_now())
    info = app.attempts.get(str(attempt))
    assert (info.is_pruned, info.status) == (True, Status.FAILED)
    assert "was pruned" in (info.why_not("retry_now") or "")
    assert "was pruned" in (app.attempts.arguments(str(attempt)).problem or "")
    assert row_of(engine, attempt).status is Status.FAILED


@by_one_door
def test_a_key_rotation_leaves_what_was_emptied(app: AsyncTask, engine: Engine, write: Write) -> None:
    attempt = ended(engine, write, 31, target=act_boxed, method_args={"card": "1"}, idempotence_token="a")
    app.prune("30d")
    report = app.rotate_keys(to_policy=True)
    assert (report.rotated, report.left, report.unreadable) == (0, 0, {})
    assert row_of(engine, attempt).method_args == "pruned"


# What is held, waits or changes.


@by_one_door
def test_pending_claimed_and_waiting_attempts_are_never_pruned(app: AsyncTask, engine: Engine, write: Write) -> None:
    ids = [write(Client, "ping", order_key="one").id for _ in range(2)]
    ids.append(write(Client, "ping").id)
    claimed(engine, ids[-1])
    assert (app.prune(0, statuses=["succeeded", "failed", "expired", "canceled"])).is_empty
    assert ids_in(engine) == set(ids)


@pytest.mark.only_on("postgresql", "mysql")
@by_one_door
def test_a_row_that_somebody_holds_is_left_to_the_next_run(app: AsyncTask, engine: Engine, write: Write) -> None:
    held, free = ended(engine, write, 31), ended(engine, write, 31)
    with engine.begin() as other:
        other.execute(select(TABLE.c.id).where(TABLE.c.id == held).with_for_update()).all()
        report = app.prune("30d")
        assert (report.deleted, report.left) == (1, 1)
    assert ids_in(engine) == {held}
    assert app.prune("30d").deleted == 1
    assert free not in ids_in(engine)


@by_one_door
def test_a_failed_attempt_that_is_retried_between_finding_and_deleting_stays(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = ended(engine, write, 31, "failed")
    found, retried = _between_finding_and_writing(monkeypatch)
    with ThreadPoolExecutor(1) as threads:
        pruning = threads.submit(lambda: app.prune("30d", statuses=["failed"]))
        found.wait(30)
        with Session(engine) as session, session.begin():
            session.get_one(Attempt, attempt).retry_now()
        retried.wait(30)
        report = pruning.result(30)
    assert (report.deleted, report.left) == (0, 1)
    assert row_of(engine, attempt).status is Status.PENDING


@pytest.mark.only_on("postgresql", "mysql")
@by_one_door
def test_a_retry_while_its_row_is_being_deleted_is_refused(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = ended(engine, write, 31, "failed", events=1)
    before_delete, refused = threading.Barrier(2), threading.Barrier(2)
    real = retention.delete_by_key

    def slow(connection: Any, table: Any, values: Any) -> None:
        if table is not TABLE:  # the events, with the row of the attempt locked
            before_delete.wait(30)
            refused.wait(30)
        real(connection, table, values)

    monkeypatch.setattr(retention, "delete_by_key", slow)
    with ThreadPoolExecutor(1) as threads:
        pruning = threads.submit(lambda: app.prune("30d", statuses=["failed"]))
        before_delete.wait(30)
        with Session(engine) as session, session.begin():
            mine = session.get_one(Attempt, attempt)
            with pytest.raises(InvalidState, match="being changed by another transaction"):
                mine.retry_now()
        refused.wait(30)
        assert pruning.result(30).deleted == 1
    assert ids_in(engine) == set()


@pytest.mark.slow
@by_one_door
def test_ensure_beside_a_prune_that_forgets_its_token_makes_one_call(
    app: AsyncTask, engine: Engine, write: Write, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either what was there, or a new call, and one of these only."""
    for number in range(8):
        token = f"order-{number}"
        attempt = ended(engine, write, 31, idempotence_token=token)
        found, ready = _between_finding_and_writing(monkeypatch)
        with ThreadPoolExecutor(2) as threads:
            pruning = threads.submit(lambda: app.prune("30d", keep_tokens=0))
            found.wait(30)
            ensuring = threads.submit(_ensure, sessions, token)
            ready.wait(30)
            pruning.result(30)
            there = ensuring.result(30)
        monkeypatch.undo()
        left = ids_in(engine)
        assert left <= {there}
        assert left or there == attempt  # it was there when `ensure` looked, and the token was forgotten then
        with engine.begin() as connection:
            connection.execute(delete(TABLE))


@pytest.mark.slow
@by_one_door
def test_ensure_beside_a_prune_that_remembers_its_token_makes_no_call(
    app: AsyncTask, engine: Engine, write: Write, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        token = f"order-{number}"
        attempt = ended(engine, write, 31, idempotence_token=token)
        found, ready = _between_finding_and_writing(monkeypatch)
        with ThreadPoolExecutor(2) as threads:
            pruning = threads.submit(lambda: app.prune("30d"))
            found.wait(30)
            ensuring = threads.submit(_ensure, sessions, token)
            ready.wait(30)
            assert (pruning.result(30).deleted, ensuring.result(30)) == (0, attempt)
        monkeypatch.undo()


@pytest.mark.only_on("postgresql", "mysql")
@by_one_door
def test_an_attempt_that_is_being_settled_is_not_pruned(app: AsyncTask, engine: Engine, write: Write) -> None:
    gates["prune"] = Gate()
    attempt = write(Gated, "write_locked", {"gate": "prune"})
    with ThreadPoolExecutor(1) as threads:
        performing = threads.submit(lambda: app.perform(attempt.id))
        gates["prune"].await_call()
        assert (app.prune(0)).is_empty
        gates["prune"].opened.set()
        performing.result(30)
    assert row_of(engine, attempt.id).status is Status.SUCCEEDED
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM effects"))


@pytest.mark.only_on("mysql")
@by_one_door
def test_rows_and_gaps_beside_those_that_are_deleted_are_free(
    app: AsyncTask, engine: Engine, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a page is being deleted, others lock their rows, settle, and write new ones with events."""
    ids = [ended(engine, write, 31, events=1) for _ in range(3)]
    young = write(Client, "ping").id
    deleted, written = threading.Barrier(2), threading.Barrier(2)
    real = retention.delete_by_key

    def slow(connection: Any, table: Any, values: Any) -> None:
        real(connection, table, values)
        if table is TABLE:
            deleted.wait(30)
            written.wait(30)

    monkeypatch.setattr(retention, "delete_by_key", slow)
    with ThreadPoolExecutor(1) as threads:
        pruning = threads.submit(lambda: app.prune("30d"))
        deleted.wait(30)
        with engine.connect() as connection:
            connection.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 1")
            connection.commit()
            with connection.begin():
                connection.execute(update(TABLE).where(TABLE.c.id == young).values(num_attempts=1))
                for one in ids:  # in every gap between them
                    event = {"job_type": TABLE.name, "job_id": str(uuid.UUID(int=one.int + 1)), "kind": "note"}
                    connection.execute(insert(JobEvent).values(event))
                    Attempt.create_many(connection, [{"target": Client, "method_name": "ping"}])
            connection.invalidate()
        written.wait(30)
        assert pruning.result(30).deleted == 3


@pytest.mark.slow
def test_eight_prunes_at_once_do_what_one_does(app: AsyncTask, engine: Engine, write: Write) -> None:
    for number in range(24):
        ended(engine, write, 31, idempotence_token=f"{number}" if number % 2 else None, events=1)
    meet = threading.Barrier(8)

    def one(_: int) -> PruneReport:
        meet.wait(30)
        return app.prune("30d", page=3)

    with ThreadPoolExecutor(8) as threads:
        reports = list(threads.map(one, range(8)))
    assert sum(one.deleted for one in reports) == sum(one.emptied for one in reports) == 12
    assert sum(one.events for one in reports) == 24


# Rows of your own.


class Many(DeclarativeBase):
    pass


class Job(BaseAttempt, Many):
    __tablename__ = "prune_jobs"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "job"}  # noqa: RUF012
    kind: Mapped[str] = mapped_column(String(32), default="job", server_default="job")


class Mail(Job):
    __tablename__ = "prune_mails"
    __mapper_args__ = {"polymorphic_identity": "mail"}  # noqa: RUF012
    mail_id: Mapped[uuid.UUID] = mapped_column("id", ForeignKey("prune_jobs.id"), primary_key=True)
    subject: Mapped[str | None] = mapped_column(String(32))


class Invoice(Many):
    __tablename__ = "prune_invoices"
    number: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[uuid.UUID] = mapped_column(ForeignKey("prune_jobs.id"))


@pytest.fixture
def own(engine: Engine) -> Iterator[AsyncTask]:
    """An application with joined inheritance, and a table that refers to its attempts."""
    app = AsyncTask(engine, model=Job)
    app.create_schema()
    tables: list[Any] = [Job.__table__, Mail.__table__, Invoice.__table__]
    Many.metadata.create_all(engine, tables=tables)
    yield app
    Many.metadata.drop_all(engine, tables=tables)


def test_rows_of_a_second_table_go_with_their_attempts(own: AsyncTask, engine: Engine) -> None:
    _ended_jobs(engine, 3)
    assert own.prune("30d").deleted == 3
    with engine.connect() as connection:
        assert connection.execute(select(Mail.mail_id)).all() == connection.execute(select(Job.id)).all() == []


@pytest.mark.slow
@pytest.mark.only_on("postgresql", "mysql")
def test_an_attempt_to_which_a_table_of_yours_refers_is_named_and_does_not_stop_the_rest(
    own: AsyncTask, engine: Engine
) -> None:
    ids = _ended_jobs(engine, 5)
    with engine.begin() as connection:
        connection.execute(insert(Invoice).values(number=1, job=ids[2]))
    report = own.prune("30d")
    assert (report.deleted, set(report.refused)) == (4, {ids[2]})
    assert "for one of 1 rows" in report.refused[ids[2]]


def _ended_jobs(engine: Engine, number: int) -> list[uuid.UUID]:
    then = dt.datetime.now(dt.UTC) - dt.timedelta(days=31)
    ids = [uuid.UUID(int=uuid7().int & ~(0xFFFF << 112) | n) for n in range(number)]
    with Session(engine) as session, session.begin():
        for one in ids:
            mail: Any = Mail.create(target=Client, method_name="ping", session=session, columns={"subject": "hello"})
            set_committed_value(mail, "id", one)  # of a time long ago: an id is written once
            mail.mail_id = one
            mail.status, mail.completed_at, mail.num_attempts = Status.SUCCEEDED, then, 1
    return ids


# The worker.


@pytest.mark.slow
@by_one_door
@pytest.mark.usefixtures("registered")
def test_a_worker_prunes_what_targets_and_the_application_no_longer_keep(
    engine: Engine, async_engine_url: str, door: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "PRUNES_EVERY", 0.2)  # on MariaDB another statement may lock a row that is to go

    def remember(number: int) -> None: ...

    target(remember, name="test.remember", keep={"succeeded": "1y", "failed": "7d"})
    numbered: dict[str, Any] = {"target": "test.remember", "method_args": {"number": 1}}
    gone = {ended(engine, write, 31), ended(engine, write, 8, "failed", **numbered)}
    kept = {ended(engine, write, 29), ended(engine, write, 31, "failed"), ended(engine, write, 31, **numbered)}
    kept.add(_of_an_unknown_target(engine, write))
    app = outbox.application(engine, door, async_engine_url, keep="30d")
    with working(app):
        await_(lambda: not ids_in(engine) & gone, "the old attempts are not pruned")
    assert ids_in(engine) == kept


@by_one_door
def test_a_worker_prunes_nothing_until_it_is_asked(app: AsyncTask, engine: Engine, write: Write) -> None:
    old, new = ended(engine, write, 4000), write(Client, "ping")
    with working(app):
        await_(lambda: row_of(engine, new.id).status is Status.SUCCEEDED, "it is not performed")
    assert old in ids_in(engine)
    with pytest.raises(ConfigurationError, match="prune needs an age"):
        app.prune()


@pytest.mark.slow
@by_one_door
def test_of_workers_with_the_same_rules_the_first_one_prunes(
    engine: Engine, async_engine_url: str, door: str, write: Write
) -> None:
    def runtime(keep: str) -> Runtime:
        app: Any = outbox.application(engine, door, async_engine_url, keep=keep)
        made: Runtime = app._runtime("worker")
        return made

    first, second, other = Pruner(one := runtime("30d")), Pruner(two := runtime("30d")), Pruner(three := runtime("40d"))
    assert first.mark == second.mark != other.mark
    for each, pruner in ((one, first), (two, second), (three, other)):
        with engine.begin() as connection:
            register(connection, TABLE, each.worker, WORKER, about=json.dumps({"prunes": pruner.mark}))
        let_pass(engine, 1)  # SQLite's clock counts milliseconds: two of the same would go by name
    for each, pruner, left in ((two, second, 1), (one, first, 0), (three, other, 0)):
        old = ended(engine, write, 41)
        with each.lane() as lane:
            pruner.prune(lane)
        assert len(ids_in(engine) & {old}) == left
        with engine.begin() as connection:
            connection.execute(delete(TABLE))
    let_pass(engine, 120)  # the first one is silent
    with two.lane() as lane:
        ended(engine, write, 41)
        with engine.begin() as connection:
            register(connection, TABLE, two.worker, WORKER)
        second.prune(lane)
    assert ids_in(engine) == set()


@by_one_door
def test_a_prune_without_an_age_does_what_the_worker_does(
    engine: Engine, async_engine_url: str, door: str, write: Write
) -> None:
    old, young = ended(engine, write, 31), ended(engine, write, 29)
    token = ended(engine, write, 300, idempotence_token="a")
    app = outbox.application(engine, door, async_engine_url, keep="30d", keep_tokens="90d")
    assert app.prune().deleted == 2
    assert ids_in(engine) == {young}
    assert len({old, token, young}) == 3


@pytest.mark.parametrize("keep", ["soon", {}, {"pending": "1d"}, -1, {"succeeded": "x"}, ["30d"]])
def test_a_wrong_keep_is_refused(keep: Any) -> None:
    with pytest.raises(ConfigurationError):
        AsyncTask("sqlite://", keep=keep)
    with pytest.raises(ConfigurationError):
        target(lambda: None, name="test.wrong", keep=keep)
    with pytest.raises(ConfigurationError, match="a whole target"):
        policy(keep="30d")


def _of_an_unknown_target(engine: Engine, write: Write) -> uuid.UUID:
    made = ended(engine, write, 31)
    with engine.begin() as connection:
        connection.execute(update(TABLE).where(TABLE.c.id == made).values(target="of.another.process"))
    return made


def _figures(report: PruneReport) -> tuple[int, int, int]:
    assert (report.left, report.refused) == (0, {})
    return report.deleted, report.emptied, report.events


def _between_finding_and_writing(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Barrier, threading.Barrier]:
    """The first write of a prune waits at these."""
    found, ready = threading.Barrier(2), threading.Barrier(2)
    real: Any = retention._Run._write

    def wait(self: Any, ids: Any) -> Any:
        if not done:
            done.append(True)
            found.wait(30)
            ready.wait(30)
        return real(self, ids)

    done: list[bool] = []
    monkeypatch.setattr(retention._Run, "_write", wait)
    return found, ready


def _ensure(sessions: sessionmaker[Session], token: str) -> uuid.UUID:
    with sessions.begin() as session:
        made: uuid.UUID = Attempt.ensure(session, target=Client, method_name="ping", idempotence_token=token).id
    return made
