"""The pytest plugin, as users have it: in a pytest of its own, with their fixtures."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from databases import Database

pytestmark = pytest.mark.long

SHOP = """
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from async_task import Attempt, target

class Base(DeclarativeBase): ...

class Order(Base):
    __tablename__ = "plugin_orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    is_fulfilled: Mapped[bool] = mapped_column(default=False)

@target
class Warehouse:
    @staticmethod
    def fulfill(session: Session, order_number: int) -> None:
        session.get_one(Order, order_number).is_fulfilled = True

    @staticmethod
    async def tell(order_number: int) -> None: ...

    @staticmethod
    def fail() -> None:
        raise ValueError("out of stock")

def place(session, number):
    session.add(Order(number=number))
    Attempt.options(session=session).call(Warehouse.fulfill, number)
"""
CONFTEST = """
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
import async_task
from shop import Base

@pytest.fixture(scope="session")
def engine():
    engine = create_engine({url!r})
    async_task.metadata.create_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()

@pytest.fixture
def session(engine):
    with engine.connect() as connection:
        outer = connection.begin()
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        with sessionmaker(connection, join_transaction_mode="create_savepoint")() as session:
            yield session
        assert outer.is_active
        outer.rollback()
"""
ASYNC_CONFTEST = """
import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from shop import Base
import async_task
{imports}

@{fixture}
async def session():
    engine = create_async_engine({url!r})
    async with engine.connect() as connection:
        outer = await connection.begin()
        if connection.dialect.name == "sqlite":
            await connection.exec_driver_sql("BEGIN")
        await connection.run_sync(async_task.metadata.create_all)
        await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        if connection.dialect.name in ("mysql", "mariadb"):
            await connection.run_sync(Base.metadata.drop_all)
        await outer.rollback()
    await engine.dispose()
"""
Run = Callable[..., "Ended"]


class Ended:
    """A run of pytest that has ended."""

    def __init__(self, ended: "subprocess.CompletedProcess[str]") -> None:
        self.said = ended.stdout + ended.stderr
        self.code = ended.returncode

    def assert_outcomes(self, words: str) -> None:
        assert f" {words} in " in self.said.replace("=", " "), self.said


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(test, *words)`: pytest in a folder with the shop and this test; further files by name."""

    def run(test: str, *words: str, **files: str) -> Ended:
        for name, text in {"shop": SHOP, "test_shop": test, **files}.items():
            (tmp_path / f"{name}.py").write_text(text)
        command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "-p", "async_task", *words]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # quicker, and a warning of another is no error
        return Ended(
            subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
        )

    return run


GOAL = """
from async_task import Attempt
from shop import Order, Warehouse, place

def test_order(session, assert_written, assert_not_written, perform_all, written):
    place(session, 17)
    assert_written(Warehouse.fulfill, order_number=17)
    assert_not_written(Warehouse.fail)
    perform_all()
    assert session.get(Order, 17).is_fulfilled
    assert [one.status for one in written()] == ["succeeded"]

def test_another(session, written, replaced, perform_all, advance):
    assert written() == []
    fakes = []
    replaced(Warehouse.fail, lambda: fakes.append(1))
    Attempt.call(Warehouse.fail)
    advance("1h")
    perform_all()
    assert fakes == [1]
    Attempt.call(Warehouse.fail)  # no warning says that this one is never made

def test_it_is_replaced_for_one_test(session, perform_all):
    Attempt.options(session=session).call(Warehouse.fail)
    try:
        perform_all()
    except ValueError:
        return
    raise AssertionError
"""


def test_a_test_of_a_shop_works_as_it_is_shown(run: Run, database: Database) -> None:
    conftest = CONFTEST.format(url=database.sync_url)
    run(GOAL, conftest=conftest).assert_outcomes("3 passed")


def test_it_works_in_several_processes(run: Run, tmp_path: Path) -> None:
    conftest = CONFTEST.format(url=f"sqlite:///{tmp_path / 'shop-WORKER.sqlite'}")
    conftest = conftest.replace("WORKER.sqlite'", "' + __import__('os').environ['PYTEST_XDIST_WORKER']")
    run(GOAL, "-p", "xdist", "-n", "2", conftest=conftest).assert_outcomes("3 passed")


