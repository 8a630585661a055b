"""The shop with FastAPI's own client."""

from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from async_task import Attempt, NoTransaction
from async_task.testing import assert_written
from shop import web_sync
from shop.database import transaction
from shop.models import Order
from shop.outbox import Warehouse, outbox
from shop.web import app


def test_an_order_is_confirmed_after_its_calls(client: TestClient) -> None:
    assert client.post("/orders/1").status_code == 201
    assert client.get("/orders/1").json()["is_confirmed"] is False
    assert outbox.run_batch().succeeded == 2
    assert client.get("/orders/1").json()["is_confirmed"] is True


def test_a_commit_that_fails_is_answered_as_such_and_leaves_no_call(client: TestClient) -> None:
    assert client.post("/orders/2").status_code == 201
    outbox.run_batch()
    assert client.post("/orders/2").status_code == 409
    assert outbox.run_batch().claimed == 0


def test_without_the_scope_the_response_is_sent_before_the_commit(client: TestClient) -> None:
    """Why the dependency says scope="function". If this fails, FastAPI has changed."""
    other = FastAPI()

    @other.post("/orders/{number}", status_code=201)
    async def place(number: int, session: Annotated[AsyncSession, Depends(transaction)]) -> None:
        session.add(Order(number=number))

    assert client.post("/orders/3").status_code == 201
    outbox.run_batch()
    with TestClient(other, raise_server_exceptions=False) as careless:
        assert careless.post("/orders/3").status_code == 201  # although the commit fails


def test_plain_functions_write_calls_with_the_session_that_they_are_given(client: TestClient) -> None:
    with TestClient(web_sync.app) as threads:
        assert threads.post("/orders/4").status_code == 201
    assert outbox.run_batch().succeeded == 1
    assert client.get("/orders/4").json()["is_confirmed"] is False


def test_in_plain_functions_no_transaction_is_guessed(client: TestClient) -> None:
    other = FastAPI()

    @other.post("/orders/{number}")
    def place(number: int, session: Annotated[Session, Depends(web_sync.transaction, scope="function")]) -> None:
        session.add(Order(number=number))
        Attempt.call(Warehouse.pack, number)

    with TestClient(other) as threads, pytest.raises(NoTransaction, match="give session="):
        threads.post("/orders/6")


def test_a_worker_beside_the_server_makes_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_WORKER", "1")
    with TestClient(app) as client:
        client.post("/orders/5")
        while not client.get("/orders/5").json()["is_confirmed"]:
            pass


def test_the_dashboard_is_shown_to_those_with_the_token(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DASHBOARD_TOKEN", "a-token")
    assert client.get("/jobs/").status_code == 403
    shown = client.get("/jobs/overview.json", headers={"Authorization": "Bearer a-token"})
    assert shown.status_code == 200


def test_an_order_writes_its_call(client: TestClient) -> None:
    client.post("/orders/7")
    outbox.read(lambda session: assert_written(Warehouse.pack, session=session, number=7))
