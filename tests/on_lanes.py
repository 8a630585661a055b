"""Runs a test on the lane of its connection: that of an Engine, or of an AsyncEngine in a greenlet of its loop."""

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from async_task.database.engines import Source
from async_task.database.lanes import Lane, open_lane
from databases import Database


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that takes `lane_connection` runs on the lane of this connection."""
    if "lane_connection" not in pyfuncitem.fixturenames:
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    lane: Lane = pyfuncitem.funcargs["own_lane"]
    lane.run(partial(pyfuncitem.obj, **given))
    return True


@pytest.fixture
def own_lane(database: Database, door: str) -> Iterator[Lane]:
    """A lane with an engine of its own, without the listeners of the tests."""
    if door == "sync":
        source = Source(create_engine(database.sync_url))
    else:
        source = Source(create_async_engine(database.async_url))
    with open_lane(source, private=True) as lane:
        yield lane


@pytest.fixture
def lane_connection(own_lane: Lane) -> Iterator[Connection]:
    """A connection of `own_lane`."""
    connection = own_lane.run(own_lane.engine.connect)
    yield connection
    own_lane.run(connection.close)
