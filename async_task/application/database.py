"""The database of an application: its tables, its clock, and transactions to read and write attempts in."""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from async_task.attempts.attempt import BaseAttempt
from async_task.database.engines import Source
from async_task.database.greenlets import has_loop_running
from async_task.database.lanes import open_lane
from async_task.database.reading import reading_engine
from async_task.errors import ConfigurationError
from async_task.reading.browse import Attempts
from async_task.reading.call_problems import CallProblem, problems_of
from async_task.reading.pages import clock_of
from async_task.reading.stuck_groups import StuckSource
from async_task.schema import versions
from async_task.schema.system import SystemInfo, system_of
from async_task.schema.tables import table_of
from async_task.targets.retry import Duration, duration

T = TypeVar("T")
_NOTHING: Mapping["Source", float] = MappingProxyType({})
_reading: ContextVar[Mapping["Source", float]] = ContextVar("async_task_reading", default=_NOTHING)
"""The applications that only read here, by their database, and the seconds that a statement of theirs may take."""
LONGEST_READ = 86_400
TAKES = {
    "perform": ", attempt_id", "prune": ", age", "pause": ", queue", "resume": ", queue",
    "attempts.get": ", attempt_id", "attempts.arguments": ", attempt_id", "attempts.events": ", attempt_id",
    "attempts.explain": ", attempt_id", "attempts.history": ", span", "attempts.notes": ", attempt_id",
    "attempts.failed_by": ", fingerprint", "retry_failures": ", fingerprint, reason=reason",
    "restart_models": ", model, reason=reason", "reveal": ", attempt_id, reason=reason",
    "job": ", model, key", "explain_job": ", model, key",
    "attempts.short_ids": ", [attempt_id]", "read": ", work", "write": ", work",
    "on_connection": ", work", "schedule.run": ", key", "schedule.pause": ", key", "schedule.resume": ", key",
}  # fmt: skip
"""The required arguments of a verb, as an error message names them."""


