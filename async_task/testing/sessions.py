"""Which session a test means, and which tables of attempts are in its database."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session

from async_task.attempts.ambient import ambient_session, forget_created
from async_task.attempts.attempt import BaseAttempt
from async_task.database.greenlets import may_load
from async_task.database.sessions import is_async_session, is_registry, sync_session, write_arguments
from async_task.errors import ConfigurationError, NoTransaction, SchemaMismatch
from async_task.schema.tables import table_of
from async_task.testing.awaited import Awaited

T = TypeVar("T")
_of_fixture: list[tuple[str, object]] = []
"""The session that the pytest plugin has got from the test's fixture, and the fixture's name."""


@dataclass(frozen=True, slots=True)
class TestSession:
    """`own`: the Session that is used, which may be that of an AsyncSession. `made_by`: the class of the test's own."""

    __test__ = False  # no class of tests

    own: Session
    made_by: type[Any]

    @property
    def is_async(self) -> bool:
        return self.own.get_bind(**_arguments(self.own)).dialect.is_async

    @property
    def options(self) -> dict[str, Any]:
        """How another session is made like it."""
        return {"autoflush": self.own.autoflush, "expire_on_commit": self.own.expire_on_commit}

    def connection(self) -> Connection:
        """The connection on which it writes attempts, in its transaction."""
        return self.own.connection(bind_arguments=_arguments(self.own))

    def models(self) -> list[type[BaseAttempt]]:
        """The models whose tables are in its database. Raises SchemaMismatch without any."""
        connection = self.connection()
        translated = connection.get_execution_options().get("schema_translate_map") or {}
        asked = inspect(connection)
        found: dict[tuple[str | None, str], type[BaseAttempt]] = {}
        for model in _base_models():
            table = table_of(model)
            place = translated.get(table.schema, table.schema), table.name
            if asked.has_table(table.name, schema=place[0]):
                found[place] = model  # of two models of one table the later one: the user's own beside the ready-made
        if not found:
            raise SchemaMismatch(
                "this test's database has no table of attempts: create it, async_task.metadata.create_all(engine), or "
                'let the test write no calls: @pytest.mark.async_task(mode="off")'
            )
        return [*found.values()]

    def read_again(self) -> None:
        """Let the session's objects show what was written beside it. Of an AsyncSession they are read now: an attribute
        cannot be loaded when it is read."""
        own = self.own
        if not own.is_active:
            return
        own.expire_all()
        if not self.is_async:
            return
        with own.no_autoflush:
            for one in list(own.identity_map.values()):
                state: Any = inspect(one)
                if own.get(type(one), state.identity, populate_existing=True) is None:
                    own.expunge(one)


def on_session(given: object | None, name: str, work: Callable[[TestSession], T]) -> T | Awaitable[T]:
    """What `work` returns for the test's session; on an AsyncSession an awaitable of that. `name`: of the function that
    the test has called. Raises NoTransaction without a session, ConfigurationError for what is none."""
    session = _session_meant(given)
    forget_created(session.own)
    if may_load(session.own.get_bind(**_arguments(session.own))):
        return work(session)
    return Awaited(name, lambda: work(session))


@contextmanager
def fixture_session(name: str, session: object) -> Iterator[None]:
    """Inside of this, `session`, of the fixture of this name, is the one that is meant where none is given."""
    _of_fixture.append((name, session))
    try:
        yield
    finally:
        _of_fixture.pop()
        with contextlib.suppress(ConfigurationError):
            forget_created(sync_session(session))


def session_class_of(own: Session) -> type[Any]:
    """The class of which targets that take a session get one, where only the Session is known."""
    if not own.get_bind(**_arguments(own)).dialect.is_async:
        return type(own)
    from sqlalchemy.ext.asyncio import AsyncSession

    return AsyncSession


def _session_meant(given: object | None) -> TestSession:
    if given is not None:
        return _test_session(given)
    if _of_fixture:
        name, session = _of_fixture[-1]
        try:
            return _test_session(session)
        except ConfigurationError:
            raise ConfigurationError(
                f"the fixture {name!r} gave a {type(session).__name__}, which is no session: set the option "
                "async_task_session to the name of the fixture that gives the test's session, or give session="
            ) from None
    try:
        own = ambient_session()
    except NoTransaction:
        raise NoTransaction(
            "no session is known here: give session=, or name the fixture that gives the test's session in the pytest "
            "option async_task_session (its default is 'session')"
        ) from None
    return TestSession(own, session_class_of(own))


def _test_session(given: Any) -> TestSession:
    own = sync_session(given)
    found = given() if is_registry(type(given)) else given
    return TestSession(own, type(found) if is_async_session(type(found)) else type(own))


def _arguments(own: Session) -> dict[str, Any]:
    """The bind arguments of a statement that writes attempts. A session may have a bind for an application's own model
    alone."""
    for model in _base_models():
        arguments = write_arguments(inspect(model))
        with contextlib.suppress(UnboundExecutionError):
            own.get_bind(**arguments)
            return arguments
    raise ConfigurationError("this session is bound to no engine and no connection: sessionmaker(connection)")


def _base_models() -> list[type[BaseAttempt]]:
    """The models that are mapped to a table of their own, in the order in which they were defined."""
    found: dict[Any, type[BaseAttempt]] = {}
    waiting: list[Any] = [BaseAttempt]
    while waiting:
        cls = waiting.pop(0)
        mapper: Any = inspect(cls, raiseerr=False)
        if mapper is not None:
            found.setdefault(mapper.base_mapper.local_table, mapper.base_mapper.class_)
        waiting += cls.__subclasses__()
    return [*found.values()]
