"""Own models: columns, overrides, inheritance, schemas, names; and what the tables themselves refuse."""

import datetime as dt
import enum
import types
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlmodel
from sqlalchemy import (
    Dialect,
    Engine,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column, registry, sessionmaker

import databases
from async_task import AsyncTask, Attempt, BaseAttempt, ConfigurationError, Failed, Status, Succeeded, target
from async_task.schema.tables import JobEvent
from clockwork import row_of
from elsewhere import await_
from outbox import Client
from workers import working
from writing import database_clock, statements_of

Sessions = sessionmaker[Session]
NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


class Refused(Exception):
    """What the target here raises."""


@target("models.charge")
def charge(amount: int) -> None:
    if amount < 0:
        raise Refused


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMES)


class Job(BaseAttempt, Base):
    """A table of another name, columns and methods of its own, and `__table_args__` that replace ours."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_tenant", "tenant"), {"comment": "what must be called"})

    tenant: Mapped[str | None] = mapped_column(String(20))
    errors: Mapped[str | None] = mapped_column(String(200))

    @property
    def shout(self) -> str:
        return (self.tenant or "").upper()

    def handle_perform_error(self, error: BaseException) -> None:
        self.errors = f"{self.shout}: {type(error).__name__}"
        self.fail(reason="no second try")


class Letter(BaseAttempt, Base):
    """Single-table inheritance."""

    __tablename__ = "letters"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "letter"}  # noqa: RUF012

    kind: Mapped[str] = mapped_column(String(20))


class Parcel(Letter):
    __mapper_args__ = {"polymorphic_identity": "parcel"}  # noqa: RUF012

    weight: Mapped[int | None]


class Turned(TypeDecorator[str]):
    """A text that is stored from its end to its beginning."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value[::-1]

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value[::-1]


class Size(enum.Enum):
    SMALL, LARGE = range(2)


class Telegram(BaseAttempt, Base):
    """An own type for one of our columns, and an enum that tells the class."""

    __tablename__ = "telegrams"
    __mapper_args__ = {"polymorphic_on": "size", "polymorphic_identity": Size.LARGE}  # noqa: RUF012

    encoded_args: Mapped[str] = mapped_column("method_args", Turned)
    size: Mapped[Size] = mapped_column(Enum(Size, native_enum=False))


class Visit(BaseAttempt, Base):
    """Joined inheritance."""

    __tablename__ = "visits"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "visit"}  # noqa: RUF012

    kind: Mapped[str] = mapped_column(String(20))


class HomeVisit(Visit):
    __tablename__ = "home_visits"
    __mapper_args__ = {"polymorphic_identity": "home"}  # noqa: RUF012

    id: Mapped[uuid.UUID] = mapped_column(ForeignKey("visits.id"), primary_key=True)
    address: Mapped[str | None] = mapped_column(String(100))


class Slip(BaseAttempt, Base):
    """Written without RETURNING."""

    __tablename__ = "slips"
    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012


class Invoice(sqlmodel.SQLModel, table=True):
    id: int | None = sqlmodel.Field(default=None, primary_key=True)
    number: int


@pytest.fixture
def tables(engine: Engine) -> Iterator[None]:
    databases.drop_own(engine, Base.metadata)
    Base.metadata.create_all(engine)
    yield
    databases.drop_own(engine, Base.metadata)


def app_of(engine: Engine, model: type[BaseAttempt]) -> AsyncTask:
    return AsyncTask(engine, model=model)


@pytest.mark.slow
def test_an_own_model_is_written_performed_and_its_error_hook_runs(
    tables: None, engine: Engine, sessions: Sessions
) -> None:
    with sessions.begin() as session:
        good = Job.call(charge, 1)
        bad = Job.call(charge, -1)
        good.tenant = bad.tenant = "acme"
    app = app_of(engine, Job)
    assert app.perform(good.id) == Succeeded(good.id)
    assert isinstance(app.perform(bad.id), Failed)
    app.close()
    with sessions() as session:
        found = session.get_one(Job, bad.id)
        assert (found.status, found.errors, found.shout) == (Status.FAILED, "ACME: Refused", "ACME")
        assert session.scalars(Job.failed()).all() == [found]
        events = session.scalars(select(JobEvent).where(JobEvent.job_id == str(bad.id))).all()
        assert {event.job_type for event in events} == {"jobs"}


