"""The user's own engine, with options and listeners of its own: what they say is kept, but for what transactions are."""

from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event

from async_task import AsyncTask
from databases import Database
from elsewhere import await_
from outbox import act, act_in_session, calls, will
from test_worker import at_rest, counted, make, working


def test_an_engine_may_be_given_with_options_and_its_listeners_are_heard(database: Database, engine: Engine) -> None:
    plain, heard = create_engine(database.sync_url), list[str]()
    given = plain.execution_options(said="theirs")
    event.listen(plain, "begin", lambda connection: heard.append("plain"))
    event.listen(given, "begin", lambda connection: heard.append(connection.get_execution_options()["said"]))
    make(engine, act)
    make(engine, act_in_session)
    will(lambda *given: None)
    with working(AsyncTask(given, lease=1)):
        await_(lambda: at_rest(engine), "all are at rest")
    plain.dispose()
    assert counted(engine) == {"succeeded": 2}
    assert heard.count("plain") == heard.count("theirs") > 0
