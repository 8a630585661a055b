"""The shop with Flask's own client."""

import pytest
from flask import has_app_context
from flask.testing import FlaskClient

from async_task import Status
from async_task.testing import assert_written
from shop.jobs import pack
from wsgi import outbox


def test_an_order_is_packed_after_its_calls(client: FlaskClient) -> None:
    assert client.post("/orders/1").status_code == 201
    assert client.get("/orders/1").json == {"number": 1, "packed_in": None}
    assert outbox.run_batch().succeeded == 2
    assert client.get("/orders/1").json == {"number": 1, "packed_in": "Rotterdam"}


def test_an_order_that_is_not_committed_leaves_no_call(client: FlaskClient) -> None:
    client.post("/orders/2")
    outbox.run_batch()
    assert client.post("/orders/2").status_code == 500  # there is an order with this number
    assert outbox.run_batch().claimed == 0


def test_the_outbox_needs_no_application_context() -> None:
    assert not has_app_context()
    outbox.check_schema()
    assert {one.status for one in outbox.attempts.list().attempts} == {Status.SUCCEEDED}


def test_the_dashboard_is_shown_to_those_with_the_token(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DASHBOARD_TOKEN", "a-token")
    assert client.get("/jobs/", buffered=True).status_code == 403
    shown = client.get("/jobs/overview.json", buffered=True, headers={"Authorization": "Bearer a-token"})
    assert shown.status_code == 200


def test_an_order_writes_its_call(client: FlaskClient) -> None:
    client.post("/orders/7")
    outbox.read(lambda session: assert_written(pack, session=session, number=7))