@pytest.mark.slow
def test_two_models_in_one_process_are_independent(tables: None, engine: Engine, sessions: Sessions) -> None:
    with sessions.begin() as session:
        mine = Job.ensure(session, target=charge, method_args={"amount": 1}, idempotence_token="T")
        other = Attempt.ensure(session, target=charge, method_args={"amount": 1}, idempotence_token="T")
        assert type(mine) is Job
        assert type(other) is Attempt
    app = app_of(engine, Job)
    assert app.run_batch().succeeded == 1
    app.close()
    assert row_of(engine, other.id).status == Status.PENDING


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["create", "ensure", "create_many"])
def test_single_table_inheritance_writes_and_reads_the_class(tables: None, sessions: Sessions, verb: str) -> None:
    call: dict[str, Any] = {"target": charge, "method_args": {"amount": 1}, "idempotence_token": "T"}
    with sessions.begin() as session:
        if verb == "create":
            Parcel.create(**call, session=session).weight = 3
        elif verb == "ensure":
            assert type(Parcel.ensure(session, **call)) is Parcel
        else:
            Parcel.create_many(session, [call])
        session.flush()
        session.expire_all()
        assert [type(one) for one in session.scalars(select(Letter))] == [Parcel]
        # The table knows a token once, of whichever class: what is there is the answer.
        assert type(Letter.ensure(session, **call)) is Parcel
        other = {**call, "idempotence_token": "U"}
        assert type(Letter.ensure(session, **other)) is Letter
        assert type(Parcel.ensure(session, **other)) is Letter


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 5])
def test_own_column_types_are_written_and_read(tables: None, engine: Engine, sessions: Sessions, number: int) -> None:
    with sessions.begin() as session:
        Telegram.create_many(session, [{"target": charge, "method_args": {"amount": 10}}] * number)
    with sessions() as session:
        assert [one.method_args for one in session.scalars(select(Telegram))] == [{"amount": 10}] * number
        assert set(session.scalars(text("SELECT method_args FROM telegrams"))) == {'{"amount": 10}'[::-1]}
    with working(app_of(engine, Telegram)):
        await_(lambda: not backlog_of(engine), "all are performed")


@pytest.mark.slow
def test_a_model_without_eager_defaults_reads_its_times_when_they_are_asked_for(
    tables: None, engine: Engine, sessions: Sessions
) -> None:
    with sessions.begin() as session, statements_of(engine) as seen:
        slip = Slip.options(session=session).call(charge, 1)
        session.flush()
        assert (len(seen), "RETURNING" in seen[0]) == (1, False)
        assert slip.created_at <= database_clock(engine)
    app = app_of(engine, Slip)
    assert app.perform(slip.id) == Succeeded(slip.id)
    app.close()


def backlog_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM telegrams WHERE status <> 'succeeded'")) or 0


@pytest.mark.slow
def test_the_call_is_read_only_in_a_subclass_too(tables: None, sessions: Sessions) -> None:
    from async_task import InvalidState

    with sessions.begin() as session:
        parcel = Parcel.options(session=session).call(charge, 1)
        with pytest.raises(InvalidState):
            parcel.target = "other"


@pytest.mark.slow
def test_joined_inheritance_can_be_created_and_performed_and_nothing_else(
    tables: None, engine: Engine, sessions: Sessions
) -> None:
    with sessions.begin() as session:
        visit = HomeVisit.options(session=session).call(charge, 1)
        visit.address = "Elm Street"
        call: dict[str, Any] = {"target": charge, "method_args": {"amount": 1}, "idempotence_token": "T"}
        for refused in (lambda: HomeVisit.ensure(session, **call), lambda: HomeVisit.create_many(session, [call])):
            with pytest.raises(ConfigurationError, match=r"is in two tables .* use create"):
                refused()
        assert type(Visit.ensure(session, **call)) is Visit
    app = app_of(engine, Visit)
    assert app.perform(visit.id) == Succeeded(visit.id)
    app.close()
    with sessions() as session:
        found = session.get_one(HomeVisit, visit.id)
        assert (found.address, found.status) == ("Elm Street", Status.SUCCEEDED)


