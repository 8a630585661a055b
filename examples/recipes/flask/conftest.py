"""Tables for the tests; a shop with data migrates."""

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from shop.models import db
from wsgi import app, outbox


@pytest.fixture(scope="session", autouse=True)
def tables() -> Iterator[None]:
    outbox.create_schema()
    with app.app_context():
        db.create_all()
    yield
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def client() -> FlaskClient:
    return app.test_client()