ASYNC_TEST = """
import pytest
from async_task import Attempt
from shop import Order, Warehouse, place

{marker}
async def test_order(session, assert_written, perform_all, written, advance):
    place(session, 17)
    Attempt.options(session=session).call(Warehouse.tell, 17)
    await assert_written(Warehouse.fulfill, order_number=17)
    await advance("1h")
    assert len(await perform_all()) == 2
    assert (await session.get(Order, 17)).is_fulfilled
"""


@pytest.mark.parametrize("tool", ["pytest-asyncio", "anyio"])
def test_it_works_in_asynchronous_tests(run: Run, database: Database, tool: str) -> None:
    marker, imports, fixture = {
        "pytest-asyncio": ("@pytest.mark.asyncio", "import pytest_asyncio", "pytest_asyncio.fixture"),
        "anyio": (
            "@pytest.mark.anyio", "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'", "pytest.fixture",
        ),
    }[tool]  # fmt: skip
    conftest = ASYNC_CONFTEST.format(url=database.async_url, imports=imports, fixture=fixture)
    asyncio = ("-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=function")
    words = ("-p", "anyio") if tool == "anyio" else asyncio
    run(ASYNC_TEST.format(marker=marker), *words, conftest=conftest).assert_outcomes("1 passed")


FORGETFUL = """
import pytest
from shop import Warehouse, place

@pytest.mark.asyncio
async def test_forgetful(session, assert_written, assert_not_written, perform_all, written, advance):
    place(session, 17)
    assert_written(Warehouse.fail)
    assert_not_written(Warehouse.fulfill)
    perform_all()
    kept = written()
    advance("1h")

@pytest.mark.asyncio
async def test_next(session, perform_all):
    await perform_all()

@pytest.mark.asyncio
async def test_failing(session, perform_all):
    perform_all()
    assert session is None, "its own error"
"""


def test_a_forgotten_await_fails_the_test(run: Run, database: Database) -> None:
    imports, fixture = "import pytest_asyncio", "pytest_asyncio.fixture"
    conftest = ASYNC_CONFTEST.format(url=database.async_url, imports=imports, fixture=fixture)
    words = ("-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=function", "-W", "default")
    ended = run(FORGETFUL, *words, conftest=conftest)
    ended.assert_outcomes("2 failed, 1 passed, 6 warnings")
    for name in ("assert_written", "assert_not_written", "perform_all", "written", "advance"):
        assert f"\n{name}() of an AsyncSession was not awaited\n" in ended.said
    assert "its own error" in ended.said


def test_modes_are_set_by_marker_and_option(run: Run, tmp_path: Path) -> None:
    test = """
import pytest
from shop import Order, place

@pytest.mark.async_task(mode="inline")
def test_inline(session):
    place(session, 17)
    session.commit()
    assert session.get(Order, 17).is_fulfilled

@pytest.mark.async_task(mode="manual")
def test_manual(session, written):
    place(session, 17)
    session.commit()
    assert [one.status for one in written()] == ["pending"]

def test_off(session, written):
    place(session, 17)
    session.commit()
    assert written() == []
"""
    conftest = CONFTEST.format(url=f"sqlite:///{tmp_path / 'shop.sqlite'}")
    run(test, "-o", "async_task_mode=off", conftest=conftest).assert_outcomes("3 passed")


def test_the_fixture_mode_sets_the_mode_until_the_end_of_the_test(run: Run, tmp_path: Path) -> None:
    test = """
from shop import Order, place

def test_inline(session, mode):
    mode("inline")
    place(session, 17)
    session.commit()
    assert session.get(Order, 17).is_fulfilled

def test_manual(session, written):
    place(session, 17)
    session.commit()
    assert [one.status for one in written()] == ["pending"]

def test_unknown(mode):
    mode("eager")
"""
    ended = run(test, conftest=CONFTEST.format(url=f"sqlite:///{tmp_path / 'shop.sqlite'}"))
    ended.assert_outcomes("1 failed, 2 passed")
    assert "mode is one of 'manual', 'inline', 'off', not 'eager'" in ended.said


LOST = """
import pytest
from sqlalchemy.orm import Session
from async_task import Attempt, LostAttemptWarning
from shop import Warehouse

def test_a_fixture_rolls_back(session):
    session.begin_nested()
    Attempt.call(Warehouse.fail)

def test_code_forgets_its_commit(engine):
    with pytest.warns(LostAttemptWarning), Session(engine) as own:
        own.begin()
        Attempt.call(Warehouse.fail)
"""


