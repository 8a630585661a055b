"""`create_many`: many calls in one statement; and the text format of COPY, by which psycopg writes them."""

import asyncio
import datetime as dt
import enum
import uuid
import zoneinfo
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Engine,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    create_engine,
    event,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import databases
from async_task import (
    AsyncTask,
    Attempt,
    BaseAttempt,
    InvalidArguments,
    target,
)
from async_task.attempts.copied_lines import LINES, copy_lines, fields
from clockwork import row_of
from outbox import effects
from writing import ARGS, SECRET, Client, Reversing, Sessions, book, count, statements_of

# COPY's text format

on_postgresql = pytest.mark.only_on("postgresql")
KINDS = Table(
    "copying \"kinds\"", MetaData(),
    Column("a text", Text), Column("truth", Boolean), Column("number", BigInteger), Column("id", Uuid),
    Column("at", DateTime(timezone=True)),
)  # fmt: skip
NASTY = [
    "", "\\", "\\\\", "\\N", "\\.", "\t", "\n", "\r", "\r\n", "\\t", "\\n", "\b\f\v", "a\\\nb\t", "'", '"',
    "\x01\x1f\x7f", "NULL", "\u2028\x85", "ä€𝄞", " ", *(chr(one) for one in range(1, 0x180)),
]  # fmt: skip


class Word(enum.StrEnum):
    IT = "it\\self"


class Mixed(str, enum.Enum):  # noqa: UP042
    IT = "it\tself"


class Number(enum.IntEnum):
    SEVEN = 7


@target("copying.\t\\N\n")
def strangely_named(text: str) -> None: ...


@pytest.fixture
def kinds(engine: Engine) -> Iterator[None]:
    KINDS.create(engine)
    yield
    KINDS.drop(engine)


def _through(engine: Engine, *rows: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    with engine.begin() as connection:
        copy_lines(connection, KINDS, KINDS.c.keys(), (fields(row) + "\n" for row in rows))
        return [tuple(row) for row in connection.execute(select(KINDS))]


@on_postgresql
def test_copy_keeps_every_text(kinds: None, engine: Engine) -> None:
    assert [text for text, *_ in _through(engine, *((text, None, None, None, None) for text in NASTY))] == NASTY


@on_postgresql
def test_copy_keeps_every_kind_of_value(kinds: None, engine: Engine) -> None:
    some = uuid.UUID("00000000-0000-7000-8000-0000000000ff")
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    twice = dt.datetime(2026, 10, 25, 2, 30, tzinfo=berlin)
    rows: list[tuple[Any, ...]] = [
        ("a", True, 2**63 - 1, some, dt.datetime(1, 1, 1, tzinfo=dt.UTC)),
        ("b", False, -(2**63), some, dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, dt.UTC)),
        ("c", None, 0, None, twice),
        ("d", None, 0, None, twice.replace(fold=1)),
        (None, None, None, None, None),
    ]
    found = _through(engine, *rows)
    assert found == [(*row[:4], None if row[4] is None else row[4].astimezone(dt.UTC)) for row in rows]


@on_postgresql
def test_copy_writes_a_value_of_a_derived_class_as_its_base(kinds: None, engine: Engine) -> None:
    found = _through(engine, (Word.IT, None, Number.SEVEN, None, None), (Mixed.IT, None, 1, None, None))
    assert [(text, number) for text, _, number, *_ in found] == [("it\\self", 7), ("it\tself", 1)]


def test_copy_refuses_a_value_of_another_class() -> None:
    with pytest.raises(TypeError):
        fields([b"bytes"])


@on_postgresql
def test_copy_writes_more_lines_than_are_sent_at_a_time(kinds: None, engine: Engine) -> None:
    rows = [(str(one), None, one, None, None) for one in range(2 * LINES + 1)]
    assert _through(engine, *rows) == rows


@on_postgresql
@pytest.mark.parametrize("encoding", ["utf8", "latin1"])
def test_copy_sends_texts_in_the_encoding_of_the_connection(kinds: None, engine: Engine, encoding: str) -> None:
    other = create_engine(engine.url, connect_args={"client_encoding": encoding})
    _through(other, ("größer", None, None, None, None))
    other.dispose()
    with engine.connect() as connection:
        assert connection.scalars(select(KINDS.c["a text"])).all() == ["größer"]


@on_postgresql
def test_copy_raises_sqlalchemys_error_for_what_the_server_refuses(kinds: None, engine: Engine) -> None:
    with pytest.raises(DBAPIError) as refused, engine.begin() as connection:
        copy_lines(connection, KINDS, ["number"], ["no number\n"])
    assert refused.value.orig is not None


@on_postgresql
@pytest.mark.parametrize("number", [1, 30])
def test_create_many_keeps_every_character(engine: Engine, number: int) -> None:
    texts = ["\\N", "\\.", "\\", "'", "\\t", "ä€𝄞", "x y"]
    with engine.begin() as connection:
        for text in texts:
            common = {"target": strangely_named, "method_args": {"text": f"{text}\t\n\r\x00"}, "queue": text}
            own = [{"idempotence_token": f"{text}{one}", "order_key": text} for one in range(number)]
            Attempt.create_many(connection, [common | one for one in own])
    with Session(engine) as session:
        stored = session.scalars(select(Attempt).order_by(Attempt.seq)).all()
    assert [(one.target, one.queue, one.order_key, one.idempotence_token, one.method_args) for one in stored] == [
        ("copying.\t\\N\n", text, text, f"{text}{one}", {"text": f"{text}\t\n\r\x00"})
        for text in texts
        for one in range(number)
    ]


