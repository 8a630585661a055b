"""`outbox.dashboard`: what it needs."""

import sys
from typing import Any

import pytest
from sqlalchemy import event
from starlette.testclient import TestClient

from async_task import Access, AsyncTask, ConfigurationError
from async_task.database.engines import _prepare_nothing


def test_the_dashboard_shows_nothing_until_somebody_has_said_to_whom() -> None:
    outbox = AsyncTask("sqlite:///never-opened.sqlite")
    undecided: Any = outbox.dashboard
    with pytest.raises(TypeError, match="authorize"):
        undecided()
    with pytest.raises(ConfigurationError, match="authorize takes a function"):
        undecided(authorize=None)
    with pytest.raises(ConfigurationError, match="read_only is True or False"):
        undecided(authorize=print, read_only="no")
    closed = outbox.dashboard(authorize=lambda request: Access.none())
    assert TestClient(closed).get("/").status_code == 403


def test_the_dashboard_prepares_no_statements() -> None:
    """A pooler in transaction mode may give the next transaction a session without them."""
    outbox = AsyncTask("postgresql+psycopg://nowhere.test/shop")
    engine = outbox._source._plain
    assert not event.contains(engine, "connect", _prepare_nothing)
    outbox.dashboard(authorize=lambda request: Access.none())
    assert event.contains(engine, "connect", _prepare_nothing)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "async_task.web.dashboard", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(ConfigurationError, match=r"not installed: install async-task\[web\]"):
        AsyncTask("sqlite:///never-opened.sqlite").dashboard(authorize=lambda request: Access.none())