def test_what_a_fixture_rolls_back_is_not_called_lost(run: Run, tmp_path: Path) -> None:
    run(LOST, conftest=CONFTEST.format(url=f"sqlite:///{tmp_path / 'shop.sqlite'}")).assert_outcomes("2 passed")


def test_a_session_fixture_of_another_name_is_named_by_the_option(run: Run, tmp_path: Path) -> None:
    conftest = CONFTEST.format(url=f"sqlite:///{tmp_path / 'shop.sqlite'}").replace("def session(", "def db(")
    test = GOAL.replace("session", "db").replace("db=db", "session=db")
    run(test, "-o", "async_task_session=db", conftest=conftest).assert_outcomes("3 passed")


MISTAKES = """
import pytest
import shop

def test_no_session(session, replaced):
    from async_task.testing import perform_all
    session.close()
    perform_all()

def test_wrong_function(session, assert_not_written):
    assert_not_written(print)

def test_wrong_argument(session, assert_not_written):
    assert_not_written(shop.Warehouse.fulfill, nr=1)

@pytest.mark.async_task(mode="eager")
def test_unknown_mode(): ...

@pytest.mark.async_task("inline")
def test_positional_mode(): ...

class TestOther:
    @pytest.fixture
    def session(self):
        return 7

    def test_no_session_but_a_number(self, written):
        written()

class TestBroken:
    @pytest.fixture
    def session(self, missing): ...

    def test_broken_fixture(self, written): ...
"""
SENTENCES = (
    "give session=, or name the fixture that gives the test's session in the pytest option async_task_session",
    "print is no method of a registered target",
    "no argument is named 'nr'; it takes order_number",
    "@pytest.mark.async_task: mode is one of 'manual', 'inline', 'off', not 'eager'",
    'the marker async_task takes one argument: @pytest.mark.async_task(mode="inline")',
    "the fixture 'session' gave a int, which is no session: set the option async_task_session",
    "fixture 'missing' not found",
)


def test_each_mistake_gets_a_sentence(run: Run, tmp_path: Path) -> None:
    ended = run(MISTAKES, conftest=CONFTEST.format(url=f"sqlite:///{tmp_path / 'shop.sqlite'}"))
    ended.assert_outcomes("4 failed, 3 errors")
    assert [sentence for sentence in SENTENCES if sentence not in ended.said] == []


def test_an_unknown_mode_in_the_options_ends_the_run(run: Run) -> None:
    ended = run("def test(): ...", "-o", "async_task_mode=eager")
    assert ended.code == pytest.ExitCode.USAGE_ERROR
    assert "async_task_mode: mode is one of 'manual', 'inline', 'off', not 'eager'" in ended.said


def test_without_a_session_fixture_the_session_is_given(run: Run, tmp_path: Path) -> None:
    test = """
from shop import Warehouse, place
from async_task import NoTransaction

def test(db, perform_all, assert_written):
    place(db, 17)
    assert_written(Warehouse.fulfill, order_number=17, session=db)
    assert len(perform_all(db)) == 1
    db.close()
    try:
        perform_all()
    except NoTransaction:
        return
    raise AssertionError
"""
    conftest = CONFTEST.format(url=f"sqlite:///{tmp_path / 'shop.sqlite'}").replace("def session(", "def db(")
    run(test, conftest=conftest).assert_outcomes("1 passed")


def test_it_imports_neither_the_library_nor_sqlalchemy_until_it_is_used(run: Run) -> None:
    test = """
import sys
def test_nothing_is_imported():
    assert "async_task.pytest_plugin" in sys.modules
    assert not {"sqlalchemy", "async_task.testing", "async_task.targets.registry"} & sys.modules.keys()
"""
    run(test, "--strict-markers").assert_outcomes("1 passed")


def test_a_spy_is_called_also_where_no_application_was_made(run: Run) -> None:
    test = """
import pytest
import shop
from async_task import target
from async_task.targets.registry import target_named

@target("plugin.spied")
def spied(): ...

def test_spy(monkeypatch):
    original = spied
    def spy():
        return original()
    monkeypatch.setitem(globals(), "spied", spy)
    assert target_named("plugin.spied").method(None).callable is spy
"""
    run(test).assert_outcomes("1 passed")