@pytest.mark.slow
def test_own_table_args_keep_our_indexes_and_checks_under_their_names(tables: None, engine: Engine) -> None:
    engine.dispose()  # SQLite's driver keeps statements, and what a PRAGMA said before the table was made anew
    found = inspect(engine)
    names = {str(index["name"]) for index in found.get_indexes("jobs")}
    ours = {"ix_jobs_waiting", "ix_jobs_expiry", "ix_jobs_lease", "uq_jobs_token", "uq_jobs_order"}
    assert ours | {"ix_jobs_tenant"} <= names
    checks = {str(check["name"]) for check in found.get_check_constraints("jobs")}
    kinds = ("status", "completed", "claim", "claimed", "priority", "counters", "starts")
    assert {f"ck_jobs_{kind}" for kind in kinds} <= checks


def test_a_long_table_name_is_legal(engine: Engine) -> None:
    class Long(DeclarativeBase): ...

    class LongNamed(BaseAttempt, Long):
        __tablename__ = "a_table_with_a_name_that_is_nearly_as_long_as_it_may_be_at_all"

    Long.metadata.create_all(engine)
    databases.drop_own(engine, Long.metadata)


@pytest.mark.only_on("postgresql")
def test_a_model_may_have_a_schema(engine: Engine, sessions: Sessions) -> None:
    class InSchema(DeclarativeBase):
        metadata = MetaData(schema="outbox of acme")

    class SchemaAttempt(BaseAttempt, InSchema):
        __tablename__ = "Attempts"

    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "outbox of acme"'))
        InSchema.metadata.create_all(connection)
    try:
        call: dict[str, Any] = {"target": charge, "method_args": {"amount": 1}}
        with sessions.begin() as session:
            SchemaAttempt.create(**call, session=session)
            SchemaAttempt.ensure(session, **call, idempotence_token="T")
            assert len(SchemaAttempt.create_many(session, [call, call])) == 2
        app = app_of(engine, SchemaAttempt)
        assert app.run_batch().succeeded == 4
        app.close()
    finally:
        with engine.begin() as connection:
            connection.execute(text('DROP SCHEMA "outbox of acme" CASCADE'))


def test_a_model_that_is_a_dataclass_is_refused() -> None:
    class Data(MappedAsDataclass, DeclarativeBase): ...

    says = "create\\(\\) writes the columns of an attempt, not the __init__ of a dataclass"
    with pytest.raises(ConfigurationError, match=says):

        class First(BaseAttempt, Data):
            __tablename__ = "first"

    def second() -> None:
        class Second(Data, BaseAttempt):
            __tablename__ = "second"

    class Third(BaseAttempt):
        __tablename__ = "third"

    for refused in (second, lambda: registry().mapped_as_dataclass(Third)):
        # Here SQLAlchemy is asked before we are: from 2.1 on it refuses by itself, before that it warns.
        with warnings.catch_warnings(action="ignore"), pytest.raises((ConfigurationError, InvalidRequestError)) as said:
            refused()
        assert "dataclass" in str(said.value)

    class Plain(DeclarativeBase):
        registry = Data.registry

    class Fourth(BaseAttempt, Plain):  # as the sentence says: beside dataclasses, in one registry and metadata
        __tablename__ = "fourth"

    assert Fourth.metadata is Data.metadata
    Data.registry.configure()  # no half of what was refused is left


def test_a_model_of_sqlmodel_is_refused_and_a_declarative_one_on_its_metadata_is_not() -> None:
    for bases in ((BaseAttempt, sqlmodel.SQLModel), (sqlmodel.SQLModel, BaseAttempt)):
        with pytest.raises(ConfigurationError, match="not the fields of a Pydantic model: map it on a declar"):
            types.new_class("Refused", bases, {"table": True}, lambda body: body.update(__tablename__="refused"))

    class Beside(DeclarativeBase):
        metadata = sqlmodel.SQLModel.metadata

    class Accepted(BaseAttempt, Beside):
        __tablename__ = "accepted_beside_sqlmodel"

    assert Accepted.__tablename__ in sqlmodel.SQLModel.metadata.tables


def test_a_session_of_sqlmodel_takes_attempts_beside_its_models(engine: Engine) -> None:
    Invoice.metadata.create_all(engine, tables=[Invoice.__table__])  # type: ignore[attr-defined]
    try:
        with sqlmodel.Session(engine) as session, session.begin():
            session.add(Invoice(number=7))
            made = Attempt.call(charge, 7)
            given = Attempt.options(session=session).call(charge, 8)
        with sqlmodel.Session(engine) as session:
            found = session.exec(sqlmodel.select(Attempt)).all()
            assert {one.id for one in found} == {made.id, given.id}
    finally:
        Invoice.metadata.drop_all(engine, tables=[Invoice.__table__])  # type: ignore[attr-defined]


