"""Tables for the tests; a shop with data migrates."""

import pytest
from fastapi.testclient import TestClient

from shop.models import Base
from shop.outbox import outbox
from shop.web import app


@pytest.fixture(scope="session", autouse=True)
def tables() -> None:
    outbox.create_schema()
    outbox.on_connection(Base.metadata.create_all)


@pytest.fixture(scope="session")
def client(tables: None):
    with TestClient(app) as client:  # one event loop for all requests, as the engine needs it
        yield client
