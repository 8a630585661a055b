"""The shop with Litestar's own client."""

import pytest
from advanced_alchemy.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin
from litestar import Litestar, post
from litestar.testing import TestClient
from sqlalchemy.ext.asyncio import AsyncSession

from async_task import Attempt
from async_task.testing import assert_written
from shop.database import alchemy
from shop.models import Order
from shop.outbox import outbox, pack


def test_an_order_is_packed_after_its_call(client: TestClient[Litestar]) -> None:
    assert client.post("/orders/1").status_code == 201
    assert client.get("/orders/1").json()["is_packed"] is False
    assert outbox.run_batch().succeeded == 1
    assert client.get("/orders/1").json()["is_packed"] is True


def test_a_commit_that_fails_is_answered_as_such_and_leaves_no_call(client: TestClient[Litestar]) -> None:
    client.post("/orders/2")
    outbox.run_batch()
    assert client.post("/orders/2").status_code == 500
    assert outbox.run_batch().claimed == 0


def test_autocommit_answers_with_success_although_its_commit_fails(client: TestClient[Litestar]) -> None:
    """Why the handler commits by itself. If this fails, Advanced Alchemy has changed."""

    @post("/orders/{number:int}")
    async def place(number: int, db_session: AsyncSession) -> None:
        db_session.add(Order(number=number))
        Attempt.options(session=db_session).call(pack, number)

    client.post("/orders/3")
    outbox.run_batch()
    config = SQLAlchemyAsyncConfig(engine_instance=alchemy.get_engine(), before_send_handler="autocommit")
    with TestClient(Litestar([place], plugins=[SQLAlchemyPlugin(config=config)])) as careless:
        assert careless.post("/orders/3").status_code == 201
    assert outbox.run_batch().claimed == 0  # although the client was told that it is there


def test_the_dashboard_is_shown_to_those_with_the_token(
    client: TestClient[Litestar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_DASHBOARD_TOKEN", "a-token")
    assert client.get("/jobs/").status_code == 403
    shown = client.get("/jobs/overview.json", headers={"Authorization": "Bearer a-token"})
    assert shown.status_code == 200


def test_an_order_writes_its_call(client: TestClient[Litestar]) -> None:
    client.post("/orders/7")
    outbox.read(lambda session: assert_written(pack, session=session, number=7))
