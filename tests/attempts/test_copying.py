"""COPY's text format: what is written is what is read, whatever the characters, the encoding and the class."""

import datetime as dt
import enum
import uuid
import zoneinfo
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Engine, MetaData, Table, Text, Uuid, create_engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from async_task import Attempt, target
from async_task.attempts.create_many import LINES, copy_lines, fields

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
def test_every_text_comes_back(kinds: None, engine: Engine) -> None:
    assert [text for text, *_ in _through(engine, *((text, None, None, None, None) for text in NASTY))] == NASTY


@on_postgresql
def test_every_kind_of_value_comes_back(kinds: None, engine: Engine) -> None:
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
def test_a_value_of_a_derived_class_is_what_it_is_derived_from(kinds: None, engine: Engine) -> None:
    found = _through(engine, (Word.IT, None, Number.SEVEN, None, None), (Mixed.IT, None, 1, None, None))
    assert [(text, number) for text, _, number, *_ in found] == [("it\\self", 7), ("it\tself", 1)]


def test_a_value_of_another_class_is_refused() -> None:
    with pytest.raises(TypeError):
        fields([b"bytes"])


@on_postgresql
def test_more_lines_than_are_sent_at_a_time(kinds: None, engine: Engine) -> None:
    rows = [(str(one), None, one, None, None) for one in range(2 * LINES + 1)]
    assert _through(engine, *rows) == rows


@on_postgresql
@pytest.mark.parametrize("encoding", ["utf8", "latin1"])
def test_texts_are_sent_in_the_encoding_of_the_connection(kinds: None, engine: Engine, encoding: str) -> None:
    other = create_engine(engine.url, connect_args={"client_encoding": encoding})
    _through(other, ("größer", None, None, None, None))
    other.dispose()
    with engine.connect() as connection:
        assert connection.scalars(select(KINDS.c["a text"])).all() == ["größer"]


@on_postgresql
def test_what_the_server_refuses_is_sqlalchemys_error(kinds: None, engine: Engine) -> None:
    with pytest.raises(DBAPIError) as refused, engine.begin() as connection:
        copy_lines(connection, KINDS, ["number"], ["no number\n"])
    assert refused.value.orig is not None


@on_postgresql
@pytest.mark.parametrize("number", [1, 30])
def test_many_attempts_keep_every_character(engine: Engine, number: int) -> None:
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
