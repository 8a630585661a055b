"""Flask-SQLAlchemy's object as the database: which Flask application it means, and so which engine."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.orm import scoped_session, sessionmaker

from async_task.errors import ConfigurationError


class FlaskSQLAlchemy(Protocol):
    """What we use of `flask_sqlalchemy.SQLAlchemy`, which this library does not import."""

    @property
    def engines(self) -> Mapping[str | None, Engine]: ...
    @property
    def session(self) -> scoped_session[Any]: ...


def is_flask_sqlalchemy(given: object) -> bool:
    """Whether this is an instance of `flask_sqlalchemy.SQLAlchemy`, or of a subclass."""
    module = sys.modules.get("flask_sqlalchemy")
    return module is not None and isinstance(given, module.SQLAlchemy)


def session_factory_of(db: FlaskSQLAlchemy) -> tuple[type[Any], dict[str, Any]]:
    """The class of the sessions of `db`, and what it is called with."""
    factory: Any = db.session.session_factory
    return (factory.class_, dict(factory.kw)) if isinstance(factory, sessionmaker) else (factory, {})


@contextmanager
def flask_context(db: FlaskSQLAlchemy) -> Iterator[None]:
    """Inside of this, a Flask application is current: the one that is, else the one that `db` was initialised with.
    Raises ConfigurationError if that is none, or several."""
    import flask

    if flask.has_app_context():
        yield
        return
    # Flask-SQLAlchemy has no public way back to its applications.
    apps: list[Any] = list(getattr(db, "_app_engines", ()))
    if len(apps) != 1:
        known = "none yet" if not apps else f"{len(apps)}"
        raise ConfigurationError(
            f"AsyncTask was given Flask-SQLAlchemy's object, which belongs to one Flask application; this one has "
            f"{known}: create the application, `app = create_app()`, in the module that makes or names AsyncTask, or "
            "work inside of `with app.app_context():`"
        )
    with apps[0].app_context():
        yield


def default_engine(db: FlaskSQLAlchemy) -> Engine:
    """The engine of SQLALCHEMY_DATABASE_URI. Raises ConfigurationError if that is not configured."""
    with flask_context(db):
        engine = db.engines.get(None)
    if engine is None:
        raise ConfigurationError(
            "AsyncTask takes the database of SQLALCHEMY_DATABASE_URI, which this Flask application has not configured"
        )
    return engine
