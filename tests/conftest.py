"""Every test that takes `database`, `engine` or `async_engine_url` runs once on each database that answers."""

import collections
import compileall
import contextlib
import functools
import gc
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine
from sqlalchemy.orm import Session, sessionmaker

import clockwork
import databases
import elsewhere
import operations
import outbox
import pairs
import reviews
from async_task import AsyncTask, Attempt
from async_task.asyncable.registration import register as register_asyncable
from async_task.attempts import messages, telemetry
from async_task.database import drivers
from async_task.database.server_sessions import server_uptime
from async_task.encryption import encryptors
from async_task.polling.target import register
from async_task.queue import hooks
from async_task.targets import registry
from async_task_cli.main import main
from databases import ALL_STATEMENTS, Available, Database
from said import Run, Said

gc.disable()  # until all is collected: the imports leave no garbage
pytest_plugins = ["rollbacks", "following_calls", "on_lanes", "receivers"]
AVAILABLE = pytest.StashKey[Available]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Find the databases once: by this process, or by the controller if this is a worker of pytest-xdist."""
    config = session.config
    if hasattr(config, "workerinput"):
        config.stash[AVAILABLE] = Available.from_plain(config.workerinput["databases"])
        return
    _compile_once()
    until = contextlib.ExitStack()
    config.add_cleanup(until.close)
    try:
        config.stash[AVAILABLE] = databases.available(until)
    except databases.NoDatabase as error:
        pytest.exit(str(error), returncode=1)


def _compile_once() -> None:
    """Compile what only started programs import. They write no bytecode, so each of them would compile it again."""
    if not sys.dont_write_bytecode:
        for folder in ("async_task", "cli", "benchmarks"):
            compileall.compile_dir(pathlib.Path(__file__).parent.parent / folder, quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["databases"] = node.config.stash[AVAILABLE].to_plain()


def pytest_report_header(config: pytest.Config) -> list[str]:
    return config.stash[AVAILABLE].lines()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not terminalreporter.showheader:  # -q prints no header: say here what ran
        terminalreporter.write_line("")
        for line in config.stash[AVAILABLE].lines():
            terminalreporter.write_line(line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    pairs.check_markers(metafunc.definition)
    if "database" in metafunc.fixturenames:
        names = [database.name for database in metafunc.config.stash[AVAILABLE].databases]
        metafunc.parametrize("database", names, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> Iterator[None]:
    wanted = pairs.wanted(items)
    if deselected := [item for item in items if item not in wanted]:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item in wanted]
    for item in _left_to_test_long(config, items):
        item.add_marker(pytest.mark.long)  # before -m is applied
    yield
    if hasattr(config, "workerinput"):
        _mix_files(items)


def _left_to_test_long(config: pytest.Config, items: list[Any]) -> Iterable[Any]:
    """A slow test that is asked for by name, or failed last time, runs in either word."""
    if not config.getoption("lf", default=False) and not any("::" in one for one in config.args):
        return pairs.for_test_long(items)
    return [item for item in items if item.get_closest_marker("slow")] if config.option.markexpr == "long" else ()


def _mix_files(items: list[Any]) -> None:
    """Spread the tests of each file over the whole run, in their order. Some files mostly wait and others mostly
    compute: side by side they keep the processors busy until the end."""
    sizes = collections.Counter(item.path for item in items)
    places: collections.Counter[pathlib.Path] = collections.Counter()
    at: dict[Any, float] = {}
    for item in items:
        at[item] = places[item.path] / sizes[item.path]
        places[item.path] += 1
    items.sort(key=at.__getitem__)


def pytest_collection_finish() -> None:
    """Freeze what exists now: it stays, and the garbage collector took a tenth of the CPU to walk over it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _what_tests_write_is_not_compiled() -> Iterator[None]:
    """A module that is rewritten within a second with the same length would otherwise be loaded from the bytecode of
    its former text, here and in started programs. The tests themselves are compiled once, before this begins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        yield


@pytest.fixture(scope="session")
def _own_database(pytestconfig: pytest.Config) -> Iterator[Callable[[databases.Name], Database]]:
    """One database of this process on each server, made at first use and dropped at the end.

    Each pytest process has its own, so that their workers never meet."""
    with contextlib.ExitStack() as until:

        @functools.cache
        def own_database(name: databases.Name) -> Database:
            return until.enter_context(databases.own(pytestconfig.stash[AVAILABLE].named(name)))

        yield own_database


@pytest.fixture(scope="session")
def _engine_with_tables(_own_database: object) -> Iterator[Callable[[Database], Engine]]:
    with contextlib.ExitStack() as until:

        @functools.cache
        def engine_with_tables(database: Database) -> Engine:
            engine = create_engine(database.sync_url, query_cache_size=ALL_STATEMENTS)
            until.callback(engine.dispose)
            _metadata().create_all(engine)
            outbox.more_metadata.create_all(engine)
            _let_server_settle(engine)
            return engine

        yield engine_with_tables


@pytest.fixture(scope="session")
def _end_rows(_own_database: object) -> Iterator[Callable[[Database], list[str]]]:
    """Delete all rows, and return what did not hold for them.

    Races need real commits, so there is no outer transaction to roll back. DELETE is quicker than TRUNCATE for a few
    rows: 0.8 ms against 11 ms for five tables on PostgreSQL 15, and 1 ms against 6 ms on MariaDB 10.11.
    """
    with contextlib.ExitStack() as until:

        @functools.cache
        def impatient_engine(database: Database) -> Engine:
            engine = databases.impatient_engine(database)
            until.callback(engine.dispose)
            return engine

        def end_rows(database: Database) -> list[str]:
            with impatient_engine(database).begin() as connection:
                filled = databases.filled(connection, _metadata(), outbox.more_metadata)
                broken = clockwork.broken_promises(connection) if filled else []
                for table in filled:
                    connection.execute(table.delete())
            if database.name == "sqlite":  # a process with an open SQLite file must not fork
                impatient_engine(database).dispose()
            return broken

        yield end_rows


def _metadata() -> MetaData:
    from async_task import metadata  # here, so that a broken library does not break the collection

    return metadata


@pytest.fixture(scope="session")
def database(request: pytest.FixtureRequest, _own_database: Callable[[databases.Name], Database]) -> Database:
    """A database of this process. It may have tables or not."""
    return _own_database(request.param)


@pytest.fixture(scope="session")
def engine(database: Database, _engine_with_tables: Callable[[Database], Engine]) -> Engine:
    """The one engine of this process on this database. The tables exist and are empty when a test begins."""
    return _engine_with_tables(database)


@pytest.fixture(scope="session")
def async_engine_url(database: Database, engine: Engine) -> str:
    """For `create_async_engine` in the test's own event loop; the tables are those of `engine`."""
    return database.async_url


