"""Outages: what a worker logs while its database is away."""

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from async_task.worker import outages
from async_task.worker.outages import Outages


@pytest.fixture
def unreachable() -> DBAPIError:
    with pytest.raises(DBAPIError) as raised:
        create_engine("postgresql+psycopg://nobody@127.0.0.1:9/none").connect()
    return raised.value


def test_an_outage_is_told_when_it_begins_and_when_it_ends(
    unreachable: DBAPIError, caplog: pytest.LogCaptureFixture
) -> None:
    told = Outages("me")
    told.over()
    assert not told.belongs(unreachable)
    for _ in range(3):
        told.failed(unreachable)
    assert told.belongs(unreachable)
    assert not told.belongs(ValueError())
    told.over()
    told.over()
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("worker me: the database is away since 20")
    assert last == "worker me: the database is back after 0 s"


def test_a_long_outage_is_told_again(
    unreachable: DBAPIError, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "TOLD_EVERY", 0.0)
    told = Outages("me")
    for _ in range(3):
        told.failed(unreachable)
    assert len(caplog.records) == 3


def test_of_outages_that_follow_each_other_closely_only_the_first_is_told(
    unreachable: DBAPIError, caplog: pytest.LogCaptureFixture
) -> None:
    told = Outages("me")
    for _ in range(3):
        told.failed(unreachable)
        told.over()
    assert len(caplog.records) == 2