class ApplicationDatabase:
    """What an `AsyncTask` reads and writes, on either kind of engine. All verbs are synchronous, and raise
    ConfigurationError inside of an event loop."""

    def __init__(self, source: Source, model: type[BaseAttempt]) -> None:
        self._source = source
        self._model = model
        self._is_checked = False

    @property
    def model(self) -> type[BaseAttempt]:
        """The model of the attempts."""
        return self._model

    @property
    def address(self) -> str:
        """The URL of the database, without its password."""
        return self._source.address

    @property
    def table_name(self) -> str:
        """The name of the attempts' table, with its schema where it has one."""
        return table_of(self._model).fullname

    @property
    def attempts(self) -> Attempts:
        """Reads attempts: `outbox.attempts.list(status="failed")`, `.get(id)`, `.events(id)`, `.counts()`, ..."""
        return Attempts(self._model, self._read, self._stuck_sources())

    def _stuck_sources(self) -> tuple[StuckSource, ...]:
        """What tells of other jobs that are stuck, beside the attempts."""
        return ()

    def create_schema(self) -> None:
        """Create the missing tables, for tests and demos; other programs migrate. Raises SchemaMismatch for tables of
        another version."""
        self._refuse_in_reading("create_schema")
        self._run("create_schema", lambda engine: versions.create(engine, self._model))

    def check_schema(self) -> None:
        """Raise SchemaMismatch unless the tables exist in the version that this library needs."""
        self._run("check_schema", lambda engine: versions.check(engine, self._model))
        self._is_checked = True

    def check_calls(self) -> list[CallProblem]:
        """Return why this process cannot perform some waiting calls: unknown targets, methods or encryptors, missing
        keys, plain text where the target names an encryptor. Reads the whole table. Raises as `run_batch`."""
        return self._read("check_calls", lambda session: problems_of(session, table_of(self._model)))

    def schema_version(self) -> int | None:
        """Return the version of the tables in the database; None if there are no tables or they have no version."""
        return self._run("schema_version", lambda engine: versions.version_in(engine, self._model))

    def system(self) -> SystemInfo:
        """Tell about the database as a whole: its server, the version of the tables and the one needed, how large the
        tables are, and the oldest transaction, which holds back the removal of dead rows.

        What the server does not say, or the user of the database may not ask, is None. The version of the tables is not
        checked. Raises ConfigurationError inside of an event loop and for a server that is too old, and SQLAlchemy's
        OperationalError without a database.
        """
        return self._run("system", lambda engine: system_of(engine, self._model))

    def app_context(self) -> AbstractContextManager[None]:
        """Inside of this, the Flask application of `AsyncTask(db)` is current, for code that asks for it, such as the
        env.py of Flask-Migrate. With any other database it does nothing. Raises ConfigurationError on entering if `db`
        belongs to no application yet, or to several."""
        return self._source.context()

    def close(self) -> None:
        """Close the idle connections of the pool that was made from a URL. A later verb opens new ones."""
        self._source.close()

    def now(self) -> dt.datetime:
        """Return the time of the database, which decides what is due and what expires. Raises as `run_batch`."""
        return self._read("now", clock_of)

    @contextmanager
    def reading(self, within: Duration = 2.0) -> Iterator[None]:
        """Inside of this, the verbs of this application only read, and the database ends each statement of theirs after
        `within` (seconds or a timedelta): for pages and monitoring, which must neither write nor wait.

            with outbox.reading(within=2):
                failures = outbox.attempts.failures()

        A statement that takes longer raises ReadTimeout. A verb that changes or locks rows raises ConfigurationError,
        and writes nothing; so does `read` with such a statement. A reader waits for no writer, and holds none up.

        It applies to this thread and asyncio task, to tasks that are started here, and through `asyncio.to_thread`; the
        innermost applies. `within` is from 1 ms to a day; MySQL (not MariaDB) limits
        SELECT alone. Raises ConfigurationError.
        """
        seconds = duration(within, name="within").total_seconds()
        if not 0.001 <= seconds <= LONGEST_READ:
            raise ConfigurationError(f"within is from 0.001 s to a day, and was {seconds:g} s")
        token = _reading.set({**_reading.get(), self._source: seconds})
        try:
            yield
        finally:
            _reading.reset(token)

    def read(self, work: Callable[[Any], T]) -> T:
        """Return `work(session)`, called in a transaction of its own, on either kind of engine: to read rows. Raises as
        `run_batch`, and what `work` raises."""
        return self._read("read", work)

    def _read(self, verb: str, work: Callable[[Session], T]) -> T:
        def in_session(engine: Engine) -> T:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                return work(session)

        return self._run_checked(verb, in_session)

    def write(self, work: Callable[[Any], T]) -> T:
        """Return `work(session)`, called in a transaction that commits when it returns: to change attempts by their
        methods (`cancel`, `retry_now`, ...). The session is of your own class. Raises as `read`."""

        def in_session(engine: Engine) -> T:
            with self._source.session(engine) as session, session.begin():
                return work(session)

        return self._change("write", in_session)

    def on_connection(self, work: Callable[[Connection], T]) -> T:
        """Return `work(connection)`, called in a transaction that commits when it returns: to make, compare or change
        the tables. Their version is not checked."""

        def in_transaction(engine: Engine) -> T:
            with engine.begin() as connection:
                return work(connection)

        self._refuse_in_reading("on_connection")
        return self._run("on_connection", in_transaction)

    def _run(self, verb: str, work: Callable[[Engine], T]) -> T:
        refuse_loop(verb)
        within = _reading.get().get(self._source)
        with open_lane(self._source) as lane:
            engine = lane.engine if within is None else reading_engine(lane.engine, within)
            return lane.run(lambda: work(engine))

    def _run_checked(self, verb: str, work: Callable[[Engine], T]) -> T:
        """As `_run`, where the tables are as this library needs them. Raises SchemaMismatch."""
        self._check_once(verb)
        return self._run(verb, work)

    def _change(self, verb: str, work: Callable[[Engine], T]) -> T:
        """As `_run_checked`, for work that changes or locks rows. Raises ConfigurationError inside of `reading`."""
        self._check_before_change(verb)
        return self._run(verb, work)

    def _check_before_change(self, verb: str) -> None:
        self._refuse_in_reading(verb)
        self._check_once(verb)

    def _refuse_in_reading(self, verb: str) -> None:
        if self._source in _reading.get():
            raise ConfigurationError(
                f"{verb} changes or locks rows, and outbox.reading() only reads: call it outside of that"
            )

    def _check_once(self, verb: str) -> None:
        refuse_loop(verb)
        if not self._is_checked:
            self.check_schema()


def refuse_loop(verb: str) -> None:
    """Raises ConfigurationError inside of an event loop, which the verb would block."""
    if has_loop_running():
        # `outbox.worker()` blocks nothing: what it returns does.
        called, given = (f"{verb}.run", "") if verb in ("worker", "clock") else (f"outbox.{verb}", TAKES.get(verb, ""))
        raise ConfigurationError(f"{called}() would block this event loop: await asyncio.to_thread({called}{given})")
