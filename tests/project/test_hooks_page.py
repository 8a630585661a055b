"""The examples of docs/hooks.md do what the page says, and its table names every hook."""

import inspect
import pathlib
import re
from typing import Any

import flask
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from async_task import AsyncTask, Attempt, Retried, Succeeded
from clockwork import row_of
from outbox import Client, HookedAttempt, act, will
from workers import make

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "hooks.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FLASK, TENANT, PAGER = BLOCK.findall(PAGE.read_text())


class Pager:
    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def send(self, text: str, *, key: str) -> None:
        self.sent.append((text, key))


@pytest.fixture
def names(sessions: sessionmaker[Session]) -> dict[str, Any]:
    """What the examples take for granted."""
    return {"SessionLocal": sessions, "Attempt": HookedAttempt, "pager": Pager()}


def test_in_flask_a_call_has_an_application_context(engine: Engine, names: dict[str, Any]) -> None:
    exec(FLASK, names)  # noqa: S102
    seen: list[str] = []
    will(lambda: seen.append(flask.current_app.name))
    [attempt_id] = make(engine, act)
    assert names["outbox"].perform(attempt_id) == Succeeded(attempt_id)
    assert seen == ["shop"]


def test_a_call_runs_as_its_tenant_and_without_one_it_is_not_made(
    engine: Engine, sessions: sessionmaker[Session], names: dict[str, Any]
) -> None:
    exec(TENANT.replace("Attempt.tenant", "Attempt.note"), names)  # noqa: S102
    seen: list[str] = []
    will(lambda: seen.append(names["tenant"].get()))
    with sessions.begin() as session:
        mine = HookedAttempt.create(target=act, session=session, columns={"note": "acme"}).id
        nobodys = HookedAttempt.create(target=act, session=session).id
    assert names["outbox"].perform(mine) == Succeeded(mine)
    outcome = names["outbox"].perform(nobodys)
    assert isinstance(outcome, Retried)
    assert outcome.error == "LookupError: this attempt has no tenant"
    assert seen == ["acme"]


def test_a_final_failure_is_sent_to_the_pager(engine: Engine, names: dict[str, Any]) -> None:
    exec(PAGER, names)  # noqa: S102
    [attempt_id] = make(engine, Client, method_name="give_up", method_args={"reason": "no such order"})
    names["outbox"].perform(attempt_id)
    said = "test.client.give_up failed after 1 tries: Discard: [hidden]"
    assert names["pager"].sent == [(said, str(attempt_id))]
    assert row_of(engine, attempt_id).last_error.startswith("Discard")


def test_the_table_names_every_hook() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    options = [name for name in inspect.signature(AsyncTask).parameters if name == "around" or name.startswith("on_")]
    assert rows == [*options, "handle_perform_error"]
    assert hasattr(Attempt, rows[-1])
