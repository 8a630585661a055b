"""Tables for the tests; a shop with data migrates."""

from collections.abc import Iterator

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from shop.models import Order
from shop.outbox import outbox
from shop.web import app


@pytest.fixture(scope="session", autouse=True)
def tables() -> None:
    outbox.create_schema()
    outbox.on_connection(Order.metadata.create_all)


@pytest.fixture(scope="session")
def client(tables: None) -> Iterator[TestClient[Litestar]]:
    with TestClient(app) as client:
        yield client