@pytest.fixture
def registered() -> Iterator[None]:
    """Targets that this test registers are forgotten after it."""
    before = registry.registered_targets()
    yield
    registry._allowed = registry.AllowList(before)


@pytest.fixture
def own_encryptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encryptors that this test registers are forgotten after it."""
    monkeypatch.setattr(encryptors, "_known", dict(encryptors._known))


@pytest.fixture(autouse=True)
def _rows_end_with_their_test(request: pytest.FixtureRequest) -> Iterator[None]:
    if "engine" not in request.fixturenames:
        yield
        return
    end_rows, database = request.getfixturevalue("_end_rows"), request.getfixturevalue("database")
    outbox.calls.clear()
    yield
    outbox.acts.clear()  # it may hold a worker, and with it the notifier of that worker
    outbox.hooks.clear()
    broken = end_rows(database)
    assert not broken, "; ".join(broken)


@pytest.fixture(autouse=True)
def _hooks_end_with_their_test() -> Iterator[None]:
    """The last application of a model leaves its hooks to whoever writes or performs without an application."""
    yield
    hooks._around.clear()
    telemetry._telemetry.clear()
    messages._hooks.clear()


@pytest.fixture(autouse=True)
def _beside_a_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run beside a thread, as in a web server: then the library forks for a suspect, and not for each runtime. This
    process is big, and its forks took a quarter of the CPU of all tests. Tests that take `one_thread`, and programs in
    processes of their own, have one thread."""
    if "one_thread" in request.fixturenames:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
def one_thread() -> None:
    """This process has no other threads than those that the test starts."""


LEASE = 1.0


def _let_server_settle(engine: Engine) -> None:
    """Wait until the server is older than a lease. Before that, a sweep recovers nothing, as it should."""
    uptime: float | None = 0.0
    while uptime is not None and uptime <= LEASE:
        with engine.connect() as connection:
            uptime = server_uptime(connection)


@pytest.fixture(params=["sync", "async"])
def door(request: pytest.FixtureRequest) -> str:
    """The kind of engine that the application uses: Engine or AsyncEngine. One body of code serves both."""
    return str(request.param)


