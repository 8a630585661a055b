"""The page "Call from a call" is one module, and what it says about it is so."""

import importlib.util
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, Status
from databases import Database, drop_own

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "call-from-a-call.md"
URL = "postgresql+psycopg://localhost/shop"


@pytest.fixture
def shop(
    database: Database, engine: Engine, registered: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The module of the page, on this test's database."""
    blocks = re.findall(r"^```python\n# shop.py\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    text = "\n".join(blocks)
    assert URL in text
    (tmp_path / "shop.py").write_text(text.replace(URL, database.sync_url))
    spec = importlib.util.spec_from_file_location("shop", tmp_path / "shop.py")
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "shop", module)
    spec.loader.exec_module(module)
    module.Base.metadata.create_all(engine)
    yield module
    module.SessionLocal.kw["bind"].dispose()
    drop_own(engine, module.Base.metadata)


def written(shop: Any, *statuses: Status) -> list[str]:
    """The targets of the attempts in these states."""
    with shop.SessionLocal() as session:
        return sorted(session.scalars(select(Attempt.target).where(Attempt.status.in_(statuses))))


def begin(shop: Any, target: object, *args: Any, **of_order: Any) -> None:
    with shop.SessionLocal.begin() as session:
        if of_order:
            session.add(shop.Order(**of_order))
        Attempt.options(session=session).call(target, *args)  # type: ignore[arg-type]


def run_until_nothing_is_due(outbox: AsyncTask) -> None:
    while outbox.run_batch().claimed:
        pass


def state(shop: Any, model: Any, key: int) -> str:
    with shop.SessionLocal() as session:
        return str(session.get_one(model, key).state)


@pytest.mark.slow
def test_the_next_call_commits_with_the_outcome_of_the_one_before(shop: Any) -> None:
    begin(shop, shop.charge, 7)  # its order is missing
    assert shop.outbox.run_batch().retried == 1
    assert written(shop, *Status) == ["shop:charge"]
    begin(shop, shop.charge, 8, number=8)
    run_until_nothing_is_due(shop.outbox)
    assert state(shop, shop.Order, 8) == "packed"
    assert written(shop, Status.SUCCEEDED) == ["shop:charge", "shop:pack"]


@pytest.mark.slow
def test_a_call_of_a_target_without_a_session_is_written_once_for_all_tries(
    shop: Any, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(shop, shop.ask_carrier, 7)
    shop.outbox.run_batch()
    with Session(engine) as session, session.begin():  # as if the outcome had been lost
        one = session.scalars(select(Attempt).where(Attempt.target == "shop:ask_carrier")).one()
        session.execute(
            Attempt.__table__.update().where(Attempt.id == one.id).values(status="pending", completed_at=None)
        )
    run_until_nothing_is_due(shop.outbox)
    assert written(shop, Status.SUCCEEDED) == ["shop:ask_carrier", "shop:print_label"]
    assert capsys.readouterr().out == "L7\n"


@pytest.mark.slow
def test_the_last_of_many_writes_the_call_that_follows(shop: Any) -> None:
    begin(shop, shop.open_album, 1, list(range(12)))
    run_until_nothing_is_due(shop.outbox)
    assert state(shop, shop.Album, 1) == "published"
    assert written(shop, *Status).count("shop:publish") == 1
    assert written(shop, Status.SUCCEEDED).count("shop:resize") == 12


@pytest.mark.slow
def test_a_call_that_looks_for_itself_goes_on_when_some_have_failed(shop: Any) -> None:
    begin(shop, shop.import_album, 1, [1, -1])
    assert shop.outbox.run_batch().succeeded == 1
    shop.outbox.run_batch(concurrency=1)
    assert state(shop, shop.Album, 1) == "new"  # one is pending, for its next try
    with shop.SessionLocal.begin() as session:
        session.scalars(Attempt.pending().where(Attempt.target == "shop:import_picture")).one().fail()
        session.scalars(Attempt.pending().where(Attempt.target == "shop:close_album")).one().retry_now()
    assert shop.outbox.run_batch().succeeded == 1
    assert state(shop, shop.Album, 1) == "closed"


@pytest.mark.slow
def test_an_order_key_makes_a_chain(shop: Any) -> None:
    with shop.SessionLocal.begin() as session:
        shop.place(session, 7)
    run_until_nothing_is_due(shop.outbox)
    assert state(shop, shop.Order, 7) == "packed"
    with shop.SessionLocal() as session:
        ended = session.scalars(select(Attempt.target).order_by(Attempt.completed_at)).all()
    assert ended == ["shop:charge_only", "shop:pack"]