# What the tables refuse, whoever asks

MOMENT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
CLAIM = {"claim_id": uuid.UUID(int=1), "claimed_by": "w", "lease_until": MOMENT}
DONE = {"status": Status.SUCCEEDED, "completed_at": MOMENT, "num_attempts": 1}


@pytest.mark.parametrize(
    "values",
    [
        {"status": Status.SUCCEEDED},
        {"completed_at": MOMENT},
        {**CLAIM, "claimed_by": None},
        {**CLAIM, "lease_until": None},
        {**CLAIM, "claim_id": None},
        {**CLAIM, **DONE},
        {"priority": 10},
        {"priority": -1},
        {"num_attempts": -1},
        {"num_errors": -1},
        {"num_crashes": -1, "num_attempts": 1},
        {"num_errors": 1},
        {"num_errors": 1, "num_crashes": 1, "num_attempts": 1},
        {"num_losses": -1, "num_attempts": 1},
        {"num_errors": 1, "num_losses": 1, "num_attempts": 1},
        {"num_crashes": 1, "num_losses": 1, "num_attempts": 1},
        {"queue": None},
        {"due_at": None},
    ],
    ids=" ".join,
)
def test_the_table_refuses_an_illegal_combination_of_columns(
    sessions: Sessions, engine: Engine, values: dict[str, Any]
) -> None:
    with sessions.begin() as session:
        attempt = Attempt.options(session=session).call(charge, 1)
    table: Any = Attempt.__table__
    change = update(table).where(table.c.id == attempt.id)
    with engine.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(change.values(values))
    with engine.begin() as connection:
        connection.execute(change.values({**CLAIM, "num_attempts": 1}))
        connection.execute(change.values({**dict.fromkeys(CLAIM), **DONE}))


def test_the_table_refuses_an_unknown_status(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        Attempt.options(session=session).call(charge, 1)
    with engine.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(text("UPDATE async_task_attempts SET status = 'running', completed_at = created_at"))


@pytest.mark.only_on("postgresql")
def test_the_claim_uses_a_partial_index(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        Attempt.create_many(session, [{"target": charge, "method_args": {"amount": 1}}] * 2000)
        session.execute(text("UPDATE async_task_attempts SET status = 'canceled', completed_at = now()"))
        Attempt.create_many(session, [{"target": charge, "method_args": {"amount": 1}}] * 20)
    probe = text(
        "EXPLAIN SELECT id FROM async_task_attempts WHERE status = 'pending' AND completed_at IS NULL "
        "AND claim_id IS NULL AND released AND queue = 'default' AND priority = 0 "
        "AND due_at <= statement_timestamp() ORDER BY due_at, id LIMIT 10"
    )
    with engine.connect() as connection:
        connection.execute(text("ANALYZE async_task_attempts"))
        plan = "\n".join(connection.scalars(probe))
    assert "ix_async_task_attempts_waiting" in plan
    assert "Sort" not in plan
    # Each column that comes before the time is searched by: else the whole index is walked for each priority.
    condition = next(line for line in plan.splitlines() if "Index Cond" in line)
    assert all(column in condition for column in ("status", "released", "queue", "priority", "due_at"))


@pytest.mark.only_on("postgresql", "sqlite")
def test_an_ended_attempt_is_in_no_index_but_the_keys(engine: Engine) -> None:
    asked = {
        "postgresql": "SELECT indexdef FROM pg_indexes WHERE tablename = 'async_task_attempts'",
        "sqlite": "SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'async_task_attempts'",
    }
    with engine.connect() as connection:
        found = connection.scalars(text(asked[engine.name])).all()
    ours = [one for one in found if one and "pkey" not in one]
    assert len(ours) == 8
    assert all(" WHERE " in one for one in ours)


@pytest.mark.parametrize("hours", [-1, 1])
def test_is_due_agrees_with_due_about_what_is_past_its_expires_at(
    write: Callable[..., Attempt], engine: Engine, hours: int
) -> None:
    attempt = write(Client, "ping")
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)
    with Session(engine) as session, session.begin():
        session.execute(update(Attempt).where(Attempt.id == attempt.id).values(expires_at=until))
    with Session(engine) as session:
        found = session.get_one(Attempt, attempt.id)
        assert found.is_due is (hours > 0)
        assert (session.scalars(Attempt.due()).first() is found) is found.is_due