by_one_door = pytest.mark.parametrize("door", ["sync"])
"""For tests in which the application only prepares the rows, or in which the row alone decides. Other tests here cover
with both kinds of engine what the kind of engine could change."""


@pytest.fixture
def lease(request: pytest.FixtureRequest) -> float:
    """The lease of `app` in seconds. Tests of execution say which call is at fault, and do not wait for the end of a
    lease: theirs outlasts a machine that stands still for a second, so that no heartbeat is late."""
    return 5 * LEASE if request.path.parent.name == "execution" else LEASE


@pytest.fixture
def app(engine: Engine, door: str, async_engine_url: str, lease: float) -> Iterator[AsyncTask]:
    """An application on this database with this kind of engine and this lease."""
    made = outbox.application(engine, door, async_engine_url, lease=lease)
    yield made
    made.close()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    """The caller's own sessions."""
    return sessionmaker(engine)


@pytest.fixture
def write(sessions: sessionmaker[Session]) -> Callable[..., Attempt]:
    """`write(target, "method", {...}, **options)`: one committed attempt, detached and readable."""

    def write(target: object, method_name: str | None = None, method_args: Any = None, **options: Any) -> Attempt:
        with sessions(expire_on_commit=False) as session, session.begin():
            attempt = Attempt.create(
                target=target, method_name=method_name, method_args=method_args, session=session, **options
            )
            session.flush()
            session.refresh(attempt)
        return attempt

    return write


# Operations at a provider


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> operations.Provider:
    """The provider that the operations of this test ask."""
    made = operations.Provider()
    monkeypatch.setattr(operations, "provider", made)
    return made


@pytest.fixture
def world(app: AsyncTask, engine: Engine, registered: None, provider: operations.Provider) -> operations.World:
    """Operations whose methods are plain functions."""
    register(operations.Batch)
    return operations.World(app, engine, operations.Batch)


@pytest.fixture
def async_world(app: AsyncTask, engine: Engine, registered: None, provider: operations.Provider) -> operations.World:
    """Operations whose methods are coroutines."""
    register(operations.AsyncBatch)
    return operations.World(app, engine, operations.AsyncBatch)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> reviews.Board:
    """What the models that are their own jobs are processed with in this test."""
    made = reviews.Board()
    monkeypatch.setattr(reviews, "board", made)
    return made


@pytest.fixture
def desk(app: AsyncTask, engine: Engine, registered: None, board: reviews.Board) -> reviews.Desk:
    """Rows that are their own jobs: of Review."""
    register_asyncable(reviews.Review)
    return reviews.Desk(app, engine, reviews.Review)


# The command line


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """In an empty folder, with nothing set, and a path that ends with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in (
        "ASYNC_TASK_APP",
        "ASYNC_TASK_DATABASE_URL",
        "ASYNC_TASK_ACTOR",
        "ASYNC_TASK_LOG_FORMAT",
        "ASYNC_TASK_SERVICE",
        "ASYNC_TASK_DOMAIN",
        "ASYNC_TASK_WEB_USERS",
        "ASYNC_TASK_WEB_TOKEN",
        "ASYNC_TASK_WEB_READERS",
        "NO_COLOR",
        "FORCE_COLOR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def say(alone: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`say("list", "--json")`: the command line in this process."""
    monkeypatch.setattr(drivers, "create_engine", databases.warm_engine)

    def say(*words: str) -> Said:
        capsys.readouterr()
        return Said(main(words), *capsys.readouterr())

    return say


@pytest.fixture
def run(say: Run, engine: Engine, database: Database) -> Run:
    """The same on this test's database."""
    return lambda *words: say(*words, "--database-url", database.sync_url)


@pytest.fixture
def process(alone: None, database: Database, engine: Engine) -> Iterator[Callable[..., elsewhere.Program]]:
    """`process("run-batch")`: `python -m async_task_cli` on this test's database, in a process of its own."""
    with contextlib.ExitStack() as until:

        def start(*words: str, **options: Any) -> elsewhere.Program:
            tests = str(pathlib.Path(__file__).parent)
            env = {**os.environ, "ASYNC_TASK_DATABASE_URL": database.sync_url, "PYTHONPATH": tests}
            begun = elsewhere.Program("async_task_cli", *words, cwd=pathlib.Path.cwd(), env=env, **options)
            until.callback(begun.close)
            return begun

        yield start
