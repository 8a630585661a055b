"""Instants and the database's clock, on every database."""

import datetime as dt
from collections.abc import Iterator

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, select, type_coerce
from sqlalchemy.exc import StatementError

from async_task.database.clock import Instant, UnreadInstant, clock_now, statement_now

MOMENT = dt.datetime(2026, 10, 25, 2, 30, 0, 123_456, tzinfo=dt.timezone(dt.timedelta(hours=2)))
MOMENTS = Table("moments", MetaData(), Column("id", Integer, primary_key=True), Column("at", Instant()))


@pytest.fixture
def moments(engine: Engine) -> Iterator[Table]:
    MOMENTS.create(engine)
    yield MOMENTS
    MOMENTS.drop(engine)


def test_an_instant_is_read_in_utc_whatever_its_time_zone(engine: Engine, moments: Table) -> None:
    with engine.begin() as connection:
        connection.execute(moments.insert().values(at=MOMENT))
        found = connection.scalar(select(moments.c.at))
    assert found == MOMENT
    assert found is not None
    assert found.tzinfo is dt.UTC


def test_a_naive_datetime_is_refused(engine: Engine, moments: Table) -> None:
    with pytest.raises(StatementError, match="a naive datetime"), engine.begin() as connection:
        connection.execute(moments.insert().values(at=MOMENT.replace(tzinfo=None)))


def test_an_unread_instant_is_read_when_somebody_asks(engine: Engine, moments: Table) -> None:
    unread = type_coerce(moments.c.at, UnreadInstant())
    with engine.begin() as connection:
        connection.execute(moments.insert(), [{"at": MOMENT}, {"at": MOMENT + dt.timedelta(seconds=90)}])
        earlier, later = connection.scalars(select(unread).order_by(moments.c.id))
    assert earlier < later
    assert abs(UnreadInstant.read(earlier) - MOMENT) < dt.timedelta(microseconds=10)
    assert abs(UnreadInstant.between(earlier, later) - dt.timedelta(seconds=90)) < dt.timedelta(microseconds=10)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e15])
def test_an_instant_that_no_datetime_can_hold_is_read_as_the_nearest_one(value: float) -> None:
    assert UnreadInstant.read(value).year == (1 if value < 0 else 9999)
    assert isinstance(UnreadInstant.between(0.0, value), dt.timedelta)


@pytest.mark.parametrize("clock", [clock_now, statement_now])
def test_the_clock_can_be_moved_by_seconds(clock: type[clock_now], engine: Engine) -> None:
    with engine.connect() as connection:
        before, now, after = connection.execute(select(clock(-60.0), clock(), clock(0.5))).one()
    assert now.tzinfo is dt.UTC
    assert abs((now - before).total_seconds() - 60) < 0.1
    assert abs((after - now).total_seconds() - 0.5) < 0.1
