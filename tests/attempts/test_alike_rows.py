"""Many rows that are alike are copied while they are checked (PostgreSQL); on each database the outcome is the same."""

import os
import uuid
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any, Literal, get_type_hints

import pytest
from pydantic import AfterValidator
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, InvalidArguments, target
from async_task.attempts import create_many
from async_task.attempts.alike_rows import MANY, are_many_alike
from async_task.schema.columns import uuid7
from async_task.targets.parameter_types import ParameterTypes
from outbox import act, calls, will
from writing import Reversing

on_postgresql = pytest.mark.only_on("postgresql")
asked: list[Callable[[], object]] = []


@target("alike.plain")
def plain(number: int, word: str | None = None) -> None: ...


def _ask(number: int) -> int:
    for ask in asked:
        ask()
    return number


@target("alike.validated")
def validated(number: Annotated[int, AfterValidator(_ask)]) -> None: ...


def rows_of(fn: Any, number: int = MANY, **common: Any) -> list[dict[str, Any]]:
    return [{"target": fn, "method_args": {"number": one}, **common} for one in range(number)]


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether rows were copied while they were checked, by call."""
    found: list[bool] = []
    copy = create_many._copy_while_checked

    def note(*given: Any) -> bool:
        written = copy(*given)
        found.append(written is not None)
        return written

    monkeypatch.setattr(create_many, "_copy_while_checked", note)
    return found


def stored(where: Session) -> list[tuple[uuid.UUID, dict[str, Any]]]:
    found = where.scalars(select(Attempt).order_by(Attempt.id))
    return [(one.id, one.method_args) for one in found]


def test_all_are_written_in_the_order_of_their_ids(engine: Engine, copied: list[bool]) -> None:
    with Session(engine) as session, session.begin():
        ids = Attempt.create_many(session, rows_of(plain, queue="mail", priority=2))
        assert stored(session) == [(one, {"number": number}) for number, one in enumerate(ids)]
    with Session(engine) as session:
        assert session.scalar(select(func.count()).where(Attempt.queue == "mail", Attempt.priority == 2)) == MANY
    assert copied == [engine.dialect.name == "postgresql"]


@pytest.mark.slow
def test_they_are_performed(engine: Engine) -> None:
    will(lambda: None)
    with Session(engine) as session, session.begin():
        ids = Attempt.create_many(session, [{"target": act} for _ in range(MANY)])
    assert AsyncTask(engine).run_batch(limit=5).succeeded == 5
    assert set(calls) < set(ids)


@pytest.mark.parametrize(
    "wrong", [{"number": "text of a secret"}, {}, {"number": 1, "other": 2}, {"number": 1, "word": 3}]
)
def test_one_that_does_not_fit_undoes_all_and_the_transaction_goes_on(engine: Engine, wrong: dict[str, Any]) -> None:
    rows = rows_of(plain)
    rows[-3]["method_args"] = wrong
    with Session(engine) as session, session.begin():
        Attempt.create(target=plain, method_args={"number": 7}, session=session)
        session.flush()
        with pytest.raises(InvalidArguments, match=f"row {MANY - 3}: alike.plain") as refused:
            Attempt.create_many(session, rows)
        assert "secret" not in str(refused.value)
        Attempt.create(target=plain, method_args={"number": 8}, session=session)
    with Session(engine) as session:
        assert [arguments["number"] for _, arguments in stored(session)] == [7, 8]


def test_what_is_refused_leaves_session_and_connection_as_they_were(engine: Engine, copied: list[bool]) -> None:
    rows = rows_of(plain)
    rows[-1]["method_args"] = {}
    with engine.connect() as connection:
        with pytest.raises(InvalidArguments):
            Attempt.create_many(connection, rows)
        assert not connection.in_transaction()
    with Session(engine) as session:
        with pytest.raises(InvalidArguments):
            Attempt.create_many(session, rows)
        assert not session.in_transaction()
        waiting = Attempt.create(target=plain, method_args={"number": 7}, session=session)
        with pytest.raises(InvalidArguments):
            Attempt.create_many(session, rows)
        assert waiting in session.new
    assert not any(copied), "a session with changes is flushed, and so only once all rows are checked"


def test_the_first_one_that_does_not_fit_is_refused_before_anything_is_written(engine: Engine) -> None:
    rows = rows_of(plain)
    rows[0]["method_args"] = {}
    with Session(engine) as session, session.begin():
        with pytest.raises(InvalidArguments, match=r"row 0: alike\.plain"):
            Attempt.create_many(session, rows)
        assert stored(session) == []


def test_a_used_token_is_an_error_as_in_an_insert(engine: Engine) -> None:
    rows = [
        {**row, "idempotence_token": "t" if number in (3, 900) else None} for number, row in enumerate(rows_of(plain))
    ]
    with Session(engine) as session, pytest.raises(Exception, match=r"(?i)unique|duplicate"), session.begin():
        Attempt.create_many(session, rows)
    with Session(engine) as session:
        assert stored(session) == []


@pytest.mark.slow
def test_a_validator_may_use_the_session(engine: Engine, copied: list[bool]) -> None:
    with Session(engine) as session, session.begin():
        asked[:] = [lambda: session.scalar(text("SELECT 1"))]
        try:
            Attempt.create_many(session, rows_of(validated))
        finally:
            asked.clear()
        assert len(stored(session)) == MANY
    assert copied == []


def test_an_encryptor_may_use_the_session(engine: Engine, copied: list[bool]) -> None:
    with Session(engine) as session, session.begin():
        session.execute(text("SELECT 1"))
        Attempt.create_many(session, rows_of(plain, encryptor=Reversing()))
        assert session.scalar(select(func.count()).where(Attempt.encryptor == Reversing.name)) == MANY
    assert copied == []


@pytest.mark.slow
def test_a_generator_may_use_the_session(engine: Engine, copied: list[bool]) -> None:
    with Session(engine) as session, session.begin():
        numbers = (session.scalar(text("SELECT 1")) for _ in range(MANY))
        Attempt.create_many(session, ({"target": plain, "method_args": {"number": one}} for one in numbers))
        assert len(stored(session)) == MANY
    assert copied == []


@on_postgresql
@pytest.mark.parametrize("is_of_the_engine", [True, False])
def test_a_connection_in_autocommit_has_no_savepoint_and_writes_all(engine: Engine, is_of_the_engine: bool) -> None:
    autocommit = {"isolation_level": "AUTOCOMMIT"}
    own = engine.execution_options(**autocommit) if is_of_the_engine else engine
    with own.connect() as connection:
        given = connection if is_of_the_engine else connection.execution_options(**autocommit)
        Attempt.create_many(given, rows_of(plain))
        Attempt.create_many(given, rows_of(plain))  # to SQLAlchemy it has begun a transaction by now
    with Session(engine) as session:
        assert len(stored(session)) == 2 * MANY


@pytest.mark.slow
def test_a_call_writes_many_in_its_own_transaction(engine: Engine, copied: list[bool]) -> None:
    with Session(engine) as session, session.begin():
        Attempt.create(target=write_many, session=session, queue="first")
    assert AsyncTask(engine).run_batch(queues=["first"]).succeeded == 1
    with Session(engine) as session:
        assert len(stored(session)) == MANY + 1
    assert any(copied) is (engine.dialect.name == "postgresql")


@target("alike.write_many")
def write_many(session: Session) -> None:
    session.execute(text("SELECT 1"))
    with pytest.raises(InvalidArguments):
        Attempt.create_many(session, [*rows_of(plain, MANY), {"target": plain, "method_args": {"number": None}}])
    Attempt.create_many(session, rows_of(plain))


def test_which_rows_are_alike() -> None:
    rows = rows_of(plain)
    assert are_many_alike(rows)
    assert are_many_alike([{**row, "idempotence_token": str(number)} for number, row in enumerate(rows)])
    assert not are_many_alike(tuple(rows))
    assert not are_many_alike(rows[1:])
    assert not are_many_alike([*rows, {"target": validated, "method_args": {"number": 1}}])
    assert not are_many_alike([*rows, {"method_args": {"number": 1}, "target": plain}])
    assert not are_many_alike([*rows, {"target": plain}])
    assert not are_many_alike([*rows, {"target": plain, "method_args": Mine()}])
    assert not are_many_alike([*rows, Mine(rows[0])])
    assert not are_many_alike([*rows, {"target": plain, "method_args": {"number": Mine()}}])
    assert not are_many_alike([{**row, "idempotence_token": Word("t")} for row in rows])
    for name in ("order_key", "columns", "delay", "unknown"):
        assert not are_many_alike([{**row, name: None} for row in rows])


class Mine(dict[str, Any]):
    """Its methods may do anything."""


class Word(str):
    """The same."""


@on_postgresql
def test_a_copy_is_made_in_pieces_and_a_row_of_a_later_one_undoes_them_all(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create_many, "PIECE", 300)
    sent: list[int] = []
    copy = create_many.copy_lines

    def count(*given: Any) -> None:
        lines = list(given[-1])
        sent.append(len(lines))
        copy(*given[:-1], lines)

    monkeypatch.setattr(create_many, "copy_lines", count)
    rows = rows_of(plain)
    with Session(engine) as session, session.begin():
        ids = Attempt.create_many(session, rows)
        assert [one for one, _ in stored(session)] == ids
        with pytest.raises(InvalidArguments, match="row 999: "):
            Attempt.create_many(session, [*rows[:-1], {"target": plain, "method_args": {"number": "x"}}])
        assert len(stored(session)) == MANY
    assert sent == [299, 300, 300, 101, 299, 300, 300, 100]


def test_a_forked_process_makes_other_ids() -> None:
    uuid7()  # random bits are drawn for the next ones
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, (uuid7().int & (1 << 62) - 1).to_bytes(8))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = int.from_bytes(os.read(read, 8))
    os.close(read)
    os.close(write)
    assert theirs not in {uuid7().int & (1 << 62) - 1 for _ in range(600)}


@pytest.mark.parametrize(
    ("kind", "is_plain"),
    [
        (int, True),
        (None, True),
        (str | None, True),
        (Any, False),
        (list[int], False),
        (Literal["a"], False),
        (Annotated[int, AfterValidator(_ask)], False),
        (int | Annotated[str, AfterValidator(_ask)], False),
        (Annotated[int, {"this": "has no hash"}], False),
    ],
)
def test_which_types_run_no_code_of_the_user(kind: Any, is_plain: bool) -> None:
    parameters = [Parameter("one", Parameter.KEYWORD_ONLY), Parameter("other", Parameter.KEYWORD_ONLY)]
    made = ParameterTypes("a call", parameters, get_type_hints(_annotated(kind), include_extras=True))
    assert made.are_plain is is_plain


def _annotated(kind: Any) -> Any:
    def fn(one: int, other: Any) -> None: ...

    fn.__annotations__["other"] = kind
    return fn
