"""Flask-SQLAlchemy's object as the database of an application: found without an application context."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import flask_sqlalchemy.session
import pytest
from flask import Flask, current_app, has_app_context
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from async_task import AsyncTask, Attempt, ConfigurationError, Status, target
from databases import Database


@dataclass
class Shop:
    """A Flask application that is not current, its database, and the outbox that was made before it."""

    db: SQLAlchemy
    outbox: AsyncTask
    app: Flask


def flask_app(db: SQLAlchemy, url: str | None) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping({"SQLALCHEMY_DATABASE_URI": url} if url else {"SQLALCHEMY_BINDS": {"other": "sqlite://"}})
    db.init_app(app)
    return app


@pytest.fixture
def shop(engine: Engine, database: Database) -> Iterator[Shop]:
    db = SQLAlchemy()
    outbox = AsyncTask(db)
    app = flask_app(db, database.sync_url)
    yield Shop(db, outbox, app)
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def calls(registered: None) -> dict[str, Any]:
    """What the targets of these tests have seen."""
    seen: dict[str, Any] = {}

    def note(session: flask_sqlalchemy.session.Session, name: str) -> None:
        seen["class"] = type(session)
        seen[name] = session.scalar(select(Attempt.target))

    target(note, name="flask.note")
    return seen


@pytest.mark.slow
def test_a_call_of_db_session_is_performed_without_an_application_context(shop: Shop, calls: dict[str, Any]) -> None:
    with shop.app.app_context():
        Attempt.create(target="flask.note", method_args={"name": "a"}, session=shop.db.session)
        shop.db.session.commit()
    assert not has_app_context()
    assert shop.outbox.run_batch().succeeded == 1
    assert calls["a"] == "flask.note"


@pytest.mark.slow
def test_the_query_of_a_view_makes_its_transaction_ambient(shop: Shop, calls: dict[str, Any]) -> None:
    with shop.app.app_context():
        shop.db.session.scalars(select(Attempt)).all()
        Attempt.create(target="flask.note", method_args={"name": "a"})
        shop.db.session.rollback()
        shop.db.session.scalars(select(Attempt)).all()
        Attempt.create(target="flask.note", method_args={"name": "b"})
        shop.db.session.commit()
    shop.outbox.run_batch()
    assert "a" not in calls
    assert "b" in calls


@pytest.mark.slow
def test_a_target_gets_a_session_of_the_class_of_db_session_in_its_own_transaction(
    shop: Shop, calls: dict[str, Any], database: Database
) -> None:
    with shop.app.app_context():
        Attempt.create(target="flask.note", method_args={"name": "a"}, session=shop.db.session)
        shop.db.session.commit()
    shop.outbox.run_batch()
    assert issubclass(calls["class"], flask_sqlalchemy.session.Session)


def test_write_and_read_work_without_an_application_context(shop: Shop, calls: dict[str, Any]) -> None:
    def write(session: Session) -> Any:
        attempt = Attempt.create(target="flask.note", method_args={"name": "a"}, session=session)
        session.flush()
        return attempt.id, type(session)

    made, kind = shop.outbox.write(write)
    assert issubclass(kind, flask_sqlalchemy.session.Session)
    assert shop.outbox.attempts.get(made).status is Status.PENDING


def test_the_application_is_current_inside_of_app_context(shop: Shop) -> None:
    with shop.outbox.app_context():
        assert current_app._get_current_object() is shop.app  # type: ignore[attr-defined]
    with shop.app.app_context(), shop.outbox.app_context():
        assert current_app._get_current_object() is shop.app  # type: ignore[attr-defined]
    with AsyncTask("sqlite:///unused.sqlite").app_context():
        assert not has_app_context()


def test_a_database_of_no_application_says_where_to_make_one() -> None:
    outbox = AsyncTask(SQLAlchemy())
    with pytest.raises(ConfigurationError, match=r"this one has none yet: create the application.*create_app\(\)"):
        outbox.run_batch()


def test_of_several_applications_the_current_one_is_meant(database: Database, engine: Engine) -> None:
    db = SQLAlchemy()
    first, second = flask_app(db, database.sync_url), flask_app(db, "sqlite:///other.sqlite")
    with pytest.raises(ConfigurationError, match=r"this one has 2: .*`with app.app_context\(\):`"):
        AsyncTask(db).run_batch()
    with first.app_context():
        assert AsyncTask(db).schema_version() is not None
    for app in (first, second):
        with app.app_context():
            db.engine.dispose()


def test_an_application_without_a_default_database_is_refused() -> None:
    db = SQLAlchemy()
    app = flask_app(db, None)
    with pytest.raises(ConfigurationError, match="SQLALCHEMY_DATABASE_URI, which this Flask application has not"):
        AsyncTask(db).run_batch()
    with app.app_context(), contextlib.suppress(KeyError):
        db.engines["other"].dispose()