# Attempts


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
def test_create_many_uses_copy_with_psycopg(engine: Engine) -> None:
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


def test_create_and_create_many_write_the_same_rows(sessions: Sessions, engine: Engine) -> None:
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


def test_each_row_has_its_own_method(sessions: Sessions) -> None:
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
def test_create_many_takes_every_kind_of_session_and_connection(
    kind: str, sessions: Sessions, engine: Engine, async_engine_url: str
) -> None:
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


def test_create_many_flushes_the_session_also_without_rows(sessions: Sessions, engine: Engine) -> None:
    with sessions.begin() as session:
        waiting = Attempt.options(session=session, idempotence_token="T").call(book, 1)
        assert Attempt.create_many(session, []) == []
        assert inspect(waiting).persistent
    assert count(engine) == 1


@pytest.mark.long
def test_ten_thousand_calls_are_written_by_few_statements(engine: Engine) -> None:
    statements: list[str] = []
    with engine.begin() as connection:
        event.listen(connection, "before_cursor_execute", lambda _c, _u, text, *_: statements.append(text))
        Attempt.create_many(connection, rows_of(10_000))
    assert count(engine) == 10_000
    assert len(statements) <= 10_000 // 100, f"{len(statements)} statements, the first: {statements[0]}"


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
    """An own base."""


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


def test_own_columns_get_their_defaults_through_every_verb(own_table: None, sessions: Sessions) -> None:
    with sessions.begin() as session:
        TenantAttempt.create_many(session, rows_of(2))
        TenantAttempt.ensure(session, target=Client, method_name="hurry", idempotence_token="T")
        TenantAttempt.options(session=session).call(book, 1)
        session.flush()
        found = session.scalars(select(TenantAttempt)).all()
        assert [(one.tenant, one.region, one.note) for one in found] == [("nobody", "eu", None)] * 4


@target("many.plain")
def plain() -> None: ...


@on_postgresql
@pytest.mark.parametrize("name", ["per%cent", "Capital Case", "dotted.name", "da-sh", 'quo"te', "ünïcode"])
def test_schemas_and_tables_of_any_name_take_many_and_perform_them(engine: Engine, name: str) -> None:
    class Named(DeclarativeBase):
        metadata = MetaData(schema=name)

    class Call(BaseAttempt, Named):
        __tablename__ = name

    quoted = name.replace('"', '""')
    with engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE SCHEMA "{quoted}"'.replace("%", "%%"))
    try:
        app = AsyncTask(engine, model=Call)
        app.create_schema()
        with Session(engine) as session, session.begin():
            Call.create_many(session, [{"target": plain}] * 200)
            Call.options(session=session, order_key="a").call(plain)
        assert app.run_batch().succeeded == 201
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f'DROP SCHEMA "{quoted}" CASCADE'.replace("%", "%%"))


@pytest.mark.parametrize("number", [5, LINES + 5])
def test_a_generator_may_give_the_same_row_again_and_again(sessions: Sessions, engine: Engine, number: int) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = {"target": book}
        for one in range(number):
            row["method_args"] = {"number": one}
            yield row

    with sessions.begin() as session:
        ids = Attempt.create_many(session, rows())
    with sessions() as session:
        stored = {one.id: one.method_args["number"] for one in session.scalars(select(Attempt))}
    assert [stored[one] for one in ids] == list(range(number))


@pytest.mark.parametrize("number", [5, LINES + 5])
def test_rows_may_come_from_the_same_session_and_validators_use_it(
    sessions: Sessions, engine: Engine, number: int
) -> None:
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(asking[0].scalar(text("SELECT 1")) or 0)
        return number

    @target(f"create_many.asking_{number}_{engine.name}")
    def asking_target(number: Annotated[int, AfterValidator(ask)]) -> None: ...

    with sessions.begin() as session:
        asking = [session]
        session.execute(effects.insert(), [{"number": one} for one in range(number)])
        found = session.execute(select(effects.c.number))
        rows = ({"target": asking_target, "method_args": {"number": one}} for (one,) in found)
        assert len(Attempt.create_many(session, rows)) == number
    assert asked == [1] * number
    assert count(engine) == number


@pytest.mark.parametrize("number", [5, LINES + 5])
def test_a_row_that_is_refused_leaves_session_and_connection_as_they_were(
    sessions: Sessions, engine: Engine, number: int
) -> None:
    rows = [*rows_of(number), {"target": book, "method_args": {"number": SECRET}}]
    with engine.connect() as connection:
        with pytest.raises(InvalidArguments, match=f"^row {number}: "):
            Attempt.create_many(connection, rows)
        assert not connection.in_transaction()
    with sessions() as session:
        waiting = Attempt.options(session=session).call(book, 1)
        with pytest.raises(InvalidArguments, match=f"^row {number}: "):
            Attempt.create_many(session, rows)
        assert waiting in session.new
        session.commit()
    assert count(engine) == 1


@pytest.mark.parametrize("rows", [5, None, "rows", {"target": "writing.client"}])
def test_what_is_no_list_of_rows_is_refused(sessions: Sessions, engine: Engine, rows: Any) -> None:
    with pytest.raises(InvalidArguments, match="takes an iterable of rows, not"), sessions.begin() as session:
        Attempt.create_many(session, rows)
    assert count(engine) == 0
